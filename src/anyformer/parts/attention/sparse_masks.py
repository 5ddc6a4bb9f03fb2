"""Sparse masks: few distant keys are visible, for a small part of the N² pairs.

```
Window(2, 2)    Dilated(2, 2)   Strided(3)      Global(2)       BlockWindow(3)  Random(3, 1)
■ ■ ■ · · ·     ■ · ■ · ■ ·     ■ · · ■ · ·     ■ ■ ■ ■ ■ ■     ■ ■ ■ ■ ■ ■     one or more blocks
■ ■ ■ ■ · ·     · ■ · ■ · ■     · ■ · · ■ ·     ■ ■ ■ ■ ■ ■     ■ ■ ■ ■ ■ ■     far away, drawn
■ ■ ■ ■ ■ ·     ■ · ■ · ■ ·     · · ■ · · ■     ■ ■ · · · ·     ■ ■ ■ ■ ■ ■     by the seed
· ■ ■ ■ ■ ■     · ■ · ■ · ■     ■ · · ■ · ·     ■ ■ · · · ·     …
```
Longformer (Beltagy et al., 2020; arXiv:2004.05150) is `Window(w, w) | Global(n)`; BigBird (Zaheer et al., 2020;
arXiv:2007.14062) is `BlockWindow(b, 1, 1) | Global(n) | Random(b, r)`; the Sparse Transformer (Child et al., 2019;
arXiv:1904.10509) is `Window(s) | Strided(s)` under a causal skeleton. `mask.show()` draws one, `mask.kept(n)` is its
cost. All are functions of the indices only, for any length.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from anyformer.parts.attention.masks import FAR, Mask, shape_of


def _at_least(owner: str, least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{owner}: {name} is {least} or more; got {name}={value}")


@dataclass(frozen=True)
class Dilated(Mask):
    """Every `step`-th neighbour, `left` of them before and `right` after: a window of step * left + 1 + step * right
    with gaps."""

    step: int
    left: int
    right: int = 0

    def __post_init__(self) -> None:
        _at_least("Dilated", 1, step=self.step)
        _at_least("Dilated", 0, left=self.left, right=self.right)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        ahead = key - query
        left, right = self.reach()
        return (ahead >= -left) & (ahead <= right) & (ahead % self.step == 0)

    def reach(self) -> tuple[int, int]:
        return self.step * self.left, self.step * self.right


@dataclass(frozen=True)
class Strided(Mask):
    """Every `stride`-th token, counted from the query, at any distance."""

    stride: int

    def __post_init__(self) -> None:
        _at_least("Strided", 1, stride=self.stride)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        return (key - query) % self.stride == 0

    def reach(self) -> tuple[int, int]:
        return FAR, FAR


@dataclass(frozen=True)
class Global(Mask):
    """Global tokens, which see all tokens and are seen by all: the first `tokens`, by index."""

    tokens: int = 1

    def __post_init__(self) -> None:
        _at_least("Global", 1, tokens=self.tokens)

    def by_distance(self) -> bool:
        return False

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        return (query < self.tokens) | (key < self.tokens)

    def reach(self) -> tuple[int, int]:
        return FAR, FAR

    def misses(self, queries: range, keys: range) -> bool:
        return queries[0] >= self.tokens and keys[0] >= self.tokens


@dataclass(frozen=True)
class Prefix(Mask):
    """The first `tokens`, visible to every query. `Causal() | Prefix(n)` in an encoder is a prefix language model; a
    decoder's skeleton hides the future, so there it means `tokens` that stay visible beside a window."""

    tokens: int

    def __post_init__(self) -> None:
        _at_least("Prefix", 0, tokens=self.tokens)

    def by_distance(self) -> bool:
        return False

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        return (key < self.tokens).expand(shape_of(query, key))

    def reach(self) -> tuple[int, int]:
        return FAR, FAR

    def misses(self, queries: range, keys: range) -> bool:
        return keys[0] >= self.tokens


@dataclass(frozen=True)
class BlockWindow(Mask):
    """Blocks of `size` tokens that see themselves, `left` blocks before and `right` after."""

    size: int
    left: int = 1
    right: int = 1

    def __post_init__(self) -> None:
        _at_least("BlockWindow", 1, size=self.size)
        _at_least("BlockWindow", 0, left=self.left, right=self.right)

    def by_distance(self) -> bool:
        return False

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        ahead = key // self.size - query // self.size
        return (ahead >= -self.left) & (ahead <= self.right)

    def reach(self) -> tuple[int, int]:
        return self.size * (self.left + 1) - 1, self.size * (self.right + 1) - 1


@dataclass(frozen=True)
class Random(Mask):
    """Random pairs of blocks of `size` tokens: each block draws `count` of the blocks before it, and both blocks see
    each other. The draws are a function of the seed and the block, not of the length."""

    size: int
    count: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("Random", 1, size=self.size, count=self.count)

    def by_distance(self) -> bool:
        return False

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        if not query.numel() or not key.numel():
            return torch.zeros(shape_of(query, key), dtype=torch.bool, device=key.device)
        last = max(int(query.max()), int(key.max())) // self.size
        return self._graph(last).to(key.device)[query // self.size, key // self.size]

    def _graph(self, last: int) -> Tensor:
        """The connected pairs of blocks, at least up to the block `last`."""
        return _drawn(self.count, self.seed, 1 << last.bit_length())

    def reach(self) -> tuple[int, int]:
        return FAR, FAR

    def misses(self, queries: range, keys: range) -> bool:
        (a, b), (c, d) = ((r[0] // self.size, r[-1] // self.size + 1) for r in (queries, keys))
        return not bool(self._graph(max(b, d))[a:b, c:d].any())


@functools.cache
def _drawn(count: int, seed: int, blocks: int) -> Tensor:
    """(blocks, blocks) True = connected."""
    graph = torch.zeros(blocks, blocks, dtype=torch.bool)
    for block in range(1, blocks):
        noise = torch.Generator().manual_seed((seed * 1_000_003 + block) % (1 << 63))
        graph[block, torch.randperm(block, generator=noise)[:count]] = True
    return graph | graph.T
