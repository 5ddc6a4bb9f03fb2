"""Choices of a page by the value of a hyperparameter: above all the heads of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from anyformer.core.part import check_option
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Pool

T = TypeVar("T")


class Top(NamedTuple):
    """The end of an encoder."""

    heads: Mapping[str, Recipe[Head]]
    pool: Recipe[Pool] | None = None


def choose(page: str, option: str, value: str, known: Mapping[str, T]) -> T:
    """The entry of `value` in a page's table, as in `choose("gpt", "task", c.task, {"lm": head, "none": None})`.

    Raises:
        ValueError: for an unknown value, naming the page, the option and its values.
    """
    check_option(page, option, value, tuple(known))
    return known[value]
