"""Checks of values against annotations: the options of parts, the fields of values, the hyperparameters of pages.

A whole number is accepted for a float and converted (1 becomes 1.0), and a list for a tuple. A bool is no number, a
string is none, and no number is infinite or NaN.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

LARGEST = 2**63 - 1  # the largest whole number: the size of a tensor
FINITE = 3.4e38  # the largest float: float32
UNFIT: Any = type("Unfit", (), {"__repr__": lambda self: "unfit"})()

Reader = Callable[[Any], Any]  # converts a value to its annotation's type, or returns UNFIT


class Frozen(dict[Any, Any]):
    """An immutable dictionary; equal to another one with the same entries in the same order."""

    def _refuse(self, *args: Any, **options: Any) -> Any:
        raise TypeError("this dictionary is immutable; make a new one: {**old, 'name': value}")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and list(self.items()) == list(other.items())

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __reduce__(self) -> Any:
        return Frozen, (dict(self),)


def fit(value: Any, kind: Any, where: str) -> Any:
    """`value`, converted to the type of the annotation `kind`.

    Raises:
        ValueError: naming `where`, the expected type and the value.
    """
    fitted = _reader(kind)(value)
    if fitted is UNFIT:
        step, part, wrong = _culprit(value, kind)
        single = not isinstance(wrong, list | tuple) and _reader(part)([wrong]) is not UNFIT
        hint = f"; write [{shown(wrong)}]" if single else ""
        raise ValueError(f"{where}{step}: expected {describe(part)}, got {shown(wrong)}{hint}")
    return fitted


def kinds_of(owner: Any) -> Mapping[str, Any]:
    """The annotations of a function's parameters or of a dataclass's fields; Any for a name that does not exist at run
    time."""
    return _kinds_of(owner)


@functools.cache
def _kinds_of(owner: Any) -> Mapping[str, Any]:
    if not isinstance(owner, type):
        return _evaluated(owner.__annotations__, owner.__globals__)
    names, annotations = {f.name for f in dataclasses.fields(owner)}, {}
    for cls in reversed(owner.__mro__):
        own = {k: v for k, v in inspect.get_annotations(cls).items() if k in names}
        annotations.update(_evaluated(own, vars(sys.modules[cls.__module__])))
    return annotations


def _evaluated(written: Mapping[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for name, kind in written.items():
        try:
            out.update(typing.get_type_hints(types.SimpleNamespace(__annotations__={name: kind}), names))
        except (NameError, AttributeError):
            out[name] = Any
    return out


@functools.cache
def _reader(kind: Any) -> Reader:
    """The cached function that checks a value against one annotation."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if origin in (Union, types.UnionType):
        return _any_of([_reader(k) for k in inner])
    if origin is Literal:
        return lambda value: value if any(type(value) is type(a) and value == a for a in inner) else UNFIT
    if hasattr(origin or kind, "fits"):  # a class with a check of its own: `Recipe[Mixer]`
        return lambda value: value if (origin or kind).fits(value, inner) else UNFIT
    if (origin or kind) in (list, tuple, Sequence, Iterable):
        return _many(kind, inner)
    if (origin or kind) in (dict, Mapping):
        return _named(_reader(inner[1] if inner else Any))
    if isinstance(kind, type):
        return lambda value: value if isinstance(value, kind) else UNFIT
    return lambda value: value


def _whole(value: Any) -> Any:
    fits = isinstance(value, int) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
    return int(value) if fits else UNFIT


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -FINITE <= value <= FINITE:
        return UNFIT
    return float(value) + 0.0  # no -0.0, which equals 0.0 but prints otherwise


_PLAIN: dict[Any, Reader] = {
    int: _whole,
    float: _number,
    bool: lambda value: value if isinstance(value, bool) else UNFIT,
    str: lambda value: value if isinstance(value, str) else UNFIT,
    type(None): lambda value: value if value is None else UNFIT,
    Any: lambda value: value,
}


def _any_of(readers: list[Reader]) -> Reader:
    def read(value: Any) -> Any:
        for reader in readers:
            if (fitted := reader(value)) is not UNFIT:
                return fitted
        return UNFIT

    return read


def _many(kind: Any, inner: tuple[Any, ...]) -> Reader:
    """The reader of lists and tuples: `tuple[int, str]` has two entries, all others any number of one type."""
    if get_origin(kind) is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
        each = [_reader(k) for k in inner]

        def read_these(value: Any) -> Any:
            if not isinstance(value, list | tuple) or len(value) != len(each):
                return UNFIT
            fitted = tuple(reader(v) for reader, v in zip(each, value, strict=True))
            return UNFIT if any(v is UNFIT for v in fitted) else fitted

        return read_these
    reader = _reader(inner[0] if inner else Any)

    def read(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return UNFIT
        fitted = tuple(map(reader, value))
        return UNFIT if any(v is UNFIT for v in fitted) else fitted

    return read


def _named(reader: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            return UNFIT
        fitted = {k: reader(v) for k, v in value.items()}
        return UNFIT if any(v is UNFIT for v in fitted.values()) else Frozen(fitted)

    return read


def _culprit(value: Any, kind: Any) -> tuple[str, Any, Any]:
    """The innermost entry that does not fit: its path below `value`, its annotation, its value."""
    choices = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for choice in choices:
        origin, inner = get_origin(choice), get_args(choice)
        if origin in (dict, Mapping) and isinstance(value, Mapping):
            entries, kinds = list(value.items()), [inner[1]] * len(value)
        elif origin in (list, tuple, Sequence, Iterable) and isinstance(value, list | tuple):
            single = origin is not tuple or inner[-1] is Ellipsis
            entries, kinds = list(enumerate(value)), [inner[0]] * len(value) if single else list(inner)
        else:
            continue
        for (name, entry), wanted in zip(entries, kinds, strict=False):
            if _reader(wanted)(entry) is UNFIT:
                step, part, wrong = _culprit(entry, wanted)
                return f".{name}{step}", part, wrong
    return "", kind, value


def describe(kind: Any) -> str:
    """An annotation in the words of an error message."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in _WORDS:
        return _WORDS[kind]
    if origin in (Union, types.UnionType):
        return " or ".join(describe(k) for k in inner)
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if hasattr(origin or kind, "fits"):
        return (origin or kind).wanted(inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)} ({', '.join(describe(k) for k in inner)})"
    if (origin or kind) in (list, tuple, Sequence, Iterable):
        return f"a list, each entry {describe(inner[0])}" if inner else "a list"
    if (origin or kind) in (dict, Mapping):
        return f"a dictionary of names, each value {describe(inner[1])}" if inner else "a dictionary of names"
    return f"a {getattr(kind, '__name__', kind)}"


_WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a text",
    type(None): "None",
    Any: "anything",
}


def shown(value: Any) -> str:
    """A value as an error message shows it: short, with its type where that is not obvious."""
    if isinstance(value, type):
        return f"the class {value.__name__}" + (f"; write {value.__name__}.of(…)" if hasattr(value, "of") else "")
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        return "a whole number beyond 63 bits"  # Python refuses to print some of them
    text = reprlib.repr(value) if isinstance(value, str | list | tuple | dict) else repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
