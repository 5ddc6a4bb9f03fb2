"""Item 3: nothing in a file is dropped, made up or contradicted without an error that names it."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from anyformer.contract.check import LeftOut, check, no_file, varied
from anyformer.contract.diffusers import stem, weights_in
from anyformer.contract.oracle import oracle, rewritten
from anyformer.contract.probe import expect
from anyformer.contract.subjects import Subject, apart_from_tiny, hubs, subjects
from anyformer.core import pages
from anyformer.hub import fill, load
from anyformer.hub.choose import implied
from anyformer.hub.formats.ct2 import CTranslate2, is_ct2
from anyformer.hub.tables import config as tables
from anyformer.hub.tables.config import ACTS
from anyformer.hub.tables.weights import Hub, links
from anyformer.parts import Rotary

APART = 4  # lists of tensors
Files = tuple[dict[str, Any], dict[str, Tensor]]


def files(subject: Subject, hub: Hub) -> Files:
    """The config and the tensors of the oracle's folder."""
    folder = oracle(subject, hub).folder
    weights = weights_in(folder)
    return json.loads((folder / "config.json").read_text()), {n: weights.get(n) for n in weights.names()}


@contextlib.contextmanager
def written(config: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Path]:
    """A folder with this config and these tensors."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(config))
        save_file(
            {k: v.clone() for k, v in tensors.items()}, Path(name) / f"{stem(config)}.safetensors", {"format": "pt"}
        )
        yield Path(name)


def refused(config: dict[str, Any], tensors: dict[str, Tensor], *names: str) -> None:
    """Raises unless loading these is an error that names all of `names`, more of them than it names for users."""
    most = mock.patch.object(fill, "NAMED", max(fill.NAMED, len(names)))
    with written(config, tensors) as folder, most:
        try:
            load(folder)
        except ValueError as error:
            lacks = [n for n in names if n not in str(error)]
            expect(not lacks, f"the error does not name {lacks}: {error}")
            return
    wrong = names[0].strip("'")
    expect(False, f"it was loaded, though {wrong!r} is wrong")


@check(3, "model", checkpoint=True, needs=lambda s: None if s.path or s.page else "it has no file yet")
def ledger_is_complete(subject: Subject) -> float:
    """Every tensor and every config key of the file is in the ledger once, with its status."""
    if subject.path is None:
        return _complete_for_page(subject)
    return complete(subject.model, Path(subject.path))


def _complete_for_page(subject: Subject) -> float:
    if not hubs(subject):
        raise LeftOut(no_file(subject))
    for hub in hubs(subject):
        side = oracle(subject, hub)
        complete(side.ours if side.ours.ledger else load(side.folder), side.folder)
    return 0.0


def complete(model: Any, path: Path) -> float:
    """Compares the ledger of a loaded model with the content of the file."""
    ledger = model.ledger
    if path.is_dir():
        names = sorted((CTranslate2(path) if is_ct2(path) else weights_in(path, allow_pickle=True)).names())
        expect(
            sorted(line.name for line in ledger.tensors if line.status != "fresh") == names,
            "tensors are not all in the ledger",
        )
        config = json.loads((path / "config.json").read_text())
        keys = sorted(line.key for line in ledger.config)
        expected = dotted(config, keys)
        expect(ledger.format != "hf" or keys == sorted(expected), f"config keys: {set(keys) ^ set(expected)}")
    for line in ledger.tensors:
        expect(
            line.status in ("used", "derived", "ignored") and bool(line.detail), f"tensor {line.name!r} has no status"
        )
    for key in ledger.config:
        expect(key.status in ("used", "fixed", "ignored") and bool(key.detail), f"config key {key.key!r} has no status")
    held = {n for line in ledger.tensors if line.status == "used" for n in line.detail.split(", ")}
    expect(held == set(model.state_dict()), f"weights without an origin: {sorted(set(model.state_dict()) ^ held)[:5]}")
    return 0.0


def dotted(config: dict[str, Any], keys: list[str], where: str = "") -> list[str]:
    """The paths of all keys of a config, into those of its configs that a table of their own reads."""
    found = []
    for name, value in config.items():
        path = where + name
        inner = isinstance(value, dict) and any(key.startswith(f"{path}.") for key in keys)
        found += dotted(value, keys, f"{path}.") if inner else [path]
    return found


def row_of(name: str, hub: Hub) -> str:
    """The row of the map that reads a tensor: its name without the layer number."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "{i}", name.removeprefix(hub.base))


def one_a_row(subject: Subject, hub: Hub, names: Iterable[str]) -> list[str]:
    """The first tensor of each row of the map, without rows of earlier cases of the page."""
    known = {row_of(name, hub) for other in earlier(subject, hub) for name in theirs(other, hub)}
    first = {row_of(name, hub): name for name in sorted(names, reverse=True)}
    chosen = [name for row, name in first.items() if row not in known]
    if not chosen:
        raise LeftOut("every row of its map is checked by an earlier case of the page")
    return chosen


