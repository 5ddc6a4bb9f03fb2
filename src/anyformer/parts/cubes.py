"""The front-end of pictures and videos of any size in one sequence (Wang et al., 2024, "Qwen2-VL"; arXiv:2409.12191).

N pictures or videos, P patches of all of them, C channels, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.checks import readable
from anyformer.core.flow import Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.parts.attention.groups import Groups

LARGE = 1 << 20  # rows and columns of a grid stay below it


class Spots(NamedTuple):
    """Of each unit of all grids, one after another: the number of its grid, its frame, row and column, and its number
    in its grid; (units,) each."""

    grid: Tensor
    frame: Tensor
    row: Tensor
    column: Tensor
    inside: Tensor


class Cubes(FrontEnd):
    """Patches of `frames` pictures each, of pictures and videos of any size, one after another in one sequence.

    ```
    a picture is a video of one still    patches of a cell stand together (merge 2)    windows of whole cells
    frames 1 2 | 3 4 | 5 6               1 2 | 5 6 | 9 ..                               a a | b
      grid     1     2     3             3 4 | 7 8 |                                   a a | b
    ```
    A patch arrives as C · frames · patch · patch numbers, in this order. Attention stays in a frame, or in a window of
    a frame (`Grouped`); a window at an edge is smaller. Places are row and column, for `Rotary2D`.

    Args:
        patch: height and width of a patch, in pixels.
        frames: pictures in a patch.
        channels: colours.
        merge: patches of a cell in each direction; a cell becomes one position in the end.
        window: cells of a window in each direction.

    Shape: pixel_values (P, C · frames · patch²), grid_thw (N, 3): frames, rows and columns in patches -> (1, P, D).
    """

    main = "pixel_values"

    def __init__(self, dim: int, patch: int = 14, frames: int = 2, channels: int = 3, merge: int = 2, window: int = 4):
        super().__init__()
        for name, value in (("patch", patch), ("frames", frames), ("channels", channels), ("merge", merge)):
            if value < 1:
                raise ValueError(f"Cubes: {name} is {value}; expected at least 1")
        if window < 1:
            raise ValueError(f"Cubes: window is {window} cells; a window holds at least one")
        self.patch, self.frames, self.channels, self.merge, self.window = patch, frames, channels, merge, window
        self.project = nn.Conv3d(channels, dim, (frames, patch, patch), (frames, patch, patch), bias=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.project.weight, std=0.02)

    @property
    def numbers(self) -> int:
        """Numbers of a patch."""
        return self.channels * self.frames * self.patch**2

    def inputs(self) -> dict[str, Input]:
        return {
            "pixel_values": Input(("numbers",), fixed=("numbers",)),
            "grid_thw": Input(("sides",), fixed=("sides",), ids=True),
        }

    def length(self, inputs: Inputs) -> int:
        pixels, grid = inputs["pixel_values"], inputs["grid_thw"]
        if pixels.ndim != 2 or pixels.shape[1] != self.numbers:
            raise ValueError(
                f"pixel_values must be (patches, {self.numbers}), one row for each patch of {self.frames} x "
                f"{self.channels} x {self.patch} x {self.patch} numbers; got {tuple(pixels.shape)}. The model's "
                "processor makes them"
            )
        if grid.ndim != 2 or grid.shape[1] != 3 or grid.is_floating_point():
            raise ValueError(
                "grid_thw must be whole numbers (pictures, 3), the frames, rows and columns of each in patches; got "
                f"{grid.dtype} of shape {tuple(grid.shape)}"
            )
        if readable(grid):
            self._check(pixels.shape[0], grid)
        return pixels.shape[0]

    def _check(self, count: int, grid: Tensor) -> None:
        bad = (grid < 1).any(1) | (grid >= LARGE).any(1) | (grid[:, 1:] % self.merge != 0).any(1)
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            raise ValueError(
                f"grid_thw: picture {at} has {' x '.join(map(str, grid[at].tolist()))} patches; expected at least 1 "
                f"frame, and rows and columns that are multiples of {self.merge}"
            )
        if (patches := int(grid.prod(1).sum())) != count:
            raise ValueError(
                f"grid_thw describes {len(grid)} pictures of {patches} patches, and pixel_values has {count}"
            )

    def cells_of(self, grid: Tensor, count: int) -> Spots:
        """The cells of all grids, row by row; without a look at the content of `grid`, (N, 3) in patches."""
        sides = grid // torch.tensor((1, self.merge, self.merge), device=grid.device)
        sizes = sides.prod(1)
        ends, index = sizes.cumsum(0), torch.arange(count, device=grid.device)
        number = torch.searchsorted(ends, index, right=True).clamp(max=len(grid) - 1)
        inside = index - (ends - sizes)[number]
        rows, columns = sides[number, 1], sides[number, 2]
        return Spots(number, inside // (rows * columns), inside % (rows * columns) // columns, inside % columns, inside)

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        pixels, grid, m = inputs["pixel_values"], inputs["grid_thw"], self.merge
        cells = self.cells_of(grid, pixels.shape[0] // m**2)
        patch = torch.arange(pixels.shape[0], device=grid.device)
        cell = patch // m**2
        row, column = cells.row[cell] * m + patch % m**2 // m, cells.column[cell] * m + patch % m
        frame = ((grid[:, 0].cumsum(0) - grid[:, 0])[cells.grid] + cells.frame)[cell]
        window = (frame * LARGE + cells.row[cell] // self.window) * LARGE + cells.column[cell] // self.window
        flow.put(Groups({"frames": frame, "windows": window}, torch.stack((row, column))))
        return F.linear(pixels, self.project.weight.flatten(1))[None]  # (1, P, D)

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        """`size`: rows and columns of cells, and frames, 1 by default."""
        high, wide, *frames = size if len(size) > 1 else self.sizes()[0]
        grid = torch.tensor([[frames[0] if frames else 1, high * self.merge, wide * self.merge]] * rows)
        count = rows * math.prod(grid[0].tolist())
        return {"pixel_values": torch.randn(count, self.numbers, generator=noise), "grid_thw": grid}

    def sizes(self) -> list[tuple[int, ...]]:
        n = self.window
        return [(1, 2), (1, 1), (n, n), (n + 1, 2 * n + 1), (2 * n, n, 3)]
