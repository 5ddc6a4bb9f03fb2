"""The map between published config keys and our hyperparameters: one table, read in both directions, strict in both.

key("hidden_size", "dim")                          a value
key("hidden_act", "act", ACTS)                     a choice: other values are refused
alike("heads", "encoder_heads", "decoder_heads")   two of theirs, one of ours
must("mlp_bias", False)                            another value is refused, by name
quiet("initializer_range", why="…")                changes nothing here; kept and written back
square("image_size", "image")                      a length, or a list of two equal ones
within(…), beside(…)                               a table for a part of the model, see `hub.tables.nested`
Lens(names, fields, get, put)                      everything else

Values are checked against the annotations of our hyperparameters, with the spellings of published files: 1 for 1.0,
12.0 for 12, "1e-5" (as YAML reads it) for 1e-5.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from anyformer.core.check import kinds_of, shown
from anyformer.core.hyper import checked
from anyformer.core.value import nearest
from anyformer.hub.tables.marks import explain

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "missing"})()

NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
ONE_VALUE = "has the only supported value"
ACTS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


@dataclass(frozen=True)
class Same:
    """A default: the value of another hyperparameter."""

    name: str


@dataclass(frozen=True)
class Lens:
    """An entry of the table: keys of theirs for hyperparameters of ours.

    Args:
        names: their keys that it owns. fields: our hyperparameters that it sets.
        get: their config to our values, {field: value}. put: our hyperparameters to their values, {key: value}.
        why: for keys that set nothing, the reason.
        plain: the value of the first name present is the hyperparameter, unchanged.
    """

    names: tuple[str, ...]
    fields: tuple[str, ...]
    get: Callable[[Mapping[str, Any]], dict[str, Any]]
    put: Callable[[Any], dict[str, Any]]
    why: str = ""
    plain: bool = False

    def values(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Our values; any fault of theirs is a ValueError that names them."""
        try:
            return self.get(config)
        except KeyError as error:
            raise ValueError(f"the config lacks {where + str(error.args[0])!r}") from None
        except ValueError as error:
            if not any(name in str(error) for name in self.names):
                raise ValueError(f"{self.words_of(config, where)}{error}") from None
            raise ValueError(f"{where[:-1]}: {error}" if where else str(error)) from None
        except (TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"{self.words_of(config, where)}unexpected type of value ({error})") from None

    def words_of(self, config: Mapping[str, Any], where: str) -> str:
        """The beginning of an error message: the keys present and their values."""
        present = " / ".join(f"{where + n!r} = {shown(config[n])}" for n in self.names if n in config)
        return f"config key {present}: " if present else ""

    def lines(self, config: Mapping[str, Any], where: str) -> list[Line]:
        """The lines of the ledger for the keys present."""
        status = "used" if self.fields else "fixed" if self.why == ONE_VALUE else "ignored"
        detail = ", ".join(self.fields) or self.why
        return [Line(where + name, config[name], status, detail) for name in self.names if name in config]

    def hyperparameters(self) -> set[str]:
        """The dotted names of the hyperparameters that the entry covers."""
        return set(self.fields)

    def words(self, hyper: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
        """Their keys and values; those of `origin`, a config that was read, if they mean the same."""
        original = {name: origin[name] for name in self.names if name in origin}
        return original if origin and _agrees(self, origin, hyper) else self.put(hyper)


def square(theirs: str, ours: str, default: Any = MISSING) -> Lens:
    """Their key is a length in pixels, or a list of height and width, which must be equal."""

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        value = config[theirs] if default is MISSING else config.get(theirs, default)
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if isinstance(value, list | tuple):
            raise ValueError(
                f"config key {theirs!r} is {shown(value)}; this page supports squares only, such as [16, 16]"
            )
        return {ours: value}

    return Lens((theirs,), (ours,), get, lambda hyper: {theirs: getattr(hyper, ours)})


def key(
    theirs: str, ours: str, choice: Mapping[Any, Any] | None = None, default: Any = MISSING, also: tuple[str, ...] = ()
) -> Lens:
    """Their key is our hyperparameter.

    Args:
        choice: their values to ours; another value is an error. The first spelling of theirs is written.
        default: of an absent key; without it an absent key is an error. `Same("heads")`: the value of that
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
                f"config key {theirs!r} is {value!r}; expected one of {', '.join(known)}{nearest(str(value), known)}"
            )
        return {ours: value}

    def put(hyper: Any) -> dict[str, Any]:
        value = getattr(hyper, ours)
        if choice is not None:
            value = next((t for t, o in choice.items() if o == value), MISSING)
            if value is MISSING:
                known = ", ".join(map(repr, choice.values()))
                raise ValueError(
                    f"{ours}={getattr(hyper, ours)!r} cannot be written as {theirs!r}, whose values are {known}"
                )
        return {theirs: value}

    return Lens((theirs, *also), (ours,), get, put, plain=choice is None)


def keys(**names: str) -> tuple[Lens, ...]:
    """Plain values, theirs = ours: `*keys(hidden_size="dim", num_hidden_layers="depth")`."""
    return tuple(key(theirs, ours) for theirs, ours in names.items())


def alike(ours: str, first: str, second: str, absent: bool = False) -> Lens:
    """Two keys of theirs are one hyperparameter, since this page has one value for both; others are refused.

    Args:
        absent: the second can be missing, and then equals the first.
    """
    theirs = (first, second)

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        present = {name: config[name] for name in theirs if config.get(name) is not None}
        for name in theirs[: 1 if absent else 2]:
            if name not in present:
                raise ValueError(f"the config lacks {name!r}")
        if len(set(present.values())) > 1:
            raise ValueError(f"config keys {present} differ; this page needs one value for both")
        return {ours: present[first]}

    return Lens(theirs, (ours,), get, lambda hyper: dict.fromkeys(theirs, getattr(hyper, ours)), plain=True)


def must(theirs: str, value: Any, absent: bool = True) -> Lens:
    """A key of theirs with a single accepted value. With `absent` false, the key must be present."""

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        present = config.get(theirs, value if absent else MISSING)
        if present != value:
            raise ValueError(f"config key {theirs!r} is {present!r}; this page supports only {value!r}")
        return {}

    return Lens((theirs,), (), get, lambda hyper: {theirs: value}, ONE_VALUE)


def quiet(*names: str, why: str) -> Lens:
    """Keys that do not change the model's numbers; kept, and written back unchanged."""
    return Lens(names, (), lambda config: {}, lambda hyper: {}, why)


# the default pad id may exceed a small vocabulary: null is written
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
    where: str = "",
) -> tuple[Any, list[Line]]:
    """Their config as our hyperparameters, and a line of the ledger for each key.

    Args:
        cls: the dataclass of hyperparameters. fixed: hyperparameters that the kind of file implies.
        ignore: keys that are passed over; of a nested config by dotted names.
        where: the path of a nested config, `text_config.`, for errors and the ledger.

    Raises:
        ValueError: naming the key, if one is unknown or missing, or its value has another type, an absurd size, or no
            support in the page.
    """
    kinds, hyper = kinds_of(cls), dict(fixed)
    seen = {name for entry in entries for name in entry.names}
    if strange := sorted({f for entry in entries for f in entry.fields} - kinds.keys()):
        raise ValueError(f"the map sets {strange}, which {cls.__name__} does not have; it has {sorted(kinds)}")
    config, lines = _without(config, ignore, where)
    for entry in entries:  # before any of them computes with another one's value
        _check_words(entry, config, cls, where)
    for entry in entries:
        values = _fitted(entry, config, cls, where)
        hyper.update({k: v for k, v in values.items() if k not in fixed})
    lines += [line for entry in entries for line in entry.lines(config, where)]
    try:
        why = {name: explain(name, config) for name in config if name not in seen}
    except ValueError as error:
        raise ValueError(f"{where[:-1]}: {error}" if where else str(error)) from None
    lines += [Line(where + name, config[name], "ignored", reason) for name, reason in why.items() if reason]
    if unknown := [name for name, reason in why.items() if not reason]:
        names = ", ".join(f"{where}{k}={shown(config[k])}" for k in unknown)
        dotted = tuple(where + k for k in unknown)
        raise ValueError(
            f"unknown config keys: {names}{nearest(unknown[0], sorted(seen))}. If they change no number: "
            f"load(..., ignore={dotted!r}), or --ignore {' '.join(dotted)}"
        )
    return cls(**{k: hyper[v.name] if isinstance(v, Same) else v for k, v in hyper.items()}), lines


