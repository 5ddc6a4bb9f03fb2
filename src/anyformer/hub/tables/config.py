"""The map between published config keys and our hyperparameters: one table, read in both directions, strict in both.

key("hidden_size", "dim")                          a value
key("hidden_act", "act", ACTS)                     a choice: other values are refused
alike("heads", "encoder_heads", "decoder_heads")   two of theirs, one of ours
must("mlp_bias", False)                            another value is refused, by name
quiet("initializer_range", why="…")                changes nothing here; kept and written back
Lens(names, fields, get, put)                      everything else
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.recipe import nearest
from anyformer.hub.tables.marks import explain

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "missing"})()

ONE_VALUE = "has the one value that this page can do"
ACTS = {
    "gelu": "gelu", "gelu_python": "gelu", "relu": "relu", "relu2": "relu2", "silu": "silu", "swish": "silu",
    "tanh": "tanh", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip


@dataclass(frozen=True)
class Same:
    """The default of a key: the value of another hyperparameter."""

    name: str


@dataclass(frozen=True)
class Lens:
    """An entry of the table: some keys of theirs are some of our hyperparameters.

    Args:
        names: their keys that it owns. fields: our hyperparameters that it sets.
        get: their config to our values, {field: value}. put: our hyperparameters to their values, {key: value}.
        why: for keys that set nothing, the reason.
    """

    names: tuple[str, ...]
    fields: tuple[str, ...]
    get: Callable[[Mapping[str, Any]], dict[str, Any]]
    put: Callable[[Any], dict[str, Any]]
    why: str = ""


def key(
    theirs: str, ours: str, choice: Mapping[Any, Any] | None = None, default: Any = MISSING, also: tuple[str, ...] = ()
) -> Lens:
    """Their key is our hyperparameter.

    Args:
        choice: their values to ours; another value is an error. The first spelling of theirs is written.
        default: what an absent key means; without it an absent key is an error. `Same("heads")`: the value of that
            hyperparameter.
        also: older names of theirs, accepted when reading.
    """

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        value = next((config[n] for n in (theirs, *also) if config.get(n) is not None), default)
        if value is MISSING:
            raise ValueError(f"the config lacks {theirs!r}")
        if choice is not None and value in choice:
            value = choice[value]
        elif choice is not None and value is not default:
            known = [str(c) for c in choice]
            raise ValueError(
                f"config key {theirs!r} is {value!r}; known are {', '.join(known)}{nearest(str(value), known)}"
            )
        return {ours: value}

    def put(hyper: Any) -> dict[str, Any]:
        value = getattr(hyper, ours)
        if choice is not None:
            value = next((t for t, o in choice.items() if o == value), MISSING)
            if value is MISSING:
                known = ", ".join(map(repr, choice.values()))
                raise ValueError(
                    f"{ours}={getattr(hyper, ours)!r} cannot be written as {theirs!r}, which knows {known}"
                )
        return {theirs: value}

    return Lens((theirs, *also), (ours,), get, put)


def keys(**names: str) -> tuple[Lens, ...]:
    """Plain values, theirs = ours: `*keys(hidden_size="dim", num_hidden_layers="depth")`."""
    return tuple(key(theirs, ours) for theirs, ours in names.items())


def alike(ours: str, first: str, second: str, absent: bool = False) -> Lens:
    """Two keys of theirs are one hyperparameter, since this page has one value for both; others are refused.

    Args:
        absent: the second may be missing, and is then as the first.
    """
    theirs = (first, second)

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        said = {name: config[name] for name in theirs if config.get(name) is not None}
        for name in theirs[: 1 if absent else 2]:
            if name not in said:
                raise ValueError(f"the config lacks {name!r}")
        if len(set(said.values())) > 1:
            raise ValueError(f"config keys {said} differ, and this page has one value for both")
        return {ours: said[first]}

    return Lens(theirs, (ours,), get, lambda hyper: dict.fromkeys(theirs, getattr(hyper, ours)))


def must(theirs: str, value: Any, absent: bool = True) -> Lens:
    """Their key may have this value only. With `absent` false, the key must be there."""

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        found = config.get(theirs, value if absent else MISSING)
        if found != value:
            raise ValueError(f"config key {theirs!r} is {found!r}; this page can do {value!r} only")
        return {}

    return Lens((theirs,), (), get, lambda hyper: {theirs: value}, ONE_VALUE)


def quiet(*names: str, why: str) -> Lens:
    """Keys that change nothing in what the model computes; kept, and written back as they were."""
    return Lens(names, (), lambda config: {}, lambda hyper: {}, why)


# where the id that an absent key means lies outside a small vocabulary, we write that there is none
NO_PAD = Lens(("pad_token_id",), (), lambda config: {}, lambda hyper: {"pad_token_id": None}, "for the tokenizer")


def _labels(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"classes": len(config["id2label"]) if config.get("id2label") else config.get("num_labels") or 2}


def _write_labels(hyper: Any) -> dict[str, Any]:
    names = {str(i): f"LABEL_{i}" for i in range(hyper.classes)}
    return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}


CLASSES = Lens(("id2label", "label2id", "num_labels"), ("classes",), _labels, _write_labels)


@dataclass(frozen=True)
class Line:
    """One line of the ledger for a config key."""

    key: str
    value: Any
    status: str  # "used", "fixed", "ignored"
    detail: str


def read(
    entries: tuple[Lens, ...],
    config: Mapping[str, Any],
    cls: type,
    fixed: Mapping[str, Any],
    ignore: Collection[str] = (),
) -> tuple[Any, list[Line]]:
    """Their config as our hyperparameters, and what became of each key.

    Args:
        cls: the dataclass of hyperparameters. fixed: hyperparameters that the kind of file implies.
        ignore: keys that are read as if they were not there.

    Raises:
        ValueError: naming the key, if one is unknown, missing, or has a value that the page cannot do.
    """
    lines = [Line(name, config[name], "ignored", "as asked") for name in ignore if name in config]
    config = {name: value for name, value in config.items() if name not in ignore}
    found, seen = dict(fixed), set()
    for entry in entries:
        values = entry.get(config)
        found.update({k: v for k, v in values.items() if k not in fixed})
        for name in entry.names:
            seen.add(name)
            if name in config:
                status = "used" if entry.fields else "fixed" if entry.why == ONE_VALUE else "ignored"
                lines.append(Line(name, config[name], status, ", ".join(entry.fields) or entry.why))
    why = {name: explain(name, config) for name in config if name not in seen}
    lines += [Line(name, config[name], "ignored", reason) for name, reason in why.items() if reason]
    if unknown := [name for name, reason in why.items() if not reason]:
        names = ", ".join(f"{k}={config[k]!r}" for k in unknown)
        raise ValueError(
            f"config keys that nobody reads: {names}{nearest(unknown[0], sorted(seen))}. If they change no number: "
            f"load(..., ignore={tuple(unknown)!r}), or --ignore {' '.join(unknown)}"
        )
    fields = {f.name for f in dataclasses.fields(cls)}
    if strange := sorted(found.keys() - fields):
        raise ValueError(f"the map sets {strange}, which {cls.__name__} does not have; it has {sorted(fields)}")
    return cls(**{k: found[v.name] if isinstance(v, Same) else v for k, v in found.items()}), lines


def write(entries: tuple[Lens, ...], hyper: Any, fixed: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """Our hyperparameters as their config. Where `origin` (a config that was read) says the same, its words are kept.

    Raises:
        ValueError: naming the hyperparameter, if these files cannot say it.
    """
    covered = {f for entry in entries for f in entry.fields} | set(fixed)
    for f in dataclasses.fields(hyper):
        value, default = getattr(hyper, f.name), f.default
        if f.name not in covered and value != default:
            raise ValueError(f"{f.name}={value!r} cannot be written in this format, which knows only {default!r}")
        if f.name in fixed and value != fixed[f.name]:
            raise ValueError(f"{f.name}={value!r} does not go with {fixed[f.name]!r}")
    claimed = {name for entry in entries for name in entry.names}
    out = {name: value for name, value in origin.items() if name not in claimed}
    for entry in entries:
        kept = {name: origin[name] for name in entry.names if name in origin}
        out.update(kept if origin and _says(entry, origin, hyper) else entry.put(hyper))
    return {name: value for name, value in out.items() if name in claimed or _still(name, out)}


def _still(name: str, config: Mapping[str, Any]) -> bool:
    """Does a key that was kept still change nothing? A second name does not, once the first one has another value."""
    try:
        return explain(name, config) is not None
    except ValueError:
        return False


def _says(entry: Lens, origin: Mapping[str, Any], hyper: Any) -> bool:
    """Do these words of theirs still mean our hyperparameters?"""
    if not entry.fields:
        return True
    values = entry.get(origin)
    return all(getattr(hyper, k) == (getattr(hyper, v.name) if isinstance(v, Same) else v) for k, v in values.items())
