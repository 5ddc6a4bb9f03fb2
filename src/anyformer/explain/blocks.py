"""Attention weights in blocks: a long text does not need the weights of all pairs at once.

B batch, H heads, T queries, S keys, t and s those of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.taps import Taps

NUMBERS = 1 << 22  # of a block: 16 MB


class Weights:
    """The weights of one mixer in one pass, (B, H, T, S), made in blocks of whole rows, or of whole columns.

    Args:
        part: a slice of the `count` places along an axis -> the weights there.
        axis: -2: rows of queries; -1: columns of keys.
    """

    def __init__(self, part: Callable[[slice], Tensor], count: int, axis: int = -2):
        self.part, self.count, self.axis = part, count, axis
        shape = list(part(slice(0, min(1, count))).shape)
        shape[axis] = count
        self.shape = tuple(shape)

    @classmethod
    def of(cls, whole: Tensor) -> Weights:
        """Weights that are there already."""
        return cls(lambda at: whole[..., at, :], whole.shape[-2])

    @torch.no_grad()
    def blocks(self, step: int = 1) -> Iterator[tuple[slice, slice, Tensor]]:
        """The rows, the columns and the weights (B, H, t, s) of each block, of a multiple of `step` places but for the
        last; at most `NUMBERS` numbers, but at least one step."""
        every = [slice(0, n) for n in self.shape[-2:]]
        beside = self.shape[0] * self.shape[1] * self.shape[-3 - self.axis]  # numbers of one place
        size = max(1, NUMBERS // (beside * step)) * step
        for start in range(0, self.count, size):
            at = slice(start, min(start + size, self.count))
            every[self.axis] = at
            yield every[0], every[1], self.part(at)

    def row(self, query: int) -> Tensor:
        """The weights of one query, (B, H, S)."""
        if self.axis == -2:
            with torch.no_grad():
                return self.part(slice(query, query + 1))[..., 0, :]
        return torch.cat([block[..., query, :] for *_, block in self.blocks()], -1)

    def pooled(self, rows: int, columns: int | None = None) -> Tensor:
        """The largest weight of each cell of so many queries and keys, in float32 on the CPU, (B, H, …, …)."""
        columns = rows if columns is None else columns
        step = rows if self.axis == -2 else columns
        return torch.cat([cells(block, rows, columns).cpu() for *_, block in self.blocks(step)], self.axis)


def cells(weights: Tensor, rows: int, columns: int) -> Tensor:
    """The largest of each cell of rows and columns; those at the end can be smaller."""
    weights, size = weights.float(), (rows, columns)
    return weights if size == (1, 1) else F.max_pool2d(weights, size, size, ceil_mode=True)


class InBlocks(Taps):
    """Records weights without making them: `maps` has those of each mixer by its path."""

    def __init__(self, model: nn.Module, paths: Sequence[str]):
        super().__init__(model, *(f"{path}.weights" for path in paths))
        self.maps: dict[str, Weights] = {}

    def put(self, module: Any, inner: str, value: Tensor) -> None:
        """Records weights that are there."""
        self.offer(module, inner, lambda at: value[..., at, :], value.shape[-2])

    def offer(self, module: Any, inner: str, part: Callable[[slice], Tensor], count: int, axis: int = -2) -> None:
        """Records weights that can be made later."""
        super().put(module, inner, part(slice(0, 0)) if axis == -2 else torch.empty(0))
        self.maps[self.names[module]] = Weights(part, count, axis)


def rollout(layers: Sequence[Weights], cell: int = 1) -> Tensor:
    """The product over the layers of (A + I) / 2, A the mean of the heads (Abnar and Zuidema, 2020; arXiv:2005.00928).

    In cells of several tokens A is what a token of one cell reads of all tokens of another, on average: its rows sum to
    1, too, and a product of such matrices is near that of the whole ones, for a share 1 / cell^3 of the work.

    Returns:
        (T / cell, T / cell), rounded up.
    """
    count = -(-layers[0].shape[-1] // cell)
    total = own = torch.eye(count)
    for layer in layers:
        mean = torch.zeros(count, count)
        for rows, columns, block in layer.blocks(cell):
            at = [slice(s.start // cell, -(-s.stop // cell)) for s in (rows, columns)]
            mean[at[0], at[1]] = _gathered(block[0].float().mean(0).cpu(), cell)
        total = 0.5 * (mean + own) @ total
    return total


def _gathered(block: Tensor, cell: int) -> Tensor:
    """The sum over the keys of each cell, the mean over its queries: (t, s) -> (t / cell, s / cell)."""
    if cell == 1:
        return block
    t, s = block.shape
    sums = F.pad(block, (0, -s % cell, 0, -t % cell)).unflatten(1, (-1, cell)).sum(2).unflatten(0, (-1, cell)).sum(1)
    return sums / (t - cell * torch.arange(len(sums))).clamp(max=cell)[:, None]
