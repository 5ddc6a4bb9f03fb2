"""The page beyond one chunk, where the contract's short texts do not reach: beside transformers, and as a whole."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.contract import behaviour, probe, training
from anyformer.contract.probe import draw
from anyformer.contract.subjects import Subject, hubs
from anyformer.parts import LocalAttention, LSHAttention

CASES: dict[str, dict[str, Any]] = {
    "decoder": {"layers": ("local", "lsh", "lsh", "local"), "local": (4, 1, 0), "lsh": (8, 1, 0)},
    "factors": {"layers": ("lsh", "local"), "local": (6, 1, 0), "lsh": (6, 1, 0), "buckets": (4, 6)},
    "encoder": {"task": "masked", "local": (4, 1, 1), "lsh": (8, 1, 1), "rounds": 2, "buckets": (2, 4)},
    "hidden": {"task": "none", "layers": ("lsh",) * 2, "lsh": (5, 1, 0), "rounds": 3},
}
cases = pytest.mark.parametrize("case", CASES)


def subject(case: str) -> Subject:
    page = af.page("reformer")
    config = page.at("tiny", **CASES[case])
    return Subject(f"reformer/long, {case}", page.recipe(config), "reformer", config)


@cases
def test_long_texts_are_transformers(case: str) -> None:
    """Each row of a padded batch is theirs alone: logits and hidden states, at lengths around whole chunks."""
    pytest.importorskip("transformers", reason="needs transformers")
    from anyformer.contract.oracle import meet
    from anyformer.contract.tracing import trace

    here, rng = subject(case), random.Random(0)
    side = meet(here, hubs(here)[0])
    for side_of_padding in ("left", "right"):
        batch = draw(here, rng, [8, 9, 24, 31, 41, 3], side_of_padding)
        with torch.no_grad():
            ours = trace(side.ours, batch)
        for i in range(len(batch)):
            for name, expected in side.run(batch.row(i)).items():
                found = batch.real(name, ours[name], i)
                probe.close(found, expected[0], f"{side_of_padding}, row {i}: {name}")


@cases
def test_long_rows_do_not_see_each_other(case: str) -> None:
    here = subject(case)
    for i in range(4):
        behaviour.batching_changes_nothing(here, rng=random.Random(i))
        behaviour.content_of_padding_changes_nothing(here, rng=random.Random(i))
        behaviour.rows_of_padding_are_harmless(here, rng=random.Random(i))
    if here.decodes:
        behaviour.no_gradient_from_the_future(here, rng=random.Random(9))


@cases
def test_long_texts_train(case: str) -> None:
    here = subject(case)
    training.overfits_one_batch(here)
    training.activation_checkpointing_changes_nothing(here)
    training.gradient_accumulation_equals_one_batch(here, rng=random.Random(0))


def test_local_layers_decode_over_any_length() -> None:
    page = af.page("reformer")
    config = page.at("tiny", layers=("local",) * 2, local=(4, 1, 0))
    here = Subject("reformer/long, local", page.recipe(config), "reformer", config)
    for i in range(4):
        for check in (
            behaviour.caching_changes_nothing,
            behaviour.cached_after_reorder,
            behaviour.cached_after_rollback,
        ):
            check(here, rng=random.Random(i))
        behaviour.future_tokens_change_nothing(here, rng=random.Random(i))


def test_generating_beyond_a_chunk() -> None:
    model = af.build("reformer", "tiny", seed=0)  # hashed chunks are of 24 tokens
    prompt = list(range(1, 20))
    assert model.generate([prompt], max_new_tokens=5) == model.generate([prompt], max_new_tokens=5, cache=False)
    with pytest.raises(ValueError, match=r"LSHAttention decodes step by step up to size=24 tokens.*cache=False"):
        model.generate([prompt], max_new_tokens=10)
    (found,) = model.generate([prompt], max_new_tokens=10, temperature=0, cache=False)
    assert len(found) == 10


def test_later_tokens_move_the_borders_of_chunks() -> None:
    """What the page says about decoders: no value of a later token has an effect, its place in the sorted row has."""
    model = subject("decoder").model
    ids = torch.randint(1, 128, (1, 40), generator=torch.Generator().manual_seed(0))
    other = torch.cat((ids[:, :30], 127 - ids[:, 30:]), 1)
    with torch.no_grad():
        assert not torch.equal(model(ids).logits[:, :30], model(other).logits[:, :30])
        assert torch.equal(
            model(ids[:, :8]).logits[:, :4], model(torch.cat((ids[:, :4], other[:, 36:]), 1)).logits[:, :4]
        )


def test_the_parts_fit_other_pages() -> None:
    gpt = af.recipe("gpt", "tiny")
    for mixer in (LSHAttention.of(heads=4, size=8), LocalAttention.of(heads=4, size=8)):
        model = af.build(gpt.but({"blocks.*.mixer": mixer}), seed=0)
        model(torch.randint(128, (2, 30))).logits.sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_files_that_say_what_the_page_cannot_do() -> None:
    from anyformer.hub.tables import config as tables

    page = af.page("reformer")
    (hub,) = page.module.HUBS
    told = tables.write(hub.config, page.at("tiny"), {"task": "lm"}, {}) | {
        "architectures": ["ReformerModelWithLMHead"]
    }
    for change, message in (
        ({"num_buckets": None}, "'num_buckets' is null"),
        ({"is_decoder": False}, "'is_decoder' is False, which contradicts the class .*ReformerModelWithLMHead"),
    ):
        with pytest.raises(ValueError, match=message):
            tables.read(hub.config, told | change, page.config, {"task": "lm"})
    for options, message in (
        ({"lsh": (24, 1, 1)}, "a decoder sees no chunk after its own"),
        ({"axial": (8, 11, 8, 24)}, "are 88 positions, fewer than the context of 96"),
        ({"lsh": (20, 1, 0)}, "fill is a multiple of size=24; got 20"),
        ({"layers": ("full",)}, "layers must be one of 'local', 'lsh'"),
    ):
        with pytest.raises(ValueError, match=message):
            page.recipe(page.at("tiny", **options)).build()
