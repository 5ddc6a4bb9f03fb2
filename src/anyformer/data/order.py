"""The order of data as a function of the row number, without a list, a state, or a generator to save.

Rows are counted through all epochs: row r is position r mod N of epoch r div N. In an epoch the N items have an order
that depends on (seed, epoch) alone, each exactly once. A batch is the next B rows, and each of W processes takes its
B / W of them:

```
rows      0 1 2 3 4 5 6 7 8 9 …             N = 7: 7 begins epoch 1
batch     0       1       2                 B = 4
process   0   1   0   1   0   1             W = 2
```
So the union over processes is the same batch for every W that divides B: a run can resume with another W, or with
another number of accumulated batches, and reads the same data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from anyformer.data.batches import Batch

ROUNDS = 8  # of both halves; with 6 the orders of five or six items are not yet equally frequent (chi-square test)
WORD = (1 << 64) - 1


class Rows(Protocol):
    """Rows by number."""

    def rows(self, first: int, count: int) -> Batch:
        """Rows `first`, …, `first` + `count` - 1 as a batch, always the same ones."""


@dataclass(frozen=True)
class Global:
    """Batches by number of rows by number: `Global(rows, 8)(i)` is batch i, or the share of one process in it.

    Args:
        source: the rows.
        batch: B, rows of a batch over all processes.
        rank, size: of this process; the number of processes.
    """

    source: Rows
    batch: int
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank must be from 0 to {self.size - 1}, got {self.rank}")
        if self.batch % self.size:
            raise ValueError(
                f"batch={self.batch} cannot be shared by {self.size} processes; use a multiple of {self.size}"
            )

    def __call__(self, number: int) -> Batch:
        """Batch number `number`, counted from the beginning of the run."""
        share = self.batch // self.size
        return self.source.rows(number * self.batch + self.rank * share, share)


def mix(x: np.ndarray) -> np.ndarray:
    """Pseudorandom 64 bits for a counter of 64 bits (the finaliser of splitmix64; Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(count: int, *words: int) -> np.ndarray:
    """`count` keys derived from `words`, e.g. (seed, epoch). (count,) uint64."""
    state = np.zeros(1, np.uint64)
    for word in (count, *words):
        state = mix(state + np.uint64((word * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & WORD))
    return mix(state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def permuted(places: np.ndarray, size: int, *words: int) -> np.ndarray:
    """The images of `places` under a permutation of 0, …, `size` - 1 that `words`, e.g. (seed, epoch), determine.

    A Feistel network over an a x b grid just large enough (Black and Rogaway, 2002): the row is shifted by a hash of
    the column, then the column by a hash of the row. Each shift can be undone, so the whole is a permutation of the
    grid; an image outside 0, …, `size` - 1 is permuted again until it is inside.

    Shapes: (n,) int64 -> (n,) int64. Memory: that of `places`, whatever the size.
    """
    a = math.isqrt(max(0, size - 1)) + 1
    b = -(-size // a)
    chosen = keys(2 * ROUNDS, size, *words)
    result = places.astype(np.int64)
    todo = np.arange(len(result))  # indices of images that are not inside yet
    with np.errstate(over="ignore"):
        while len(todo):
            row, column = result[todo] // b, result[todo] % b
            for i in range(0, 2 * ROUNDS, 2):
                row = (row + _hash(column, chosen[i], a)) % a
                column = (column + _hash(row, chosen[i + 1], b)) % b
            result[todo] = row * b + column
            todo = todo[result[todo] >= size]
    return result


def _hash(x: np.ndarray, key: np.uint64, below: int) -> np.ndarray:
    return (mix(mix(x.astype(np.uint64) + key) ^ key) % np.uint64(below)).astype(np.int64)


def shuffled(first: int, count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The epochs and the items of rows `first`, …: (count,) int64 each.

    Every item of 0, …, `size` - 1 comes once in an epoch.
    """
    numbers = np.arange(first, first + count)
    epochs, items = numbers // size, numbers % size
    for epoch in np.unique(epochs):
        here = epochs == epoch
        items[here] = permuted(items[here], size, seed, int(epoch))
    return epochs, items


@dataclass(frozen=True, eq=False)
class Epochs:
    """Windows of a text, each once in an epoch, in a new random order each time.

    The text is cut into N windows of `context` tokens; the remainder, fewer tokens, is split anew in each epoch into a
    part before the first window and a part after the last, so that the cuts move.

    Args:
        ids: (M,).
        context: T.
        seed: of the order.
    """

    ids: np.ndarray
    context: int
    seed: int = 0

    def __post_init__(self) -> None:
        enough(self.ids, self.context)

    @property
    def size(self) -> int:
        """N, the rows of an epoch."""
        return (len(self.ids) - 1) // self.context

    def rows(self, first: int, count: int) -> Batch:
        """input_ids and labels, (count, T) each: the label of a position is the token after it."""
        epochs, items = shuffled(first, count, self.size, self.seed)
        spare = len(self.ids) - 1 - self.size * self.context
        known, which = np.unique(epochs, return_inverse=True)
        before = np.array([int(keys(1, self.seed, int(e))[0] % np.uint64(spare + 1)) for e in known], np.int64)[which]
        starts = before + items * self.context  # (B,)
        return windows(self.ids, starts, self.context)


def enough(ids: np.ndarray, context: int) -> None:
    """Raises ValueError for a text shorter than one window."""
    if context < 1 or len(ids) <= context:
        raise ValueError(
            f"the text to train on has {len(ids)} tokens, and one window of context={context} needs {context + 1}; use "
            "more text or a shorter context"
        )


def windows(ids: np.ndarray, starts: np.ndarray, context: int) -> Batch:
    """The windows of `ids` that begin at `starts`: input_ids and labels, (B, T) each."""
    rows = torch.from_numpy(ids[starts[:, None] + np.arange(context + 1)].astype(np.int64))  # (B, T + 1)
    return {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}


@dataclass(frozen=True, eq=False)
class Items:
    """Any numbered examples, each once in an epoch: `Items(len(data), make, seed)`.

    Args:
        size: N.
        make: numbers of examples, (count,) int64 -> a batch of them.
        seed: of the order.
    """

    size: int
    make: Callable[[np.ndarray], Batch]
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("there are no examples to train on")

    def rows(self, first: int, count: int) -> Batch:
        """The batch that `make` returns for the examples of these rows."""
        return self.make(shuffled(first, count, self.size, self.seed)[1])
