"""Configs that somebody made wrong: they load, or they are refused by a ValueError that names the key; soon, and in
little memory."""

from __future__ import annotations

import json
import random
import resource
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import anyformer as af
from anyformer.core import pages
from anyformer.hub import shape
from anyformer.hub.load import NATIVE, outline

ABSENT: Any = object()
WRONG: tuple[Any, ...] = (
    ABSENT, None, -1, -7, 0, 10**7, 10**9, 10**15, 10**30, float("nan"), float("inf"), 1e300, 0.5, 12.0, "text",
    "12", "", [], [3], ["a"], [[1]], [10**9], {}, {"a": 1}, True,
)  # fmt: skip
SECOND = 1.5  # of processor time, for one config: most take 0.02
MEMORY = 300_000  # kB that a run may need beside what it needed before
LISTED = [name for name in pages.names() if any(hub.format == "hf" for hub in pages.page(name).module.HUBS)]


def places(config: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key and every entry of a list."""
    for step, value in config.items() if isinstance(config, dict) else enumerate(config):
        yield (*before, step)
        if isinstance(value, dict | list):
            yield from places(value, (*before, step))


def spoiled(config: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The config with another value, or nothing, at one place."""
    config = json.loads(json.dumps(config))
    node: Any = config
    for step in place[:-1]:
        node = node[step]
    if value is ABSENT:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return config


@cache
def folder(scratch: Path, name: str, case: str) -> tuple[Path, dict[str, Any]]:
    """A folder with a small model of a page, and its config."""
    where = scratch / f"{name}-{list(cases(name)).index(case)}"
    af.build(name, "tiny", seed=0, overrides=cases(name)[case]).save(where)
    af.load(where)  # PyTorch imports what it needs: not the config's time
    return where, json.loads((where / "config.json").read_text())


def cases(name: str) -> dict[str, Any]:
    return {"tiny": {}, **pages.page(name).module.CASES}


def answer(where: Path, config: dict[str, Any], named: list[str]) -> str | None:
    """Loads the folder with this config: what is wrong with the answer, or None."""
    (where / "config.json").write_text(json.dumps(config))
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        af.load(where)
        told = ""
    except ValueError as error:
        told = str(error)
    except Exception as error:
        return f"a raw {error!r}"
    if (took := time.process_time() - begin) > SECOND:
        return f"{took:.1f} s until {told[:100] or 'it loaded'}"
    if (more := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > MEMORY:
        return f"{more // 1000} MB until {told[:100] or 'it loaded'}"
    # what goes with a model of other tensors is refused by the tensor's name, and a missing key by what stands for it
    words = [*named, "tensor", "config key"]
    return None if not told or any(word in told for word in words) else f"does not say which key: {told[:200]}"


def wrong_answers(scratch: Path, seed: int, count: int, every_case: bool) -> list[str]:
    """Of so many spoiled configs, those that are answered wrongly."""
    rng, out = random.Random(seed), []
    for number in range(count):
        name = LISTED[number % len(LISTED)]
        case = rng.choice(list(cases(name))) if every_case else "tiny"
        where, config = folder(scratch, name, case)
        if config["model_type"] == NATIVE:
            continue
        place, value = rng.choice(list(places(config))), rng.choice(WRONG)
        if wrong := answer(where, spoiled(config, place, value), [s for s in place if isinstance(s, str)]):
            shown = "absent" if value is ABSENT else repr(value)
            out.append(f"{name}/{case}: {'.'.join(map(str, place))} = {shown}: {wrong}")
        (where / "config.json").write_text(json.dumps(config))
    return out


def test_a_spoiled_config_loads_or_is_refused_by_its_key(tmp_path):
    wrong = wrong_answers(tmp_path, seed=1, count=200, every_case=False)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_spoiled_configs_load_or_are_refused_by_their_key(tmp_path, seed):
    wrong = wrong_answers(tmp_path, seed=100 + seed, count=1000, every_case=True)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTED)
def test_each_size_that_a_file_cannot_hold_is_refused_at_once(tmp_path, name):
    """Every whole number of a config at once too large for memory, for time, and for the file."""
    where, config = folder(tmp_path, name, "tiny")
    for key, value in config.items():
        for size in (10**5, 10**7, 10**18) if type(value) is int else ():
            wrong = answer(where, {**config, key: size}, [key])
            assert not wrong, f"{key} = {size}: {wrong}"
    (where / "config.json").write_text(json.dumps(config))


def test_a_recipe_in_a_file_is_held_against_its_weights(tmp_path):
    model = af.build(af.recipe("llama", "tiny").but({"blocks.*.ffn.act": "relu2"}), seed=0)
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == NATIVE
    runs = config["recipe"]["blocks"]
    for repeat in (3000, 90_000, 10**9):
        runs[0]["repeat"] = repeat
        wrong = answer(tmp_path, config, ["recipe"])
        assert not wrong, f"{repeat} blocks: {wrong}"
    for place in places(config["recipe"]):
        for value in (10**18, -1, "text", None, [1], {"part": "Attention"}):
            wrong = answer(tmp_path, {**config, "recipe": spoiled(config["recipe"], place, value)}, ["recipe"])
            assert not wrong, f"{place} = {value}: {wrong}"


def test_a_config_without_weights_is_bounded(tmp_path):
    af.build("llama", "tiny", seed=0).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads"):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: 10**7}))
        begin = time.process_time()
        try:
            outline(tmp_path / "config.json")
        except ValueError as error:
            assert key in str(error)
        assert time.process_time() - begin < SECOND, key


@pytest.mark.slow
def test_the_bound_leaves_room_for_what_is_published():
    for name in LISTED:
        page = pages.page(name)
        for size, config in page.sizes.items():
            hub = next(h for h in page.module.HUBS if h.format == "hf")
            model = shape.empty(page, hub, config)
            assert sum(p.numel() for p in model.parameters()) > 0, f"{name}/{size}"
