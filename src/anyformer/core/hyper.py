"""Hyperparameters: frozen dataclasses, which can be nested (`text: Text`). Their leaves have dotted names:
`text.dim`."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from anyformer.core.check import fit, kinds_of, shown
from anyformer.core.value import Value, nearest

MOST = 2**24  # the largest allowed size: 16 million tokens, positions, layers


def nested(kind: Any) -> Any:
    """The dataclass of hyperparameters that an annotation names, or None; a `Value` is one leaf."""
    choices = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    classes = (k for k in choices if isinstance(k, type) and dataclasses.is_dataclass(k))
    return next((k for k in classes if not issubclass(k, Value)), None)


@functools.cache
def kinds(cls: Any) -> dict[str, Any]:
    """The dotted name of every leaf and its annotation."""
    out = {}
    for name, kind in kinds_of(cls).items():
        inner = nested(kind)
        out.update({name: kind} if inner is None else {f"{name}.{k}": v for k, v in kinds(inner).items()})
    return out


def leaves(config: Any) -> dict[str, Any]:
    """The dotted name of every leaf and its value: `{"text.dim": 512, …}`."""
    out = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        plain = not dataclasses.is_dataclass(value) or isinstance(value, Value)
        out.update({field.name: value} if plain else {f"{field.name}.{k}": v for k, v in leaves(value).items()})
    return out


def changed(config: Any, changes: Mapping[str, Any], where: str = "") -> Any:
    """The hyperparameters with some of them changed: `{"text.dim": 32}` or `{"text": {"dim": 32}}`.

    Args:
        where: the prefix of the hyperparameter's name in error messages.

    Raises:
        ValueError: for an unknown hyperparameter, with the nearest names, or a value of another type or absurd size.
    """
    known, new = kinds_of(type(config)), {}
    inner: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        within = name in known and nested(known[name]) is not None
        if name not in known or (rest and not within):
            names = list(leaves(config))
            raise ValueError(
                f"{where or type(config).__name__} has no hyperparameter {path!r}; it has {', '.join(names)}"
                f"{nearest(path, names)}"
            )
        if rest or (within and isinstance(value, Mapping)):
            inner.setdefault(name, {}).update({rest: value} if rest else value)
        else:
            new[name] = checked(value, known[name], f"{where}.{name}".lstrip("."), getattr(config, name))
    for name, more in inner.items():
        held = new.get(name, getattr(config, name))
        if held is None:
            raise ValueError(f"{where}.{name} is None, so nothing in it can be changed; set the whole value")
        new[name] = changed(held, more, f"{where}.{name}".lstrip("."))
    return dataclasses.replace(config, **new)


def checked(value: Any, kind: Any, where: str, usual: Any = None) -> Any:
    """A hyperparameter, converted to the type of its annotation.

    Args:
        usual: its default; sizes are 0 or more unless this one is less.

    Raises:
        ValueError: naming `where`, for a value of another type, or a size beyond `MOST` or below 0.
    """
    fitted = fit(value, kind, where)
    least = min([0, *_sizes(usual)])
    for size in _sizes(fitted):
        if not least <= size <= MOST:
            raise ValueError(f"{where}: expected a whole number from {least} to {MOST:,}, got {shown(size)}")
    return fitted


def _sizes(value: Any) -> list[int]:
    """All whole numbers in a value."""
    if isinstance(value, tuple | list):
        return [size for entry in value for size in _sizes(entry)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []
