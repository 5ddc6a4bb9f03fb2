"""Positions on a grid: of an image's patches, and of long texts that are folded into rows.

B batch, T time, D width, K head width, R rows, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anyformer.core.flow import Companion, Flow
from anyformer.core.slots import Positions
from anyformer.parts.embeddings import Cells, Grid, Sinusoidal
from anyformer.parts.positions import Rotary


class Axial(Positions):
    """A learned vector per position of a text, from one for its row and one for its column, when the text is
    folded into rows (Kitaev et al., 2020; arXiv:2001.04451): R + C vectors instead of R C.

    ```
    p = row * C + column              x_p = [rows[row] | columns[column]], or their sum
    ```
    Args:
        shape: R and C; the longest text has R C tokens.
        widths: of the two pieces, which add up to D; None = both are D wide, and added.

    Shape: positions (T,) or (B, T) -> (..., D).
    """

    def __init__(self, dim: int, shape: Any, widths: Any = None):
        super().__init__()
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"Axial: shape must be (rows, columns), at least 1 each; got {shape}")
        if widths is not None and (len(widths) != 2 or min(widths) < 1 or sum(widths) != dim):
            raise ValueError(f"Axial: widths are two numbers that add up to the width {dim}; got {widths}")
        self.shape, self.joined = tuple(shape), widths is not None
        one, other = (dim, dim) if widths is None else widths
        self.rows = nn.Parameter(torch.empty(shape[0], one))
        self.columns = nn.Parameter(torch.empty(shape[1], other))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.rows, std=0.02)
        nn.init.normal_(self.columns, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        row, column = positions // self.shape[1], positions % self.shape[1]
        if self.joined:
            return torch.cat((self.rows[row], self.columns[column]), -1)
        return self.rows[row] + self.columns[column]


class Sines2D(Grid):
    """Fixed vectors for the patches of an image, of any size (He et al., 2021, "Masked Autoencoders";
    arXiv:2111.06377): half of the width for the column, half for the row, as in `Sinusoidal`. The class token has none.

    Args:
        base: rows and columns of the trained grid: on a grid of n rows, row i is at i base / n, so that every grid
            covers the same range (DiT). None: row i is at i.
        crop: rows and columns of a table, stored with the weights, from whose middle a smaller grid is cut (Stable
            Diffusion 3). None: no table, and no largest grid.

    Shape: rows, columns -> (R C, D).
    """

    def __init__(self, dim: int, theta: float = 10000.0, base: int | None = None, crop: int | None = None):
        super().__init__()
        if dim % 2:
            raise ValueError(f"Sines2D halves the width, and {dim} is odd")
        for name, count in (("base", base), ("crop", crop)):
            if count is not None and count < 1:
                raise ValueError(f"Sines2D: {name} is a number of rows, at least 1, or None; got {count}")
        self.waves, self.base, self.crop = Sinusoidal(dim // 2, theta), base, crop
        self.table: Tensor
        if crop is not None:
            self.register_buffer("table", torch.empty(1, crop * crop, dim))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.crop is not None and not self.table.is_meta:  # without memory the first division imports the compiler
            self.table.copy_(self._waves(self.crop, self.crop, self.table.device)[None])

    def forward(self, rows: int, columns: int, device: torch.device) -> Tensor:
        if self.crop is None:
            return self._waves(rows, columns, device)
        if max(rows, columns) > self.crop:
            raise ValueError(
                f"Sines2D: a grid of {rows} x {columns} patches is larger than its table of {self.crop} x {self.crop}"
            )
        top, left = (self.crop - rows) // 2, (self.crop - columns) // 2
        table = self.table.unflatten(1, (self.crop, self.crop))[0]
        return table[top : top + rows, left : left + columns].flatten(0, 1)

    def _waves(self, rows: int, columns: int, device: torch.device) -> Tensor:
        row, column = (self.waves(self._places(n, device)) for n in (rows, columns))  # (R or C, D / 2)
        both = column[None].expand(rows, -1, -1), row[:, None].expand(-1, columns, -1)
        return torch.cat(both, -1).flatten(0, 1)

    def _places(self, count: int, device: torch.device) -> Tensor:
        places = torch.arange(count, device=device)
        return places if self.base is None else places.float() / (count / self.base)


@dataclass(frozen=True)
class Axes(Companion):
    """The places of the positions on several axes, (A, B, T): time, row and column; of patches the last two."""

    left_by: ClassVar[str] = "the skeleton Spliced, or Grouped"
    per_position: ClassVar[bool] = True
    places: Tensor


class Rotary2D(Rotary):
    """Rotary positions of an image's patches (Su, 2021; EVA-02: Fang et al., 2023, arXiv:2303.11331): the first half of
    the pairs turns by the row, the second by the column, each with the frequencies theta^(-4i/K).

    A class token is not turned, so it meets every patch as if at row 0, column 0. Only after a front-end of pictures;
    of several sizes in one sequence, each patch has its own row and column (`Axes`).

    Args: as in `Rotary`. Shape: (B, T, H, K) -> same, K a multiple of 4.
    """

    def __init__(self, dim: int, theta: float = 10000.0, pairs: str = "half"):
        super().__init__(dim, theta, pairs=pairs)
        self._key = ("rotary 2d", dim, theta, pairs)
        if dim % 4:
            raise ValueError(
                f"Rotary2D turns pairs by rows and pairs by columns: {dim} numbers a head cannot be divided by 4"
            )

    def angles(self, flow: Flow) -> tuple[Tensor, float]:
        steps = torch.arange(0, self.width, 4, device=flow.positions.device, dtype=torch.float32)
        frequencies = 1.0 / self.theta ** (steps / self.width)  # (K/4,)
        if (axes := flow.find(Axes)) is not None:
            coordinates = axes.places.movedim(0, -1)  # (B, T, 2)
        else:
            cells = flow.get(Cells, "Rotary2D (for a text take Rotary)")
            patch = flow.positions - cells.first
            row = (patch // cells.columns).clamp(min=0)  # a clamp before the division: PyTorch 2.13 cannot compile it
            coordinates = torch.stack((row, (patch - row * cells.columns).clamp(min=0)), -1)  # (T, 2)
        return (coordinates[..., None].float() * frequencies).flatten(-2)[..., None, :], 1.0  # (…, T, 1, K/2)


class RotaryAxes(Rotary):
    """Rotary positions on several axes (Wang et al., 2024, "Qwen2-VL"; arXiv:2409.12191): the pairs of a section turn
    by the place on its axis, all with the frequencies theta^(-2i/K) of `Rotary`. Where no part gives places, every axis
    is the position: the part is then `Rotary`.

    Args:
        sections: the number of pairs of each axis, K / 2 together.

    Shape: (B, T, H, K) -> same.
    """

    def __init__(self, dim: int, sections: tuple[int, ...], theta: float = 10000.0, pairs: str = "half"):
        super().__init__(dim, theta, pairs=pairs)
        if min(sections, default=0) < 1 or sum(sections) != self.width // 2:
            raise ValueError(f"RotaryAxes: sections are pairs, {self.width // 2} together; got {sections}")
        self.sections = sections
        self._key = ("rotary axes", dim, theta, pairs, sections)

    def angles(self, flow: Flow) -> tuple[Tensor, float]:
        if (axes := flow.find(Axes)) is None:
            return super().angles(flow)
        places = axes.places
        if len(places) != len(self.sections):
            raise ValueError(f"RotaryAxes has {len(self.sections)} sections, and the tokens {len(places)} places each")
        steps = torch.arange(0, self.width, 2, device=places.device, dtype=torch.float32)
        frequencies = 1.0 / self.theta ** (steps / self.width)  # (K/2,)
        parts = [
            place[..., None].float() * section
            for place, section in zip(places, frequencies.split(self.sections), strict=True)
        ]
        return torch.cat(parts, -1)[:, :, None], 1.0  # (B, T, 1, K/2)
