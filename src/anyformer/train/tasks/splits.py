"""Training and held-out examples of a table: one of each ten, or a random share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anyformer.data.order import permuted

EVERY = 10  # one row of so many is held out
Split = Callable[[str, int], tuple["Subset", "Subset"]]


@dataclass(frozen=True)
class Subset:
    """Some of the examples of a table: `size` of them, and where the i-th is, (n,) -> (n,)."""

    size: int
    of: Callable[[np.ndarray], np.ndarray]


def one_in_ten(name: str, count: int) -> tuple[Subset, Subset]:
    """All but one of each ten in a row to learn from, and those to hold out: of sorted classes, some of each; as the
    one is drawn, of classes that take turns, too."""
    _two(name, count)

    def out(block: np.ndarray) -> np.ndarray:
        return block * EVERY + _drawn(block, np.minimum(EVERY, count - block * EVERY))

    def learn(i: np.ndarray) -> np.ndarray:
        block = i // (EVERY - 1)
        place = i + block
        return place + (place >= out(block))

    held_out = -(-count // EVERY)
    return Subset(count - held_out, learn), Subset(held_out, out)


def _drawn(block: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The held-out index in a block of so many: the same in every run (SplitMix64 of the block's number)."""
    with np.errstate(over="ignore"):
        x = (block.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) % size.astype(np.uint64)).astype(np.int64)


def random_share(part: float, seed: int) -> Split:
    """Draws a part of the examples to hold out, for the seed; at least one, and not all."""

    def cut(name: str, count: int) -> tuple[Subset, Subset]:
        _two(name, count)
        out = min(max(1, round(part * count)), count - 1)
        return Subset(count - out, lambda i: permuted(i + out, count, seed)), Subset(
            out, lambda i: permuted(i, count, seed)
        )

    return cut


def everything(name: str, count: int) -> tuple[Subset, Subset]:
    """All examples, to measure a model that does not learn from them."""
    return Subset(count, lambda i: i), Subset(count, lambda i: i)


def _two(name: str, count: int) -> None:
    if count < 2:
        raise ValueError(
            f"{name}: expected at least 2 rows with a label, one for training and one held out; got {count}"
        )