def _without(config: Mapping[str, Any], ignore: Collection[str], where: str) -> tuple[dict[str, Any], list[Line]]:
    """The config without these keys, and a line of the ledger for each."""
    rest_of, lines = dict(config), []
    for name in ignore:
        first, _, rest = name.partition(".")
        if name in config:
            lines.append(Line(where + name, rest_of.pop(name), "ignored", "as asked"))
        elif rest and isinstance(rest_of.get(first), Mapping):
            rest_of[first], more = _without(rest_of[first], (rest,), f"{where}{first}.")
            lines += more
    return rest_of, lines


def _check_words(entry: Lens, config: Mapping[str, Any], cls: type, where: str) -> None:
    """Raises ValueError for a value of a plain key that is of another type, and for an absurd size in any key."""
    kinds = [kinds_of(cls)[f] for f in entry.fields]
    sizes = bool(kinds) and all(int in (k, *get_args(k)) and float not in get_args(k) for k in kinds)
    for name in entry.names:
        if sizes and config.get(name) is not None:
            value = _loose(config[name], kinds[0])
            if entry.plain or type(value) is int:
                value = value if entry.plain else abs(value)  # what is computed with can count from the end
                kind, usual = kinds[0] if entry.plain else int, _usual(cls, entry.fields[0])
                checked(value, kind, f"config key {where + name!r}", usual)


