"""Item 14: a tampered model directory is refused, at once, and nothing in it is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anyformer.contract.check import check
from anyformer.contract.probe import expect
from anyformer.contract.subjects import Subject
from anyformer.contract.training import in_full
from anyformer.hub import load, save
from anyformer.hub.formats.safetensors import DIFFUSERS
from anyformer.hub.load import NATIVE

SECONDS = 1.0  # the longest time of a refusal
WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
DIFFUSED = {WEIGHTS: f"{DIFFUSERS}.safetensors", INDEX: f"{DIFFUSERS}.safetensors.index.json",
            PICKLE: f"{DIFFUSERS}.bin"}  # fmt: skip


class Payload:
    """A pickle that writes a file if it is run."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def at(folder: Path, name: str) -> Path:
    """A file of a model, under its name in the folder's format."""
    other = any(folder.glob(f"{DIFFUSERS}*")) or any(folder.parent.glob(f"{DIFFUSERS}*"))
    return folder / (DIFFUSED.get(name, name) if other else name)


def header(data: bytes) -> dict[str, Any]:
    """The header of a safetensors file."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def with_header(data: bytes, new: dict[str, Any]) -> bytes:
    """The same file with another header."""
    text = json.dumps(new).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


def _index(folder: Path, place: str) -> None:
    names = [n for n in header(at(folder, WEIGHTS).read_bytes()) if n != "__metadata__"]
    (folder.parent / "elsewhere.safetensors").write_bytes(at(folder, WEIGHTS).read_bytes())
    index = at(folder, INDEX)
    at(folder, WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    weights = {name: place.format(folder=folder) for name in names}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: _rewrite(at(folder, WEIGHTS), change)


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _spans(change: Callable[[list[int]], list[int]]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        entries = header(data)
        name = next(n for n in entries if n != "__metadata__")
        entries[name]["data_offsets"] = change(entries[name]["data_offsets"])
        return with_header(data, entries)

    return apply


def _replace(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = at(folder, name)
        path.rename(folder.parent / path.name)
        make(path)

    return apply


def _config(**new: Any) -> Callable[[Path], None]:
    return lambda folder: _rewrite(folder / "config.json", lambda d: json.dumps(json.loads(d) | new).encode())


ATTACKS: dict[str, Callable[[Path], None]] = {
    "index: a path upwards": lambda folder: _index(folder, "../elsewhere.safetensors"),
    "index: an absolute path": lambda folder: _index(folder, "{folder}/../elsewhere.safetensors"),
    "index: a file of another kind": lambda folder: _index(folder, "config.json"),
    "index: no file": lambda folder: _index(folder, "model-00002-of-00002.safetensors"),
    "weights: a link out of the folder": _replace(
        WEIGHTS, lambda path: path.symlink_to(path.parent.parent / path.name)
    ),
    "weights: a pipe": _replace(WEIGHTS, lambda path: os.mkfifo(path)),
    "weights: a folder": _replace(WEIGHTS, lambda path: path.mkdir()),
    "weights: empty": _bytes(lambda data: b""),
    "weights: cut off": _bytes(lambda data: data[: len(data) * 2 // 3]),
    "weights: cut off in the header": _bytes(lambda data: data[:50]),
    "weights: more than declared": _bytes(lambda data: data + bytes(8)),
    "weights: a header of 2^63 bytes": _bytes(lambda data: (1 << 63).to_bytes(8, "little") + data[8:]),
    "weights: ranges that overlap": _bytes(_spans(lambda span: [span[0] + 4, span[1] + 4])),
    "weights: a range beyond the end": _bytes(_spans(lambda span: [span[0], span[1] + (1 << 40)])),
    "weights: a range backwards": _bytes(_spans(lambda span: span[::-1])),
    "config: not JSON": lambda folder: _rewrite(folder / "config.json", lambda data: data[:-5]),
    "config: a list": lambda folder: _rewrite(folder / "config.json", lambda data: b"[]"),
    "config: nested 100,000 deep": lambda folder: _rewrite(
        folder / "config.json", lambda d: b"[" * 100_000 + b"]" * 100_000
    ),
    "config: the same key twice": lambda f: _rewrite(
        f / "config.json", lambda d: d.replace(b"{", b'{"model_type": "x",', 1)
    ),
    "config: a link out of the folder": _replace(
        "config.json", lambda path: path.symlink_to(path.parent.parent / path.name)
    ),
    "config: another model": _config(model_type="no_such_type"),
    "config: an unknown key": _config(auto_map={"AutoModel": "evil.Model"}),
}


@check(14, "model", needs=in_full)
def tampered_directories_are_refused(subject: Subject) -> float:
    """Each way to tamper with a saved model is an error within a second. The longest time is reported."""
    worst = 0.0
    with tempfile.TemporaryDirectory() as saved:
        written = save(subject.model, saved)
        for name, attack in ATTACKS.items():
            if written == NATIVE and name == "config: an unknown key":
                continue  # our own format reads the recipe alone
            with tempfile.TemporaryDirectory() as place:
                folder = Path(shutil.copytree(saved, Path(place) / "model"))
                attack(folder)
                worst = max(worst, refusal(folder, name))
    return worst


def refusal(folder: Path, name: str, **options: Any) -> float:
    """The seconds until the refusal."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings(action="ignore"):  # the warning of a pickle is expected
            load(folder, **options)
    except (ValueError, FileNotFoundError) as error:
        seconds = time.monotonic() - start
        expect(seconds < SECONDS, f"{name}: refused after {seconds:.1f} s")
        expect(bool(str(error)), f"{name}: the error has no message")
        return seconds
    expect(False, f"{name}: it was loaded")
    return 0.0


@check(14, "model", needs=in_full)
def pickles_are_refused(subject: Subject) -> float:
    """A pickle is refused by default; if allowed, it is read without running it."""
    with tempfile.TemporaryDirectory() as place:
        folder, trace = Path(place) / "model", Path(place) / "it ran"
        save(subject.model, folder)
        pickled = at(folder, PICKLE)
        at(folder, WEIGHTS).unlink()
        for write in (
            lambda path: path.write_bytes(pickle.dumps(Payload(trace))),
            lambda path: torch.save(Payload(trace), path),
        ):
            write(pickled)
            refusal(folder, "a pickle")
            refusal(folder, "a pickle with code", allow_pickle=True)
            expect(not trace.exists(), "the code in the pickle ran")
    return 0.0


def without_blocks(subject: Subject) -> str | None:
    """The reason why no recipe in its file can be spoilt, or None."""
    if subject.page:
        return "it has no recipe in its file"
    return None if "blocks" in subject.recipe.options else "its blocks are in stacks inside; other compositions show it"


@check(14, "model", needs=without_blocks)
def bad_recipes_are_refused(subject: Subject) -> float:
    """A recipe of our own format with unknown parts, options or values, or without end, is refused."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        save(subject.model, folder)
        config = json.loads((folder / "config.json").read_text())
        expect(config["model_type"] == NATIVE, "it was written under another name")
        blocks = config["recipe"]["blocks"]
        for name, recipe in {
            "a part that does not exist": config["recipe"] | {"part": "os.system"},
            "no recipe": None,
            "an option that does not exist": config["recipe"] | {"no_such_option": 1},
            "a billion blocks": config["recipe"] | {"blocks": [{"repeat": 10**9, "of": blocks[0]}]},
            "a million blocks, nested": config["recipe"]
            | {"blocks": [{"repeat": 10**3, "of": [{"repeat": 10**3, "of": 1}]}]},
            "a million times a million": config["recipe"]
            | {"blocks": [{"repeat": 10**5, "of": [{"repeat": 10**5, "of": 1}]}]},
            "blocks that are numbers": config["recipe"] | {"blocks": [1, 2]},
            "a window of letters": config["recipe"] | {"blocks": [{"value": "Window", "left": "far"}]},
            "a window without a width": config["recipe"] | {"blocks": [{"value": "Window"}]},
            "a width of nothing": config["recipe"] | {"dim": 0},
            "a width of letters": config["recipe"] | {"dim": "wide"},
            "a width below nothing": config["recipe"] | {"dim": -8},
            "a value that does not exist": config["recipe"] | {"context": {"value": "no such"}},
        }.items():
            (folder / "config.json").write_text(json.dumps(config | {"recipe": recipe}))
            refusal(folder, name)
    return 0.0
