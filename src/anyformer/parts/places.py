"""Places that attention adds to what its queries and keys are made of, in every layer (Carion et al., 2020;
arXiv:2005.12872). B batch, T positions of the stream, S places of the memory, D width, R rows, C columns of a grid.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from anyformer.core.part import Part
from anyformer.parts.convnet import Extent


class Places(Part):
    """Base of the vectors for the cells of a grid: `forward(rows, columns, extent, like)`. Shape: (B or 1, R C, D)."""

    @abstractmethod
    def forward(self, rows: int, columns: int, extent: Extent | None, like: Tensor) -> Tensor:
        """The vectors, in the type and on the device of `like`; with an extent, those of each picture's own cells."""


class ShareSines(Places):
    """Sines of the share of a picture's own rows and columns at which a cell ends, in turns of 2 pi.

    ```
    y = 2 pi row / rows     sin(y w_0) cos(y w_0) sin(y w_1) …, then the same of the column     w_i = theta^(-4i/D)
    ```
    Rows and columns are counted from 1. Differs from `Sines2D` by: shares in place of numbers; sines and cosines in
    turns; the row first.
    """

    def __init__(self, dim: int, theta: float = 10000.0):
        super().__init__()
        if dim % 4:
            raise ValueError(f"ShareSines: a quarter of the width for each sine, and {dim} cannot be divided by 4")
        self.dim, self.theta = dim, theta

    def forward(self, rows: int, columns: int, extent: Extent | None, like: Tensor) -> Tensor:
        row = self._share(rows, None if extent is None else extent.rows, like)
        column = self._share(columns, None if extent is None else extent.columns, like)
        y = row[:, :, None].expand(-1, -1, columns, -1)  # (B or 1, R, C, D / 2)
        return torch.cat((y, column[:, None].expand_as(y)), -1).flatten(1, 2).to(like.dtype)

    def _share(self, count: int, own: Tensor | None, like: Tensor) -> Tensor:
        """(B or 1, count, D / 2)"""
        numbers = torch.arange(1, count + 1, device=like.device, dtype=torch.float32)
        whole = numbers[-1:] if own is None else own[:, None].float()
        angles = (numbers / (whole + 1e-6) * 2 * math.pi).view(-1, count)  # (B or 1, count)
        steps = torch.arange(0, self.dim // 2, 2, device=like.device, dtype=torch.float32)
        angles = angles[..., None] / self.theta ** (2 * steps / self.dim)  # (B or 1, count, D / 4)
        return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)


class GridTable(Places):
    """A learned vector for each row and each column, the column's half first.

    Args:
        most: rows and columns; a larger grid is an error.
    """

    def __init__(self, dim: int, most: int = 50):
        super().__init__()
        if dim % 2 or most < 1:
            raise ValueError(f"GridTable halves the width, and {dim} is odd, or most={most} is below 1")
        self.most = most
        self.rows, self.columns = (nn.Parameter(torch.empty(most, dim // 2)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.rows)
        nn.init.uniform_(self.columns)

    def forward(self, rows: int, columns: int, extent: Extent | None, like: Tensor) -> Tensor:
        if max(rows, columns) > self.most:
            raise ValueError(
                f"a grid of {rows} x {columns} cells, and the table has {self.most} rows and columns; give smaller "
                "pictures"
            )
        both = self.columns[None, :columns].expand(rows, -1, -1), self.rows[:rows, None].expand(-1, columns, -1)
        return torch.cat(both, -1).flatten(0, 1)[None]


class Queries(Part):
    """A learned vector for each of `count` queries. Shape: (count, D)."""

    def __init__(self, dim: int, count: int = 100):
        super().__init__()
        if count < 1:
            raise ValueError(f"Queries: count must be at least 1, got {count}")
        self.weight = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def forward(self) -> Tensor:
        return self.weight