def earlier(subject: Subject, hub: Hub) -> list[Subject]:
    """The cases of the page before this one that these files can express."""
    every = subjects(subject.page or "")
    return [s for s in every[: every.index(subject)] if not s.light and hub in hubs(s)] if subject in every else []


def theirs(subject: Subject, hub: Hub) -> list[str]:
    """The names of all tensors in a subject's file."""
    table = links(hub.weights(subject.config), subject.outline.state_dict())
    return [name for link in table if not link.tied for name in link.theirs]


@check(3, "files", later=apart_from_tiny)
def missing_tensor_is_named(subject: Subject, hub: Hub) -> float:
    """Loading without a tensor, one of each row of the map, is an error that counts and names what is missing: a first
    tensor alone, the others in a few files."""
    config, tensors = files(subject, hub)
    for names in in_lists(one_a_row(subject, hub, tensors)):
        present = {k: v for k, v in tensors.items() if k not in names}
        refused(config, present, *names, f"{len(names)} tensors are missing")
    return 0.0


def in_lists(names: list[str]) -> list[list[str]]:
    """The first name alone, the others in a few lists; neighbours, perhaps one of ours, apart."""
    first, *others = names
    return [[first], *(others[i::APART] for i in range(min(APART, len(others))))]


@check(3, "files", later=apart_from_tiny)
def wrong_shape_is_named(subject: Subject, hub: Hub) -> float:
    """Loading with one more row in a tensor, one of each row of the map, is an error with its name: a first tensor
    alone, the others in a few files, each of them named."""
    config, tensors = files(subject, hub)
    for names in in_lists(one_a_row(subject, hub, tensors)):
        refused(config, tensors | {name: longer(tensors[name]) for name in names}, *map(repr, names))
    return 0.0


def longer(value: Tensor) -> Tensor:
    """The tensor with one more row; of a single one, with one more column (ViT's positions)."""
    if value.ndim == 0:
        return value.repeat(2)
    axis = 1 if value.ndim > 1 and value.shape[0] == 1 else 0
    return torch.cat((value, value.narrow(axis, 0, 1)), axis)


@check(3, "files", later=apart_from_tiny)
def unexpected_tensor_is_named(subject: Subject, hub: Hub) -> float:
    """An extra tensor, at the top or inside a layer, is an error with its name."""
    config, tensors = files(subject, hub)
    inner = next(n for n in tensors if ".0." in n)
    for name in ("extra.weight", inner.rpartition(".")[0] + ".extra", inner.replace(".0.", ".77.")):
        refused(config, tensors | {name: torch.zeros(2)}, name)
    return 0.0


@check(3, "files", later=apart_from_tiny)
def tied_copies_must_agree(subject: Subject, hub: Hub) -> float:
    """A tied weight stored twice: equal copies load, different ones are an error; so are two names of one tensor."""
    config, tensors = files(subject, hub)
    model = oracle(subject, hub).ours
    short, tried = not any(name.startswith(hub.base) for name in tensors), 0
    aged: dict[int, dict[str, str]] = {}  # with the first, second ... older name of each tensor: name -> older name
    rows: set[tuple[str, str]] = set()
    for link in links(hub.weights(model.config), model.state_dict()):
        if link.tied:
            whole = link.write(model.state_dict())  # one copy, in the files perhaps in pieces
            copies = {name.removeprefix(hub.base) if short else name: piece for name, piece in whole.items()}
            with written(config, tensors | copies) as folder:
                load(folder)
            for name, piece in copies.items():
                refused(config, tensors | copies | {name: piece + 1.0}, name)
            tried += 1
        for place, older in enumerate(link.also):
            if tensors.keys() >= set(link.theirs):
                renamed = dict(zip(link.theirs, older, strict=True))
                aged.setdefault(place, {}).update(renamed)
                row = row_of(link.theirs[0], hub), row_of(older[0], hub)
                if row not in rows:
                    refused(config, tensors | {o: tensors[n] for n, o in renamed.items()}, older[0], link.theirs[0])
                rows.add(row)
                tried += 1
    for older_names in aged.values():
        with written(config, {older_names.get(n, n): v for n, v in tensors.items()}) as folder:
            load(folder)
    for old_tail, tail in hub.tails.items():
        renamed = {n: n[: -len(tail)] + old_tail for n in tensors if n.endswith(f"Norm.{tail}")}
        for name, old in list(renamed.items())[:2]:
            refused(config, tensors | {old: tensors[name]}, old, name)
            tried += 1
        with written(config, {renamed.get(n, n): v for n, v in tensors.items()}) as folder:
            load(folder)
    if not tried:
        raise LeftOut("its files hold no weight twice, and none under a second name")
    return 0.0


