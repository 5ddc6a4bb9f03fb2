"""Parts of a pyramid of grids: patches without a class token, and the merging of neighbours between two stages.

B batch, T cells of the grid row by row, R rows, S columns, D width, C channels.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.front import Inputs
from anyformer.core.part import Part, built, call, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.parts.embeddings import Cells, Grid, Pictures, resample_grid


class PatchGrid(Pictures):
    """An image as a grid of patches (Liu et al., 2021; arXiv:2103.14030), of any size: pixels of 0 complete the last
    patches at the right and below.

    ```
    pixels (B, C, height, width) -> patches of patch x patch, each one vector -> norm -> + positions
    ```
    Differs from `Patches` by: no class token; images that are no whole number of patches.

    Args:
        image: trained height and width in pixels.
        patch: height and width of a patch.
        channels: colours.
        norm: of each patch's vector, or None.
        positions: add a learned vector for each cell of the trained grid, resampled (bicubic) for others; or a part
            that makes them for any grid, `Sines2D.of(...)`.
        dropout: at the end.

    Shape: (B, C, height, width) -> (B, T, D), T = ceil(height / patch) * ceil(width / patch).
    """

    def __init__(
        self,
        dim: int,
        image: int = 224,
        patch: int = 4,
        channels: int = 3,
        norm: Recipe[Norm] | None = None,
        positions: bool | Recipe[Grid] = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if patch < 1 or image < patch:
            raise ValueError(f"PatchGrid: an image of {image} pixels holds no whole patch of {patch}")
        self.image, self.grid, self.patch, self.channels = image, image // patch, patch, channels
        self.project = nn.Conv2d(channels, dim, patch, patch)
        self.norm, self.dropout = built(norm, dim), dropout
        self.positions: Any = None
        if isinstance(positions, Recipe):
            self.positions = positions.build(dim)
        elif positions:
            self.positions = nn.Parameter(torch.zeros(1, self.grid**2, dim))

    def reset_parameters(self) -> None:
        if isinstance(self.positions, nn.Parameter):
            nn.init.zeros_(self.positions)

    def length(self, inputs: Inputs) -> int:
        rows, columns = self.cells(inputs)
        return rows * columns

    def cells(self, inputs: Inputs) -> tuple[int, int]:
        height, width = self.pixels(inputs).shape[2:]
        return -(-height // self.patch), -(-width // self.patch)

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        x = self.project(completed(inputs["pixel_values"], self.patch, 2))  # (B, D, R, S)
        rows, columns = x.shape[2], x.shape[3]
        flow.put(Cells(rows, columns, first=0))
        x = call(self.norm, x.flatten(2).mT)  # (B, T, D)
        if isinstance(self.positions, Grid):
            x = x + self.positions(rows, columns, x.device).to(x.dtype)
        elif self.positions is not None:
            x = x + resample_grid(self.positions, rows, columns, first=0)
        return drop(self, x)


class Narrowing(Part):
    """Base of the parts between two stages of a pyramid: `forward(x, flow)` makes fewer cells of another width.

    Attributes:
        width: of its output.
    """

    width: int

    @abstractmethod
    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """(B, T, D) -> (B, T', width)"""

    @abstractmethod
    def behind(self, flow: Flow) -> Flow:
        """The flow of the smaller grid."""


class Merge(Narrowing):
    """Four neighbours as one vector (Liu et al., 2021; arXiv:2103.14030): y = W norm([x00, x10, x01, x11]).

    ```
    x00 x01 │ x02 …        x00 x10 x01 x11 ── norm (4 D) ── W (no bias) ── y00 (2 D)
    x10 x11 │ x12 …
    ────────┼────          a grid with an odd side is completed with 0, at the right or below
    ```
    Shape: (B, R S, D) -> (B, ceil(R / 2) ceil(S / 2), 2 D).
    """

    def __init__(self, dim: int, norm: Recipe[Norm]):
        super().__init__()
        self.width = 2 * dim
        self.norm, self.reduce = norm.build(4 * dim), nn.Linear(4 * dim, self.width, bias=False)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        x = completed(x.unflatten(1, grid_of(flow, "Merge")), 2, 1)  # (B, R, S, D), R and S even
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, R/2, 2, S/2, 2, D)
        return self.reduce(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)))

    def behind(self, flow: Flow) -> Flow:
        rows, columns = (-(-side // 2) for side in grid_of(flow, "Merge"))
        smaller = flow.inside(torch.arange(rows * columns, device=flow.positions.device), None)
        smaller.put(Cells(rows, columns, first=0))
        return smaller


def completed(x: Tensor, size: int, axis: int) -> Tensor:
    """A grid with zeros at the right and below, up to whole squares of size x size; its rows are at `axis`, its columns
    behind."""
    below, right = -x.shape[axis] % size, -x.shape[axis + 1] % size
    return F.pad(x, (*[0, 0] * (x.ndim - axis - 2), 0, right, 0, below)) if below or right else x


def grid_of(flow: Flow, reader: str) -> tuple[int, int]:
    """Rows and columns of a stream that is a grid and nothing else."""
    cells = flow.get(Cells, reader)
    if cells.first:
        raise ValueError(f"{reader} reads a grid without a class token in front; take PatchGrid for Patches")
    return cells.rows, cells.columns
