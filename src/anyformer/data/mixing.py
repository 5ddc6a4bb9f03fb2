"""Several sources as one, by weight: the source of a row, and its index there, are functions of the row's number."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anyformer.data.batches import Batch
from anyformer.data.order import Rows, permuted

BLOCK = 1000  # rows in which the shares are exact; a weight is a whole number of thousandths


@dataclass(frozen=True)
class Mixture:
    """Rows of several sources. In each block of 1000 rows every source has exactly its share, in a new random order.

    ```
    block      0                       1
    source     b a a b a a a … a       a a b …        weights 0.7, 0.3: 700 a and 300 b in each
    row of it  0 0 1 1 2 3 4 …         …               the next one of its source
    ```
    The rows that a source has given before row r follow from r alone, so nothing has to be saved.

    Args:
        sources: of rows; the batches of all must have the same names and shapes.
        weights: one for each source, above 0; their sum does not matter.
        seed: of the order.
    """

    sources: tuple[Rows, ...]
    weights: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sources or len(self.sources) != len(self.weights):
            raise ValueError(f"a mixture needs one weight a source: {len(self.sources)} and {len(self.weights)}")
        shares(self.weights)

    def rows_before(self, row: int) -> list[int]:
        """The number of rows of each source before row `row`."""
        return rows_before(self.weights, self.seed, row)

    def rows(self, first: int, count: int) -> Batch:
        """The rows `first`, …, as a batch, in order."""
        whole: dict[str, Tensor] = {}
        for i, (before, places) in enumerate(picked(self.weights, self.seed, first, count)):
            if not len(places):
                continue
            part = self.sources[i].rows(before, len(places))
            if whole and {k: v.shape[1:] for k, v in part.items()} != {k: v.shape[1:] for k, v in whole.items()}:
                raise ValueError(f"source {i} of the mixture has other names or shapes than the sources before it")
            for name, value in part.items():
                whole.setdefault(name, value.new_empty(count, *value.shape[1:]))[torch.from_numpy(places)] = value
        return whole


def rows_before(weights: tuple[float, ...], seed: int, row: int) -> list[int]:
    """The number of rows of each source of a mixture before row `row`."""
    share, order = shares(weights), _order(weights, seed, row // BLOCK)
    here = np.bincount(order[: row % BLOCK], minlength=len(share))
    return [int(row // BLOCK * s + h) for s, h in zip(share, here, strict=True)]


def picked(weights: tuple[float, ...], seed: int, first: int, count: int) -> list[tuple[int, np.ndarray]]:
    """For each source: its first own row among rows `first`, …, and the positions (n,) of its rows there."""
    numbers = np.arange(first, first + count)
    blocks = {int(b): _order(weights, seed, int(b)) for b in np.unique(numbers // BLOCK)}
    chosen = np.array([blocks[n // BLOCK][n % BLOCK] for n in numbers.tolist()], np.int64)  # (count,)
    return [(before, np.flatnonzero(chosen == i)) for i, before in enumerate(rows_before(weights, seed, first))]


@functools.cache
def shares(weights: tuple[float, ...]) -> np.ndarray:
    """Rows of each source in a block: the weights in thousandths, the largest remainders rounded up. (S,) int64.

    Raises:
        ValueError: for a weight that is not above 0, or less than a thousandth of all.
    """
    if not all(0 < w < float("inf") for w in weights):
        raise ValueError(f"weights must be above 0, got {', '.join(map(str, weights))}; leave out unwanted sources")
    exact = np.array(weights) / sum(weights) * BLOCK
    share = np.floor(exact).astype(np.int64)
    share[np.argsort(share - exact, kind="stable")[: BLOCK - share.sum()]] += 1
    if (share < 1).any():
        small = weights[int(share.argmin())]
        raise ValueError(f"the weight {small} is less than a thousandth of the sum, {sum(weights)}; raise it")
    return share


@functools.lru_cache(maxsize=64)
def _order(weights: tuple[float, ...], seed: int, block: int) -> np.ndarray:
    """The source of each row of a block. (1000,) int64."""
    slots = np.repeat(np.arange(len(weights)), shares(weights))
    return slots[permuted(np.arange(BLOCK), BLOCK, seed, block, len(weights))]
