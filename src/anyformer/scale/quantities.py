"""Numbers as people write them: 7b, 1e21, 64xh100, 5days."""

from __future__ import annotations

import re
from typing import Any

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
TIMES = {"h": 1 / 24, "hour": 1 / 24, "d": 1.0, "day": 1.0, "w": 7.0, "week": 7.0}
NUMBER = r"[+-]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[+-]?\d+)?"


def quantity(text: Any) -> float:
    """7b is 7e9; k, m, b (or g) and t are thousands to trillions.

    Raises:
        ValueError: for anything else.
    """
    found = re.fullmatch(rf"({NUMBER}|[+-]?(?:nan|inf|infinity))\s*([kmbgt]?)", str(text).strip().lower())
    if found is None:
        raise ValueError(f"expected a number such as 125m, 7b or 1e21, got {text!r}")
    return float(re.sub("[_,]", "", found[1])) * UNITS[found[2]]


def positive(name: str, text: Any) -> float:
    """A quantity above 0.

    Raises:
        ValueError: with the name, for anything else.
    """
    try:
        value = quantity(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a finite number above 0, got {text}")
    return value


def days(text: str) -> float:
    """5days, 36h or 2weeks in days.

    Raises:
        ValueError: for anything else, or no time at all.
    """
    found = re.fullmatch(rf"({NUMBER})\s*(h|hour|d|day|w|week)s?", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"budget: expected a time such as 5days, 36h or 2weeks, got {text!r}")
    return float(found[1]) * TIMES[found[2]]


def short(value: float) -> str:
    """A number for people: 6.7 B, 140 B, 3.15e+23."""
    for unit, name in ((1e15, ""), (1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value:.3g}" if unit == 1e15 else f"{value / unit:.3g}{name}"
    return f"{value:.3g}"
