"""Files with bytes that somebody changed: each loads, or is refused by a ValueError; soon, and in little memory."""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import anyformer as af
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import adapters, lora
from tests.hub.test_gemma3 import written

SECOND, MEMORY = 1.5, 300_000  # of processor time, and kB that one file may need
HUGE = (b"-1", b"99999999999999999999", b"1e999", b"null", b'"a"', b"[]", b"{}", b"0", b"1099511627776", b"true")


def changed(data: bytes, rng: random.Random, head: int) -> bytes:
    """The bytes with one to three changes, most of them in the first `head`."""
    for _ in range(rng.randint(1, 3)):
        end = min(len(data), head if rng.random() < 0.9 else len(data))
        at = rng.randrange(max(1, end))
        match rng.randrange(7):
            case 0:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 1:
                data = data[:at] + rng.randbytes(rng.randint(1, 9)) + data[at:]
            case 2:
                data = data[:at] + data[at + rng.randint(1, 40) :]
            case 3:
                data = data[:at]
            case 4:
                data = data[: at + 30] + data[at:]
            case 5:  # eight bytes that say a large number
                data = data[:at] + rng.choice((2**63, 2**40, 2**31, 2**64 - 1)).to_bytes(8, "little") + data[at + 8 :]
            case _:
                data = _another_value(data, rng, end)
    return data


def _another_value(data: bytes, rng: random.Random, end: int) -> bytes:
    """JSON with another value in the place of one number or text."""
    found = list(re.finditer(rb'-?\d+(\.\d+)?|"[^"\\]*"|true|false|null', data[:end]))
    if not found:
        return data
    place = rng.choice(found)
    return data[: place.start()] + rng.choice(HUGE) + data[place.end() :]


def answer(path: Path, data: bytes, read: Callable[[], Any]) -> str | None:
    """Reads a folder in which one file has these bytes: what is wrong with the answer, or None."""
    whole = path.read_bytes()
    path.write_bytes(data)
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read()
    except (ValueError, FileNotFoundError):
        pass
    except Exception as error:
        return f"a raw {error!r}"
    finally:
        path.write_bytes(whole)
    if (took := time.process_time() - begin) > SECOND:
        return f"{took:.1f} s"
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"{more // 1000} MB" if more > MEMORY else None


KINDS = {  # the file that is changed, and how many of its bytes come before what any bytes may be
    "safetensors": ("model.safetensors", 3000), "gguf": ("model.gguf", 3000), "tokenizer": ("tokenizer.json", 10**6),
    "its config": ("tokenizer_config.json", 10**6), "generation": ("generation_config.json", 10**6),
    "config": ("config.json", 10**6), "adapter's config": ("adapter_config.json", 10**6),
    "adapter": ("adapter_model.safetensors", 2000),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its tokenizer, an adapter of it, and a GGUF file."""
    where = tmp_path_factory.mktemp("whole")
    model = af.build("llama", "tiny", vocab=300, seed=0)
    model.tokenizer = Tokenizer.bytes_level()
    model.origin = {"generation": {"eos_token_id": 2, "temperature": 0.7, "top_k": 5, "do_sample": True}}
    model.save(where)
    lora.add(model, rank=2, alpha=4.0, targets=["**.mixer.q"])
    adapters.write(model, where, base="tiny")
    written(where / "model.gguf")
    assert all((where / file).exists() for file, _ in KINDS.values())
    return where


def wrong_answers(folder: Path, kind: str, seed: int, count: int, scratch: Path) -> list[str]:
    """Of so many files with changed bytes, those that are answered wrongly."""
    file, head = KINDS[kind]
    shutil.copytree(folder, scratch, dirs_exist_ok=True)
    path, rng, out = scratch / file, random.Random(seed), []
    base = af.load(scratch)

    def read() -> Any:
        if kind.startswith("adapter"):
            return adapters.read(base, scratch)
        return af.load(path if kind == "gguf" else scratch)

    for number in range(count):
        data = changed((folder / file).read_bytes(), rng, head)
        if wrong := answer(path, data, read):
            out.append(f"{kind} {seed}/{number}: {wrong}: {data[:80]!r}")
        if kind.startswith("adapter"):
            base = af.load(scratch)  # one that was read is not read again
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes_load_or_are_refused(folder, tmp_path, kind):
    wrong = wrong_answers(folder, kind, 1, 40, tmp_path)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
@pytest.mark.parametrize("kind", KINDS)
def test_many_changed_bytes_load_or_are_refused(folder, tmp_path, kind, seed):
    wrong = wrong_answers(folder, kind, seed, 300, tmp_path)
    assert not wrong, "\n".join(wrong)


def test_the_changes_are_changes(folder):
    rng = random.Random(0)
    for file, head in KINDS.values():
        data = (folder / file).read_bytes()
        assert sum(changed(data, rng, head) != data for _ in range(50)) > 40
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 300
