"""Faults, planted in the library by test_mutations.py: how one is written down."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Fault:
    """A fault of the library, and the check that must find it.

    Args:
        check: its name.
        on: the subject or page on which the check runs; "" for a check of parts.
        says: a regular expression that the check's own message matches: another error does not count as found.
        plant: puts the fault into the library.
    """

    check: str
    on: str
    says: str
    plant: Plant

    def __str__(self) -> str:
        return f"{self.check.replace(' ', '_')}-{self.plant.__name__}"


FAULTS: list[Fault] = []


def fault(*checks: str, on: str, says: str) -> Callable[[Plant], Plant]:
    """The function plants a fault which these checks must find in that subject."""

    def enter(plant: Plant) -> Plant:
        FAULTS.extend(Fault(check, on, says, plant) for check in checks)
        return plant

    return enter


def around(patch: pytest.MonkeyPatch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Puts `change(original, *arguments)` in the place of a function."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def changed(*args: Any, **options: Any) -> Any:
        return change(original, *args, **options)

    patch.setattr(owner, name, changed)


def module(path: str) -> Any:
    __import__(path)
    return sys.modules[path]