def _fitted(entry: Lens, config: Mapping[str, Any], cls: type, where: str) -> dict[str, Any]:
    """Our values of one entry, converted to their annotated types."""
    keys = " / ".join(repr(where + n) for n in entry.names if n in config) or repr(where + entry.names[0])
    values, kinds = entry.values(config, where), kinds_of(cls)
    for name, value in values.items():
        if not isinstance(value, Same):
            values[name] = checked(_loose(value, kinds[name]), kinds[name], f"config key {keys}", _usual(cls, name))
    return values


def _usual(cls: type, name: str) -> Any:
    return next(f.default for f in dataclasses.fields(cls) if f.name == name)


def _loose(value: Any, kind: Any) -> Any:
    """A number from its spellings in published files: 12.0 for 12, and "1e-5" for 1e-5."""
    kinds = (kind, *get_args(kind))
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    if isinstance(value, str) and float in kinds and str not in kinds and NUMBER.fullmatch(value):
        return float(value)
    return value


def write(entries: tuple[Lens, ...], hyper: Any, fixed: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """Our hyperparameters as their config. Keys of `origin` (a config that was read) that mean the same are kept.

    Raises:
        ValueError: naming the hyperparameter, if these files cannot express it.
    """
    covered = {f for entry in entries for f in entry.fields} | set(fixed)
    for f in dataclasses.fields(hyper):
        value, default = getattr(hyper, f.name), f.default
        if f.name not in covered and value != default:
            raise ValueError(f"{f.name}={value!r} cannot be written in this format, which has only {default!r}")
        if f.name in fixed and value != fixed[f.name]:
            raise ValueError(f"{f.name}={value!r} contradicts {fixed[f.name]!r}")
    claimed = {name for entry in entries for name in entry.names}
    out = {name: value for name, value in origin.items() if name not in claimed}
    for entry in entries:
        out.update(entry.words(hyper, origin))
    return {name: value for name, value in out.items() if name in claimed or _still(name, out)}


def _still(name: str, config: Mapping[str, Any]) -> bool:
    """True if a kept key still changes nothing; false for a second name once the first has another value."""
    try:
        return explain(name, config) is not None
    except ValueError:
        return False


def _agrees(entry: Lens, origin: Mapping[str, Any], hyper: Any) -> bool:
    """True if these keys of theirs still mean our hyperparameters."""
    if not entry.fields:
        return True
    values = _fitted(entry, origin, type(hyper), "")
    return all(getattr(hyper, k) == (getattr(hyper, v.name) if isinstance(v, Same) else v) for k, v in values.items())


def hyperparameters(entries: tuple[Lens, ...]) -> set[str]:
    """The dotted names of all hyperparameters that a table covers."""
    return {name for entry in entries for name in entry.hyperparameters()}
