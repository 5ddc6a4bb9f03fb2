"""Front-ends of text and images. B batch, T time, D width, C channels."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Companion, Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.core.part import Part, built, call, check_option, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm, Positions


class Learned(Positions):
    """A learned vector per position, up to `context` of them. Shape: positions (T,) or (B, T) -> (..., D).

    Args:
        context: number of positions.
        offset: unused rows in front; BART has two.
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


class Sinusoidal(Positions):
    """A fixed vector per position p (Vaswani et al., 2017; arXiv:1706.03762): sin(p w_i), then cos(p w_i), with
    w_i = theta^(-2i/D).

    The paper alternates sines and cosines, its code (tensor2tensor) and Marian's files put one half after the other,
    as here; the two are one model with the stream's channels in another order. Of an odd D the sines have one more.

    Shape: positions (T,) or (B, T) -> (..., D).
    """

    def __init__(self, dim: int, theta: float = 10000.0):
        super().__init__()
        self.dim, self.theta = dim, theta

    def forward(self, positions: Tensor) -> Tensor:
        # float64: at position 1000 the angle in float32 is wrong by 6e-5. Apple's GPUs have no float64
        kind = torch.float32 if positions.device.type == "mps" else torch.float64
        steps = torch.arange(0, self.dim, 2, device=positions.device, dtype=kind)
        angles = positions[..., None] * self.theta ** (-steps / self.dim)  # (..., (D + 1) / 2)
        return torch.cat((angles.sin(), angles.cos()[..., : self.dim // 2]), -1).float()


class Table(nn.Embedding):
    """A vector per id; transposed, a score per id. Shapes: ids (...) -> (..., D) -> (..., V)."""

    def unembed(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


@dataclass(frozen=True)
class TokenIds(Companion):
    """The ids of the tokens in the stream, (B, T)."""

    left_by: ClassVar[str] = "Tokens"
    per_position: ClassVar[bool] = True
    ids: Tensor


@dataclass(frozen=True)
class Inserted(Companion):
    """Vectors of media, (B, T, D), in place of the tokens where `here` (B, T) is True."""

    left_by: ClassVar[str] = "the skeleton Spliced"
    per_position: ClassVar[bool] = True
    here: Tensor
    vectors: Tensor


class Tokens(FrontEnd):
    """Token ids to vectors: x = norm(scale * tokens[id] + positions[position] + types[segment]).

    Args:
        vocab: number of token ids.
        positions: positions that are added to the token, e.g. `Learned.of(context=512)`; None if attention has
            positions of its own.
        types: number of segments (BERT has 2), or 0.
        norm: over the sum, or None.
        dropout: at the end.
        scale: of the token; the 2017 Transformer has D^1/2.

    Shape: (B, T) -> (B, T, D).
    """

    main, mask = "input_ids", "attention_mask"

    def __init__(
        self,
        dim: int,
        vocab: int,
        positions: Recipe[Positions] | None = None,
        types: int = 0,
        norm: Recipe[Norm] | None = None,
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
        # scaled tokens as large as the added sines, which under the common rule would dominate them. Without positions
        # the rule holds: with larger embeddings a tied head predicts the input token and does not recover
        if self.scale != 1.0 and self.positions is not None:
            nn.init.normal_(self.tokens.weight, std=1 / self.scale)

    def inputs(self) -> dict[str, Input]:
        time = Input(("time",), ("time",), ids=True)
        return {"input_ids": time} | ({"token_type_ids": replace(time, required=False)} if self.types else {})

    def length(self, inputs: Inputs) -> int:
        shape = inputs["input_ids"].shape
        for name, value in inputs.items():
            if value.ndim != 2 or (name != self.mask and value.shape != shape):
                expected = "(batch, tokens)" if len(shape) != 2 else tuple(shape)
                raise ValueError(f"{name} must be {expected}, got {tuple(value.shape)}")
        return shape[1]

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        tables = self._tables().items()
        return {name: torch.randint(0, n, (rows, size[0]), generator=noise) for name, (_, n) in tables}

    def sizes(self) -> list[tuple[int, ...]]:
        return [(16,)]

    def check_ids(self, inputs: Inputs) -> None:
        for name, (what, count) in self._tables().items():
            ids = inputs.get(name, torch.zeros(0))
            bad = ids[(ids < 0) | (ids >= count)]
            if len(bad):
                raise ValueError(
                    f"{what} id {int(bad[0])} in {name} is outside the vocabulary: ids go from 0 to {count - 1}"
                )

    def _tables(self) -> dict[str, tuple[str, int]]:
        """The name and the size of the table for each input of ids, by the input's name."""
        tables = {"input_ids": ("token", self.vocab or 0)}
        return tables | ({"token_type_ids": ("segment", self.types.num_embeddings)} if self.types else {})

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        x = self.vectors(inputs["input_ids"], flow)
        flow.put(TokenIds(inputs["input_ids"]))
        x = x if self.scale == 1.0 else x * self.scale
        if (media := flow.find(Inserted)) is not None:
            x = torch.where(media.here[..., None], media.vectors.to(x.dtype), x)
        if self.types is not None:
            types = inputs.get("token_type_ids")
            x = x + (self.types.weight[0] if types is None else self.types(types))
        if self.positions is not None:
            x = x + self.positions(flow.positions).to(x.dtype)
        return drop(self, call(self.norm, x))

    def vectors(self, ids: Tensor, flow: Flow) -> Tensor:
        """The rows of the table, (B, T) -> (B, T, D)."""
        return self.tokens(ids)

    def unembed(self, x: Tensor) -> Tensor:
        """Scores of all tokens by the same table, (B, T, D) -> (B, T, V)."""
        return self.tokens.unembed(x)


class Entry(Part):
    """The entry of one side of an encoder-decoder, after the shared tokens: x = norm(x + positions[position]) (BART).

    Args:
        positions: positions of this side, e.g. `Learned.of(context=1024)`, or None.
        norm: over the sum, or None.
        dropout: at the end.

    Shape: (B, T, D) -> same.
    """

    def __init__(
        self,
        dim: int,
        positions: Recipe[Positions] | None = None,
        norm: Recipe[Norm] | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.positions, self.norm, self.dropout = built(positions, dim), built(norm, dim), dropout

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        if self.positions is not None:
            x = x + self.positions(flow.positions).to(x.dtype)
        return drop(self, call(self.norm, x))


class Grid(Part):
    """Base of the positions that `Patches(positions=…)` takes: a vector per cell of any grid."""

    @abstractmethod
    def forward(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """(rows * columns, D), row by row."""


@dataclass(frozen=True)
class Cells(Companion):
    """Rows and columns of the stream's grid, which follows `first` other positions: a class token."""

    left_by: ClassVar[str] = "Patches or PatchGrid"
    per_position: ClassVar[bool] = True
    rows: int
    columns: int
    first: int = 1


class Pictures(FrontEnd):
    """Base of the front-ends that cut an image into patches of patch x patch pixels.

    Attributes:
        image: trained height and width in pixels. grid: the whole patches in it, in a row.
    """

    main = "pixel_values"
    image: int
    grid: int
    patch: int
    channels: int

    def inputs(self) -> dict[str, Input]:
        return {"pixel_values": Input(("channels", "height", "width"), fixed=("channels",))}

    def pixels(self, inputs: Inputs) -> Tensor:
        """The checked pixels, (B, C, height, width)."""
        pixels = inputs["pixel_values"]
        if pixels.ndim != 4 or pixels.shape[1] != self.channels:
            raise ValueError(f"pixel_values must be (batch, {self.channels}, height, width), got {tuple(pixels.shape)}")
        return pixels

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        height, width = (n * self.patch for n in size[:2])
        return {"pixel_values": torch.randn(rows, self.channels, height, width, generator=noise)}

    def sizes(self) -> list[tuple[int, ...]]:
        n = self.grid
        return [(n, n), (1, 1), (n + 1, n), (2 * n, 2 * n)]


class Patches(Pictures):
    """An image as a row of patches after a class token (Dosovitskiy et al., 2020; arXiv:2010.11929).

    ```
    pixels (B, C, height, width) -> patches of patch x patch, each one vector -> [class] + patches, + positions
    ```
    Other image sizes than the trained one are accepted: the grid of positions is resampled (bicubic).

    Args:
        image: trained height and width in pixels, a number or a pair.
        patch: height and width of a patch.
        channels: colours.
        bias: of the projection.
        dropout: at the end.
        positions: "learned", a table of the trained grid; a part for any grid, e.g. `Sines2D.of()`; None if
            attention has positions of its own (`Rotary2D`).

    Shape: (B, C, height, width) -> (B, 1 + height / patch * width / patch, D).
    """

    def __init__(
        self,
        dim: int,
        image: int = 224,
        patch: int = 16,
        channels: int = 3,
        bias: bool = True,
        dropout: float = 0.0,
        positions: Recipe[Grid] | str | None = "learned",
    ):
        super().__init__()
        if patch < 1 or image % patch:
            raise ValueError(f"Patches: an image of {image} pixels is no whole number of patches of {patch}")
        self.image, self.grid, self.patch, self.channels = image, image // patch, patch, channels
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

    def length(self, inputs: Inputs) -> int:
        rows, columns = self.cells(inputs)
        return 1 + rows * columns

    def cells(self, inputs: Inputs) -> tuple[int, int]:
        pixels = self.pixels(inputs)
        if pixels.shape[2] % self.patch or pixels.shape[3] % self.patch:
            raise ValueError(
                f"pixel_values of {tuple(pixels.shape[2:])} pixels are no whole number of patches of {self.patch}"
            )
        return pixels.shape[2] // self.patch, pixels.shape[3] // self.patch

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        x = self.project(inputs["pixel_values"])  # (B, D, rows, columns)
        grid = x.shape[2], x.shape[3]
        flow.put(Cells(*grid))
        cells = x.flatten(2).mT  # (B, rows * columns, D)
        if isinstance(self.positions, Grid):
            cells = cells + self.positions(*grid, x.device).to(x.dtype)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), cells), 1)  # (B, 1 + rows * columns, D)
        if isinstance(self.positions, nn.Parameter):
            x = x + resample_grid(self.positions, *grid)
        return drop(self, x)


def resample_grid(positions: Tensor, rows: int, columns: int, first: int = 1) -> Tensor:
    """(1, first + n * n, D) positions of a square grid after `first` others, for another grid: bicubic, the others
    unchanged."""
    side = round((positions.shape[1] - first) ** 0.5)
    if isinstance(rows, int) and (rows, columns) == (side, side):  # a symbol (torch.export) is no int: always resample
        return positions
    grid = positions[:, first:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, n, n)
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
    return torch.cat((positions[:, :first], grid.flatten(2).mT), 1)
