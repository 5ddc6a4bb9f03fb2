"""The shape of a model that a config describes: built on the meta device, within bounds, with errors that name the key.

A config is a claim, too ("a billion layers"). It is checked against the weights beside it before time is spent on it:
each part of a model has a tensor or two of its own, so a file of 30 tensors describes no model of a million parts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from anyformer.core import pages
from anyformer.core.check import shown
from anyformer.core.hyper import changed, leaves
from anyformer.core.recipe import Recipe, at_most
from anyformer.hub.formats.safetensors import TensorFile
from anyformer.hub.tables.config import Lens
from anyformer.hub.tables.nested import Beside, Within
from anyformer.hub.tables.weights import Hub

ALONE = 10_000  # the most parts of a model without weights: 1,000 layers
SEARCH = 0.5  # seconds of processor time for the search for the key at fault
FAULTS = (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError, AttributeError, AssertionError)


def parts(file: TensorFile | None) -> int:
    """The most parts that the model in a file can have: some for each tensor, and more where experts share one."""
    if file is None:
        return ALONE
    size = sum(file.dtype(name).itemsize * math.prod(file.shape(name)) for name in file.names())
    return 200 + 8 * len(file.names()) + size // 256


def empty(page: pages.Page, hub: Hub, hyper: Any, file: TensorFile | None = None) -> Any:
    """The model with these hyperparameters on the meta device.

    Args:
        file: the weights that it is for.

    Raises:
        ValueError: naming the config keys at fault, if there is no such model or it has more parts than the file can
            hold.
    """
    try:
        return _built(page, hyper, parts(file))
    except FAULTS as error:
        where = ", ".join(_culprits(page, hub, hyper, parts(file)))
        what = str(error) if isinstance(error, ValueError) else f"there is no such model ({error})"
        raise ValueError(f"{where}: {what}" if where else what) from error


def stored(data: Any, source: object, file: TensorFile | None = None) -> Any:
    """The model of a recipe in config.json, on the meta device.

    Raises:
        ValueError: naming the file, if there is no such model or it has more parts than the file can hold.
    """
    try:
        with at_most(parts(file)):
            return pages.empty(Recipe.from_json(data))
    except FAULTS as error:
        raise ValueError(f"{source}: the recipe cannot be built: {error}") from error


def _built(page: pages.Page, hyper: Any, count: int) -> Any:
    _check_depths(page, hyper, count)
    with at_most(count):
        return pages.empty(page.recipe(hyper))


def _check_depths(page: pages.Page, hyper: Any, count: int) -> None:
    """Raises ValueError for a number of layers beyond `count`, before a list of so many is made.

    A large number is a number of layers if adding 1 to it changes the number of parts in the recipe.
    """
    tiny = leaves(page.at("tiny"))
    large = {n: tiny[n] for n, v in leaves(hyper).items() if _size(v) > count and type(tiny.get(n)) is int}
    try:
        small = changed(hyper, large)
        plain = _length(page.recipe(small))
    except FAULTS:
        return  # not these alone: building the model raises the error
    for name, value in large.items():
        try:
            more = _length(page.recipe(changed(small, {name: value + 1})))
        except FAULTS:
            continue
        if more != plain:
            raise ValueError(f"{name}: the weights beside it hold at most {count:,} layers")


def _length(recipe: Recipe[Any]) -> int:
    return sum(len(value) for _, value in recipe.walk() if isinstance(value, tuple))


def _culprits(page: pages.Page, hub: Hub, hyper: Any, count: int) -> list[str]:
    """The hyperparameters (with their keys) that alone prevent building: the model builds with the value that another
    model of the page has."""
    keys, culprits = _keys(hub.config), {}
    usuals = [leaves(c) for c in (page.at("tiny"), *(page.at("tiny", **case) for case in page.module.CASES.values()))]
    end = time.thread_time() + SEARCH
    for name, value in sorted(leaves(hyper).items(), key=lambda leaf: -_size(leaf[1])):  # absurd sizes first
        for other in dict.fromkeys(usual[name] for usual in usuals if usual.get(name, value) != value):
            if name not in culprits and time.thread_time() < end and _heals(page, hyper, name, other, count):
                culprits[name] = f"config key {keys[name]!r} ({name}={shown(value)})" if name in keys else name
    return list(culprits.values())


def _size(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _heals(page: pages.Page, hyper: Any, name: str, value: Any, count: int) -> bool:
    """True if the model can be built with another value of one hyperparameter."""
    try:
        _built(page, changed(hyper, {name: value}), count)
    except FAULTS:
        return False
    return True


def _keys(entries: tuple[Lens, ...]) -> Mapping[str, str]:
    """The dotted name of each hyperparameter and its dotted key."""
    out: dict[str, str] = {}
    for entry in entries:
        if isinstance(entry, Within):
            inner = _keys(entry.tables())
            level = "" if isinstance(entry, Beside) else f"{entry.names[0]}."
            out.update({f"{entry.fields[0]}.{k}": f"{level}{v}" for k, v in inner.items()})
        else:
            out.update(dict.fromkeys(entry.fields, " / ".join(entry.names)))
    return out