@check(3, "files", later=apart_from_tiny)
def unknown_values_are_named(subject: Subject, hub: Hub) -> float:
    """An unknown config key, architecture, model type, activation or rope type is an error with key and value."""
    config, tensors = files(subject, hub)
    refused(config | {"no_such_key": 1}, tensors, "no_such_key")
    refused(config | {"quantization_config": {"quant_method": "no_such_method"}}, tensors, "quantization_config")
    if hub.format == "diffusers":
        refused(config | {"_class_name": "NoSuchModel"}, tensors, "NoSuchModel")
    else:
        refused(config | {"model_type": "no_such_type"}, tensors, "no_such_type")
        refused(config | {"architectures": ["NoSuchModel"]}, tensors, "NoSuchModel")
    for key, value in config.items():
        if isinstance(value, str) and value.removeprefix("gated-") in ACTS and hub_reads(hub, key):
            refused(config | {key: "swoosh"}, tensors, key, "swoosh")
    if "rope_parameters" in config:
        rope = config["rope_parameters"]
        refused(config | {"rope_parameters": rope | {"rope_type": "stretchy"}}, tensors, "stretchy")
        refused(config | {"rope_parameters": rope | {"no_such_factor": 2.0}}, tensors, "no_such_factor")
    for entry in hub.config:
        if entry.why == tables.ONE_VALUE:
            for name in entry.names:
                refused(config | {name: "another value"}, tensors, name)
    return 0.0


def hub_reads(hub: Hub, key: str) -> bool:
    """True if a hyperparameter comes from this key."""
    return any(key in entry.names and entry.fields for entry in hub.config)


@check(3, "files", light=True, later=varied)
def absent_keys_have_their_published_defaults(subject: Subject, hub: Hub) -> float:
    """Loading without a config key, each in turn, is an error, or uses the default of `transformers`."""
    side = oracle(subject, hub)
    config = json.loads((side.folder / "config.json").read_text())
    page, fixed = pages.page(subject.page or ""), implied(hub, config)
    whole = tables.read(hub.config, config, page.config, fixed)[0]
    expect(not rewritten(subject.config, whole), f"the config says {whole}, and the model is {subject.config}")
    for key in config:
        if not hub_reads(hub, key):
            continue
        less = {k: v for k, v in config.items() if k != key}
        try:
            ours = tables.read(hub.config, less, page.config, fixed)[0]
        except ValueError:
            continue
        try:
            default = side.defaults(less)
        except Exception:  # theirs refuses it, with one of several errors
            continue
        theirs = tables.read(hub.config, {key: default.get(key), **less}, page.config, fixed)[0]
        differs = rewritten(ours, theirs)
        expect(not differs, f"without {key!r}, transformers means {[(d, getattr(theirs, d)) for d in differs]}, "
               f"ours {[getattr(ours, d) for d in differs]}")  # fmt: skip
    return 0.0


@check(3, "files", needs=lambda s: None if s.holds(Rotary) else "it has no rotary positions")
def both_forms_of_rope_keys(subject: Subject, hub: Hub) -> float:
    """New `rope_parameters` and older `rope_theta` and `rope_scaling` give one model, the same as in `transformers`."""
    side = oracle(subject, hub)
    config = json.loads((side.folder / "config.json").read_text())
    page, kind = pages.page(subject.page or ""), type(side.theirs.config)
    fixed = hub.architectures[config["architectures"][0]]
    older = {name for entry in hub.config for name in entry.names}
    if "rope_parameters" not in config:
        raise LeftOut("its config has one generation of rotary keys")
    new, near = config.pop("rope_parameters"), {}
    if "full_attention" in new:  # each kind of layer has its own: the older keys have the theta of the other kind
        local = older & {"rope_local_base_freq", "local_rope_theta"}
        new, near = new["full_attention"], dict.fromkeys(local, new["sliding_attention"]["rope_theta"])
    theta = new.pop("rope_theta")
    far = dict.fromkeys(older & {"rope_theta", "global_rope_theta"}, theta)
    scaling = None if new["rope_type"] == "default" else new
    oldest = scaling and {("type" if k == "rope_type" else k): v for k, v in scaling.items()}
    for words in (scaling,) if near else (scaling, oldest):  # with several thetas, transformers does not support `type`
        old = config | far | {"rope_scaling": words} | near
        read_back = tables.read(hub.config, old, page.config, fixed)[0]
        expect(not rewritten(subject.config, read_back), f"the older words {words} are read as {read_back}")
        theirs = kind.from_dict(old).rope_parameters
        for other in near.values():
            expect(
                theirs["sliding_attention"]["rope_theta"] == other, f"transformers reads the older words as {theirs}"
            )
        theirs = theirs.get("full_attention", theirs)
        same = {k: v for k, v in theirs.items() if v is not None} == {**new, "rope_theta": theta} | {
            k: v for k, v in theirs.items() if k not in {*new, "rope_theta"} and v is not None
        }
        expect(same, f"transformers reads the older words as {theirs}, ours wrote {new}")
    return 0.0
