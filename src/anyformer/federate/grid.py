"""Fixed-point numbers whose sum over clients cannot overflow.

```
x in [-limit, limit]  ->  k = round(x / step), |k| < 2^(bits - 1)  ->  k modulo 2^W     W = 32, or 64 where needed
```
n clients add up to less than n 2^(bits - 1) <= 2^(W - 1), as bits + log2 n <= W is checked when the grid is made: the
sum modulo 2^W is the sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

SATURATED = 1e-3  # the largest share of values that may lie outside of the limit


@dataclass(frozen=True)
class Grid:
    """The grid of one sum.

    Args:
        bits: of a value, with its sign. limit: the largest magnitude. clients: the most that are added up.

    Raises:
        ValueError: if the sum of so many values could overflow 64 bits, or a number is out of range.
    """

    bits: int
    limit: float
    clients: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 52:
            raise ValueError(f"bits must be from 2 to 52, got {self.bits}")
        if not 0 < self.limit < math.inf:
            raise ValueError(f"limit must be above 0 and finite, got {self.limit}")
        if self.clients < 1 or self.width > 64:
            raise ValueError(
                f"bits={self.bits} and {self.clients} clients: the sum needs {self.width} bits, and there are 64; use "
                "fewer bits"
            )

    @property
    def width(self) -> int:
        """Bits of the sum: bits + log2 n, rounded up."""
        return self.bits + (self.clients - 1).bit_length()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of words: arithmetic is modulo their size."""
        return np.dtype("<u4" if self.width <= 32 else "<u8")

    @property
    def step(self) -> float:
        """The distance of two values; a sum of n is exact to n step / 2."""
        return self.limit / (2 ** (self.bits - 1) - 1)

    def words(self, values: np.ndarray) -> tuple[np.ndarray, float]:
        """Values as words, and the share of them that is saturated.

        Raises:
            ValueError: for values that are not finite, or of which more than 0.1 % lie outside of the limit.
        """
        if not np.isfinite(values).all():
            raise ValueError("the update has values that are not finite")
        outside = float((np.abs(values) > self.limit).mean()) if len(values) else 0.0
        if outside > SATURATED:
            raise Saturated(
                f"{outside:.2%} of the values lie outside of ±{self.limit:g}, the largest {np.abs(values).max():.3g}: "
                f"they would be cut silently, and {SATURATED:.1%} may be; use a larger --limit, or a smaller lr"
            )
        whole = np.rint(np.clip(values.astype(np.float64), -self.limit, self.limit) / self.step).astype(np.int64)
        return whole.astype(self.dtype), outside

    def values(self, total: np.ndarray) -> np.ndarray:
        """The sum of words as float64."""
        signed = total.view(f"<i{total.dtype.itemsize}")
        return signed.astype(np.float64) * self.step


class Saturated(ValueError):
    """Too many values outside of the grid: a setting is wrong, not a client."""
