"""Attention in the windows of a grid (Liu et al., 2021; arXiv:2103.14030).

B batch, T cells of the grid row by row, R rows, S columns, w side of a window, W windows, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.recipe import Recipe
from anyformer.parts.attention.attention import Attention
from anyformer.parts.attention.masks import View
from anyformer.parts.attention.scores import Bias, Call, Score
from anyformer.parts.embeddings import Cells
from anyformer.parts.pyramid import completed, grid_of


class Windows(Mixer):
    """Attention within each window of `window` x `window` cells: work and memory are linear in the number of windows.

    ```
    shift 0            shift 2, the grid rolled     of the windows at the right and below, cells that are no
    │a a a a│b b b b│  by -2 and cut again          neighbours on the grid do not see each other:
    │a a a a│b b b b│  │e e e e│f f g g│
    │a a a a│b b b b│  │e e e e│f f g g│            f sees f, g sees g
    │a a a a│b b b b│  │e e e e│f f g g│
    ```
    A grid is completed with cells of 0 up to whole windows, at the right and below. As in the published model, these
    are keys like all others (k is the projection's bias); then the grid is rolled, then cut. A window larger than the
    shorter side of the grid is as large as that side. A grid whose shorter side is one window is not shifted.

    Args:
        inside: attention in a window, e.g. `Attention.of(heads=3, scores=[GridBias.of(7)])`.
        window: the side of a window, in cells.
        shift: cells by which the windows are shifted, down and to the right; by half a window in every second block,
            so that information passes between neighbouring windows.

    Shape: (B, T, D) -> same, after a front-end without class token.
    """

    def __init__(self, dim: int, inside: Recipe[Attention], window: int = 7, shift: int = 0):
        super().__init__()
        if window < 1 or not 0 <= shift < window:
            raise ValueError(
                f"Windows: window is at least 1, and shift from 0 to below it; got window={window}, shift={shift}"
            )
        self.inside, self.window, self.shift = inside.build(dim), window, shift

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        rows, columns = grid_of(flow, "Windows")
        w, shift = self.fitted(rows, columns)
        grid = completed(x.unflatten(1, (rows, columns)), w, 1)  # (B, R, S, D), whole windows
        grid = grid.roll((-shift, -shift), (1, 2)) if shift else grid
        inner = flow.once(("windows", self.window, self.shift), lambda: self._flow(grid, flow, w, shift))
        y = self.inside(cut(grid, w).flatten(0, 1), inner)  # (B W, w w, D)
        return self.joined(y, rows, columns).flatten(1, 2)

    def fitted(self, rows: int, columns: int) -> tuple[int, int]:
        """Side and shift of the windows in a grid of this size."""
        shorter = min(rows, columns)
        return (shorter, 0) if shorter <= self.window else (self.window, self.shift)

    def joined(self, y: Tensor, rows: int, columns: int) -> Tensor:
        """The outputs of the windows at their places on the grid: (B W, w w, D) -> (B, rows, columns, D)."""
        w, shift = self.fitted(rows, columns)
        down, across = -(-rows // w), -(-columns // w)
        y = y.reshape(-1, down, across, w, w, y.shape[-1]).transpose(2, 3)  # (B, down, w, across, w, D)
        y = y.flatten(3, 4).flatten(1, 2)
        return (y.roll((shift, shift), (1, 2)) if shift else y)[:, :rows, :columns]

    def _flow(self, grid: Tensor, flow: Flow, w: int, shift: int) -> Flow:
        """The flow inside the windows, which all layers of one kind share. Its documents are the regions of the rolled
        grid whose cells are neighbours."""
        if flow.keep is not None or flow.documents is not None:
            raise ValueError("Windows reads grids without padding: one picture a row, without a mask or document_ids")
        self.needs_both_ways(flow)
        positions, region = torch.arange(w * w, device=grid.device), None
        if shift:
            lines = [torch.arange(size, device=grid.device) - size for size in grid.shape[1:3]]  # from the end
            row, column = ((line >= -w).long() + (line >= -shift) for line in lines)  # 0; 1 and 2 in the last window
            region = cut((3 * row[:, None] + column)[None, :, :, None], w)[..., 0]  # (1, W, w w)
            region = region.expand(grid.shape[0], -1, -1).flatten(0, 1)  # (B W, w w)
            positions = positions.expand(region.shape)
        inner = flow.inside(positions, None, documents=region)
        inner.put(Cells(w, w, first=0))
        return inner


def cut(grid: Tensor, w: int) -> Tensor:
    """The windows of a grid, row by row: (B, R, S, D) -> (B, W, w w, D)."""
    grid = grid.unflatten(2, (-1, w)).unflatten(1, (-1, w))  # (B, R/w, w, S/w, w, D)
    return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class GridBias(Score):
    """A learned number for each head and each distance on the grid, 0 at first, added to the scores.

    Of query (r, s) and key (r', s') it is the entry (r - r' + n - 1) (2 n - 1) + s - s' + n - 1.

    Args:
        side: n, the longest side of a grid, or of a window, in which it stands.

    Parameters: `table` ((2 n - 1)², H).
    """

    def __init__(self, dim: int, heads: int, head_dim: int, side: int):
        super().__init__()
        if side < 1:
            raise ValueError(f"GridBias: side is the longest side of the grid, at least 1; got {side}")
        self.side, self.table = side, nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)

    def bias(self, call: Call) -> Bias:
        rows, columns = grid_of(call.flow, "GridBias")
        if max(rows, columns) > self.side:
            raise ValueError(f"GridBias: side={self.side} is shorter than this grid, {rows} x {columns} cells")

        def of_view(view: View) -> Tensor:
            query = torch.arange(view.query, view.query + view.count, device=view.device)[:, None]
            key = torch.arange(view.key, view.key + view.keys, device=view.device)
            down, right = query // columns - key // columns, query % columns - key % columns  # (T, S) each
            place = (down + self.side - 1) * (2 * self.side - 1) + right + self.side - 1
            return self.table.mT[:, place][None]  # (1, H, T, S)

        return of_view
