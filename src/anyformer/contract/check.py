"""A check: one sentence of the contract as a function, and over what it runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from anyformer.contract.subjects import Subject, compositions, hubs, subjects
from anyformer.core import pages

CHECKS: list[Check] = []


@dataclass(frozen=True)
class Check:
    """One sentence of the contract.

    Args:
        item: its number in the contract.
        name: what the table calls it.
        run: takes a case, and `rng` if it is a property; returns the largest difference; raises when broken.
        over: what a case is: "page" (a name), "model" (a Subject), "files" (a Subject and a hub), "parts" (nothing).
        examples: of a property, how many are drawn; 0 = no property.
        needs: why it says nothing about a subject, or None.
        light: is run on automatic variations of one hyperparameter, too.
        checkpoint: is run on a user's checkpoint, too.
        slow: takes more than ten seconds.
        oracle: needs `transformers`.
    """

    item: int
    name: str
    run: Callable[..., float]
    over: str
    examples: int = 0
    needs: Callable[[Subject], str | None] = lambda subject: None
    light: bool = False
    checkpoint: bool = False
    slow: bool = False
    oracle: bool = False

    def __str__(self) -> str:
        return self.name.replace(" ", "_")

    def cases(self, page: str | None) -> Iterator[tuple[Any, ...]]:
        """The arguments of `run` for every case of a page; for the compositions if `page` is None."""
        if self.over == "parts":
            if page is None:
                yield ()
        elif self.over == "page":
            if page is not None:
                yield (page,)
        else:
            for subject in compositions() if page is None else subjects(page):
                if self.needs(subject) is None and (self.light or not subject.light):
                    yield from ([(subject, hub) for hub in hubs(subject)] if self.over == "files" else [(subject,)])

    def once(self, case: tuple[Any, ...], most: int = 100) -> float:
        """Runs the check on one case, a property on `most` random examples at most, without hypothesis."""
        if not self.examples:
            return self.run(*case)
        return max(self.run(*case, rng=random.Random(i)) for i in range(min(most, self.examples)))


def check(
    item: int,
    over: str,
    *,
    examples: int = 0,
    needs: Callable[[Subject], str | None] = lambda subject: None,
    light: bool = False,
    checkpoint: bool = False,
    slow: bool = False,
    oracle: bool = False,
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Enters a function into the contract; its name is the name of the check."""

    def enter(function: Callable[..., float]) -> Callable[..., float]:
        name = function.__name__.replace("_", " ")
        CHECKS.append(
            Check(item, name, function, over, examples, needs, light, checkpoint, slow, oracle or over == "files")
        )
        return function

    return enter


def cases() -> list[tuple[Check, tuple[Any, ...]]]:
    """Every check with every case: all pages, the compositions, the parts."""
    return [(c, case) for page in (*pages.names(), None) for c in CHECKS for case in c.cases(page)]


def decodes(subject: Subject) -> str | None:
    """For checks of decoders."""
    return None if subject.decodes else "sees both directions: no token is before another one"


def pads(subject: Subject) -> str | None:
    """For checks of padding."""
    return None if subject.reads_text else "an image has no padding"
