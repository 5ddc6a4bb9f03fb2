"""The differences between two models, from their recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.recipe import Recipe

NOTHING = "-"  # stands for an option that one of the two lacks


@dataclass(frozen=True)
class Difference:
    """One difference of two recipes. `path`: of the option; a run of equal layers is one, `blocks.0-11`.
    `one`, `other`: the values, as text. `size`: True if both are numbers: a difference of size alone."""

    path: str
    one: str
    other: str
    size: bool


def differences(one: Recipe, other: Recipe) -> list[Difference]:
    """All differences of two recipes, in the order of the first. Parts of one class are compared option by option;
    different ones are shown beside each other, as text."""
    differing = []
    if one.part is not other.part:
        differing.append(Difference("model", one.part.__name__, other.part.__name__, False))
    return differing + _options("", one.options, other.options)


def _options(path: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    names = [*one, *(n for n in other if n not in one)]
    prefix = f"{path}." if path else ""
    return [d for n in names for d in _values(prefix + n, one.get(n, NOTHING), other.get(n, NOTHING))]


def _values(path: str, one: Any, other: Any) -> list[Difference]:
    if one == other:
        return []
    if isinstance(one, Recipe) and isinstance(other, Recipe) and one.part is other.part:
        return _options(path, one.options, other.options)
    if isinstance(one, dict) and isinstance(other, dict):
        return _options(path, one, other)
    if all(isinstance(v, tuple) and v and isinstance(v[0], Recipe) for v in (one, other)):
        return _lists(path, one, other)
    sizes = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))
    here, there = (v if v is NOTHING else repr(v) for v in (one, other))
    return [Difference(path, here, there, sizes)]


def _lists(path: str, one: tuple[Any, ...], other: tuple[Any, ...]) -> list[Difference]:
    """The differences of two lists of layers, pair by pair; the end of a longer list is compared with the last layer of
    the other."""
    differing = []
    if len(one) != len(other):
        differing.append(Difference(path, f"{len(one)} of them", f"{len(other)} of them", True))
    pairs = list(zip(*(side + side[-1:] * (len(one) + len(other) - len(side)) for side in (one, other)), strict=True))
    count, start = max(len(one), len(other)), 0
    for i in range(1, count + 1):
        if i == count or pairs[i] != pairs[start]:
            where = f"{path}.{start}" if i == start + 1 else f"{path}.{start}-{i - 1}"
            differing += _values(where, *pairs[start])
            start = i
    return differing
