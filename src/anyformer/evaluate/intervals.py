"""Figures with 95 % intervals, and differences of two models on the same items. N items.

```
share   k of N are right    Wilson's interval (1927)
mean    of N values         ± 2 standard errors
ratio   sum x / sum w       ± 2 standard errors of the residuals x - R w (a ratio of sums over N items)
corpus  any function        percentiles of 1,000 bootstrap samples of the items (Efron, 1979)
```
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Z = 1.959963984540054  # 95 % of a normal distribution
ROUNDS = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure, its interval (None where one item allows none), and the name of the interval."""

    value: float
    low: float | None = None
    high: float | None = None
    how: str = ""

    def json(self) -> dict[str, Any]:
        """For machines."""
        return {"value": self.value, "low": self.low, "high": self.high, "interval": self.how}


def wilson(right: int, count: int) -> Estimate:
    """A share with Wilson's interval.

    Raises:
        ValueError: for no item.
    """
    if count < 1:
        raise ValueError("a share of no items has no interval")
    p, z = right / count, Z
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    low, high = (0.0 if right == 0 else middle - half), (1.0 if right == count else middle + half)
    return Estimate(p, low, high, "95 % Wilson")


@dataclass(frozen=True)
class Metric:
    """A figure over items.

    Args:
        values: one an item, (N,). weights: the denominators of a ratio, (N,). share: the values are 0 or 1.
        shown: applied to the figure and its bounds, such as exp. units: what an item is, for the interval's name.
    """

    values: np.ndarray
    weights: np.ndarray | None = None
    share: bool = False
    shown: Callable[[float], float] | None = None
    units: str = "items"

    def _residuals(self) -> tuple[float, np.ndarray]:
        """The figure, and what each item adds to its error."""
        w = np.ones(len(self.values)) if self.weights is None else self.weights
        value = float(self.values.sum() / w.sum())
        return value, (self.values - value * w) / w.mean()

    def estimate(self, seed: int = 0) -> Estimate:
        """The figure with its interval."""
        if self.share:
            return wilson(round(float(self.values.sum())), len(self.values))
        value, residuals = self._residuals()
        shown = self.shown or float
        if len(residuals) < 2:
            return Estimate(shown(value), how=f"one of {self.units}: no interval")
        error = float(residuals.std(ddof=1)) / math.sqrt(len(residuals))
        return Estimate(shown(value), shown(value - 2 * error), shown(value + 2 * error), f"± 2 s.e. over {self.units}")

    def minus(self, other: Metric, seed: int = 0) -> Estimate | None:
        """The difference to another model on the same items, ± 2 paired standard errors; None of a transformed one."""
        if self.shown is not None:
            return None
        (a, first), (b, second) = self._residuals(), other._residuals()
        if len(first) != len(second) or len(first) < 2:
            return Estimate(a - b, how="not paired: the two are measured in other pieces")
        error = float((first - second).std(ddof=1)) / math.sqrt(len(first))
        return Estimate(a - b, a - b - 2 * error, a - b + 2 * error, "± 2 paired s.e.")


@dataclass(frozen=True)
class Corpus:
    """A figure of all items together.

    Args:
        statistic: of item numbers, (n,), each as often as it is drawn. count: N.
    """

    statistic: Callable[[np.ndarray], float]
    count: int
    rounds: int = field(default=ROUNDS)

    def _drawn(self, seed: int) -> list[np.ndarray]:
        noise = np.random.default_rng(seed)
        return [noise.integers(0, self.count, self.count) for _ in range(self.rounds)]

    def estimate(self, seed: int = 0) -> Estimate:
        """The figure with its bootstrap interval; the same seed draws the same samples."""
        value = self.statistic(np.arange(self.count))
        if self.count < 2:
            return Estimate(value, how="one item: no interval")
        low, high = np.quantile([self.statistic(drawn) for drawn in self._drawn(seed)], [0.025, 0.975])
        return Estimate(value, float(low), float(high), f"95 % bootstrap, {self.rounds:,} samples")

    def minus(self, other: Corpus, seed: int = 0) -> Estimate:
        """The difference to another model, both on the same samples."""
        every = np.arange(self.count)
        value = self.statistic(every) - other.statistic(every)
        if self.count < 2:
            return Estimate(value, how="one item: no interval")
        found = [self.statistic(drawn) - other.statistic(drawn) for drawn in self._drawn(seed)]
        error = float(np.std(found, ddof=1))
        return Estimate(value, value - 2 * error, value + 2 * error, "± 2 paired s.e. (bootstrap)")
