"""Front-ends: what enters the stream. B batch, T time, D width, C channels."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.part import Part, built, call, check_option, drop
from anyformer.core.recipe import Recipe


class Learned(Part):
    """A learned vector for each place, up to `context` of them. Shape: places (T,) or (B, T) -> (..., D).

    Args:
        context: number of places.
        offset: rows in front that no place uses; BART has two.
    """

    def __init__(self, dim: int, context: int, offset: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(context + offset, dim))
        self.offset = offset
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        return F.embedding(positions + self.offset if self.offset else positions, self.weight)


class Sinusoidal(Part):
    """A fixed vector for each place p (Vaswani et al., 2017; arXiv:1706.03762): sin(p w_i), then cos(p w_i), with
    w_i = theta^(-2i/D).

    The paper writes sines and cosines in turns, its code (tensor2tensor) and Marian's files one half after the other,
    as here; the two are one model with the numbers of the stream in another order. Of an odd D the sines have one more.

    Shape: places (T,) or (B, T) -> (..., D).
    """

    def __init__(self, dim: int, theta: float = 10000.0):
        super().__init__()
        self.dim, self.theta = dim, theta

    def forward(self, positions: Tensor) -> Tensor:
        # float64: at place 1000 the angle in float32 is wrong by 6e-5. Apple's GPUs have no float64
        kind = torch.float32 if positions.device.type == "mps" else torch.float64
        steps = torch.arange(0, self.dim, 2, device=positions.device, dtype=kind)
        angles = positions[..., None] * self.theta ** (-steps / self.dim)  # (..., (D + 1) / 2)
        return torch.cat((angles.sin(), angles.cos()[..., : self.dim // 2]), -1).float()


class Table(nn.Embedding):
    """A vector for each id; read the other way, a score for each id. Shapes: ids (...) -> (..., D) -> (..., V)."""

    def unembed(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Tokens(Part):
    """Token ids to vectors: x = norm(scale * tokens[id] + positions[place] + types[segment]).

    Args:
        vocab: number of token ids.
        positions: places that are added to the token, e.g. `Learned.of(context=512)`; None where attention knows the
            order.
        types: number of segments (BERT has 2), or 0.
        norm: over the sum, or None.
        dropout: at the end.
        scale: of the token; the 2017 Transformer has D^1/2.

    Shape: (B, T) -> (B, T, D).
    """

    takes = "input_ids"

    def __init__(
        self,
        dim: int,
        vocab: int,
        positions: Recipe | None = None,
        types: int = 0,
        norm: Recipe | None = None,
        dropout: float = 0.0,
        scale: float = 1.0,
    ):
        super().__init__()
        self.vocab, self.scale = vocab, scale
        self.tokens = Table(vocab, dim)
        self.positions = built(positions, dim)
        self.types = nn.Embedding(types, dim) if types else None
        self.norm, self.dropout = built(norm, dim), dropout

    def reset_parameters(self) -> None:
        # scaled tokens as large as the sines that are added, which would drown them by the common rule. Where nothing
        # is added it holds: with larger tokens a tied head is sure that the one just read comes again, and stays so
        if self.scale != 1.0 and self.positions is not None:
            nn.init.normal_(self.tokens.weight, std=1 / self.scale)

    def length(self, ids: Tensor) -> int:
        """How many places the input takes."""
        return ids.shape[1]

    def forward(self, ids: Tensor, flow: Flow) -> Tensor:
        x = self.tokens(ids)  # (B, T, D)
        x = x if self.scale == 1.0 else x * self.scale
        if self.types is not None:
            x = x + (self.types.weight[0] if flow.types is None else self.types(flow.types))
        elif flow.types is not None:
            raise ValueError("token_type_ids were given, but this model has no segments (types=0)")
        if self.positions is not None:
            x = x + self.positions(flow.positions).to(x.dtype)
        return drop(self, call(self.norm, x))

    def unembed(self, x: Tensor) -> Tensor:
        """Scores of all tokens by the same table, (B, T, D) -> (B, T, V)."""
        return self.tokens.unembed(x)


class Entry(Part):
    """What one side of an encoder-decoder does with the tokens that both share: x = norm(x + positions[place]) (BART).

    Args:
        positions: places of this side, e.g. `Learned.of(context=1024)`, or None.
        norm: over the sum, or None.
        dropout: at the end.

    Shape: (B, T, D) -> same.
    """

    def __init__(self, dim: int, positions: Recipe | None = None, norm: Recipe | None = None, dropout: float = 0.0):
        super().__init__()
        self.positions, self.norm, self.dropout = built(positions, dim), built(norm, dim), dropout

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        if self.positions is not None:
            x = x + self.positions(flow.positions).to(x.dtype)
        return drop(self, call(self.norm, x))


class Grid(Part):
    """Base of the places that `Patches(positions=…)` takes: a vector for each cell of any grid."""

    @abstractmethod
    def forward(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """(rows * columns, D), row by row."""


class Patches(Part):
    """An image as a row of patches behind a class token (Dosovitskiy et al., 2020; arXiv:2010.11929).

    ```
    pixels (B, C, height, width) -> patches of patch x patch, each one vector -> [class] + patches, + positions
    ```
    Another image size than the one that was trained is accepted: the grid of positions is resampled (bicubic).

    Args:
        image: trained height and width in pixels, a number or a pair.
        patch: height and width of a patch.
        channels: colours.
        bias: of the projection.
        dropout: at the end.
        positions: "learned", a table of the trained grid; a part for any grid, e.g. `Sines2D.of()`; None where
            attention knows the place (`Rotary2D`).

    Shape: (B, C, height, width) -> (B, 1 + height / patch * width / patch, D).
    """

    takes = "pixel_values"
    unembed = None

    def __init__(
        self,
        dim: int,
        image: int = 224,
        patch: int = 16,
        channels: int = 3,
        bias: bool = True,
        dropout: float = 0.0,
        positions: Recipe | str | None = "learned",
    ):
        super().__init__()
        if patch < 1 or image % patch:
            raise ValueError(f"Patches: an image of {image} pixels is no whole number of patches of {patch}")
        self.grid, self.patch, self.channels = image // patch, patch, channels
        self.project = nn.Conv2d(channels, dim, patch, patch, bias=bias)
        self.cls = nn.Parameter(torch.empty(1, 1, dim))
        if isinstance(positions, Recipe):
            if not issubclass(positions.part, Grid):
                raise ValueError(f"Patches: positions is 'learned', Sines2D.of() or None; got {positions!r}")
            self.positions: Any = positions.build(dim)
        else:
            check_option("Patches", "positions", positions, ("learned", None))
            self.positions = nn.Parameter(torch.empty(1, 1 + self.grid**2, dim)) if positions else None
        self.dropout = dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.cls, std=0.02)
        if isinstance(self.positions, nn.Parameter):
            nn.init.normal_(self.positions, std=0.02)

    def length(self, pixels: Tensor) -> int:
        """How many places the input takes.

        Raises:
            ValueError: if the pixels do not have the expected channels, or are no whole number of patches.
        """
        if pixels.ndim != 4 or pixels.shape[1] != self.channels:
            raise ValueError(f"pixel_values must be (batch, {self.channels}, height, width), got {tuple(pixels.shape)}")
        if pixels.shape[2] % self.patch or pixels.shape[3] % self.patch:
            raise ValueError(
                f"pixel_values of {tuple(pixels.shape[2:])} pixels are no whole number of patches of {self.patch}"
            )
        return 1 + (pixels.shape[2] // self.patch) * (pixels.shape[3] // self.patch)

    def forward(self, pixels: Tensor, flow: Flow) -> Tensor:
        x = self.project(pixels)  # (B, D, rows, columns)
        flow.grid = (x.shape[2], x.shape[3])
        cells = x.flatten(2).mT  # (B, rows * columns, D)
        if isinstance(self.positions, Grid):
            cells = cells + self.positions(*flow.grid, x.device).to(x.dtype)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), cells), 1)  # (B, 1 + rows * columns, D)
        if isinstance(self.positions, nn.Parameter):
            x = x + resample_grid(self.positions, *flow.grid)
        return drop(self, x)


def resample_grid(positions: Tensor, rows: int, columns: int) -> Tensor:
    """(1, 1 + n * n, D) positions of a square grid behind a class token, for another grid: bicubic, the class token
    kept."""
    side = round((positions.shape[1] - 1) ** 0.5)
    if isinstance(rows, int) and (rows, columns) == (side, side):  # a symbol (torch.export) is no int: always resample
        return positions
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, n, n)
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
    return torch.cat((positions[:, :1], grid.flatten(2).mT), 1)
