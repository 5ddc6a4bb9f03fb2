"""A check: one sentence of the contract as a function, and its cases."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from anyformer.contract.subjects import Subject, apart, compositions, hubs, subjects
from anyformer.core import pages

CHECKS: list[Check] = []


ROLES: dict[str, Callable[[], list[Subject]]] = {}  # the subjects of "role" and "option"; `roles` fills it


@dataclass(frozen=True)
class Check:
    """One sentence of the contract.

    Args:
        item: its number in the contract.
        name: in the table.
        run: takes a case, and `rng` if it is a property; returns the largest difference; raises when broken.
        over: the kind of a case: "page" (a name), "model" (a Subject), "files" (a Subject and a hub), "parts"
            (nothing), "role" and "option" (a Subject with one mask or mixer in one role).
        examples: the number of random examples of a property; 0 = no property.
        needs: the reason why it does not apply to a subject, or None.
        light: also runs on automatic variations of one hyperparameter.
        checkpoint: also runs on a user's checkpoint.
        slow: a case takes more than ten seconds.
        later: True for cases that `make test` leaves to `make test-all`: other subjects prove nearly the same.
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
    later: Callable[[Subject], bool] = lambda subject: False
    oracle: bool = False

    def __str__(self) -> str:
        return self.name.replace(" ", "_")

    def cases(self, page: str | None) -> Iterator[tuple[Any, ...]]:
        """The arguments of `run` for every case of a page; for the compositions if `page` is None."""
        if self.over == "parts":
            if page is None:
                yield ()
        elif self.over in ("role", "option"):
            if page is None:
                yield from ((subject,) for subject in ROLES[self.over]())
        elif self.over == "page":
            if page is not None:
                yield (page,)
        else:
            for subject in compositions() if page is None else subjects(page):
                if (self.light or not subject.light) and self.needs(subject) is None:
                    yield from ([(subject, hub) for hub in hubs(subject)] if self.over == "files" else [(subject,)])

    def waits(self, case: tuple[Any, ...]) -> bool:
        """True if this case is left to `make test-all`."""
        return self.slow or (self.over not in ("parts", "page") and self.later(case[0]))

    def omitted(self, page: str | None) -> Iterator[tuple[str, str]]:
        """The subjects of a page, or the compositions, to which the check does not apply: (subject, reason)."""
        if self.over not in ("model", "files"):
            return
        for subject in compositions() if page is None else subjects(page):
            if subject.light and not self.light:
                continue  # a variation of one hyperparameter: for the numbers alone, which is no omission
            if why := self.needs(subject):
                yield subject.name, why
            elif self.over == "files" and not hubs(subject):
                yield subject.name, no_file(subject)

    def once(self, case: tuple[Any, ...], most: int = 100) -> float:
        """Runs the check on one case, a property on `most` random examples at most; an error names its seed.

        Raises:
            LeftOut: if it found nothing to check, in no example.
        """
        if not self.examples:
            return self.run(*case)
        differences, why = [], ""
        for i in range(min(most, self.examples)):
            try:
                differences.append(self.run(*case, rng=random.Random(i)))
            except LeftOut as reason:
                why = str(reason)
            except Exception as error:
                error.add_note(f"drawn with rng=random.Random({i})")
                raise
        if not differences:
            raise LeftOut(why)
        return max(differences)


class LeftOut(Exception):
    """The signal that a case has nothing to check, with the reason."""


def no_file(subject: Subject) -> str:
    """The reason why a subject has no counterpart in `transformers`."""
    if subject.page is None:
        return "a composition: transformers has no such model"
    if apart(subject.page):
        return "transformers lacks the page; its ORACLE states the comparison instead"
    return "no published file can express these hyperparameters"


def check(
    item: int,
    over: str,
    *,
    examples: int = 0,
    needs: Callable[[Subject], str | None] = lambda subject: None,
    light: bool = False,
    checkpoint: bool = False,
    slow: bool = False,
    later: Callable[[Subject], bool] = lambda subject: False,
    oracle: bool = False,
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Enters a function into the contract; its name is the name of the check."""

    def enter(function: Callable[..., float]) -> Callable[..., float]:
        name = function.__name__.replace("_", " ")
        theirs = oracle or over == "files"
        CHECKS.append(Check(item, name, function, over, examples, needs, light, checkpoint, slow, later, theirs))
        return function

    return enter


def cases() -> list[tuple[Check, tuple[Any, ...]]]:
    """Every check with every case: all pages, the compositions, the parts."""
    return [(c, case) for page in (*pages.names(), None) for c in CHECKS for case in c.cases(page)]


def omissions() -> list[tuple[str, str, str]]:
    """All omissions of the contract: (check, subject, reason)."""
    every = (*pages.names(), None)
    return [(c.name, subject, why) for page in every for c in CHECKS for subject, why in c.omitted(page)]


def varied(subject: Subject) -> bool:
    """True for a variation of one hyperparameter; parity and the round trip prove it in `make test`."""
    return subject.light


def decodes(subject: Subject) -> str | None:
    """The reason why checks of decoders do not apply, or None."""
    return None if subject.decodes else "it is bidirectional: no token precedes another one"


def writes(subject: Subject) -> str | None:
    """The reason why checks of generation do not apply, or None."""
    if not subject.writes and subject.recipe.part.generates and subject.has_source:
        passages = "it reads passages beside its question: tests/generate/test_retrieving.py"
        return passages if subject.reads_text else "its source is no text: tests/generate/test_transcribing.py"
    return None if subject.writes else "it does not generate text"


def pads(subject: Subject) -> str | None:
    """The reason why checks of padding do not apply, or None."""
    return None if any(e.mask for e in subject.outline.entrances()) else "an image has no padding"
