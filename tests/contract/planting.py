"""Faults, planted by test_teeth.py: how one is written down."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest

Plant = Callable[[pytest.MonkeyPatch], None]
TEETH: dict[str, tuple[str, Plant]] = {}  # the check's name: the subject or page, and the fault


def fault(*checks: str, on: str) -> Callable[[Plant], Plant]:
    """The function plants a fault which these checks must find in that subject."""

    def enter(plant: Plant) -> Plant:
        TEETH.update({name: (on, plant) for name in checks})
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
