"""The front-end of a convolutional network. B batch, C channels, R rows, S columns, T = R S cells, D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from anyformer.core.flow import Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.core.part import drop
from anyformer.core.recipe import Recipe
from anyformer.parts.attention.where import Where
from anyformer.parts.convnet import ConvNet, Extent
from anyformer.parts.embeddings import Cells
from anyformer.parts.places import Places


class Features(FrontEnd):
    """A picture as the cells of a convolutional network (Carion et al., 2020; arXiv:2005.12872).

    ```
    pixels (B, C, height, width) ── net ── 1 x 1 ──> cells (B, T, D);  places of the cells: `Where`, for attention
    ```
    Pictures of several sizes share a batch, from the top left, with `pixel_mask`: each has the numbers that it has
    alone. Without the mask every pixel is real.

    Args:
        net: `ConvNet.of(...)`.
        channels: colours.
        places: of the cells: `ShareSines.of()`, `GridTable.of()`.
        dropout: at the end.

    Shape: (B, C, height, width) -> (B, T, D), with the padding mask of the cells in the flow.
    """

    main = "pixel_values"

    def __init__(self, dim: int, net: Recipe[ConvNet], places: Recipe[Places], channels: int = 3, dropout: float = 0.0):
        super().__init__()
        self.channels, self.dropout = channels, dropout
        self.net = net.build(channels)
        self.project = nn.Conv2d(self.net.width, dim, 1)
        self.places = places.build(dim)

    def inputs(self) -> dict[str, Input]:
        pixels = Input(("channels", "height", "width"), fixed=("channels",))
        return {"pixel_values": pixels, "pixel_mask": Input(("height", "width"), required=False, ids=True)}

    def length(self, inputs: Inputs) -> int:
        rows, columns = self.cells(inputs)
        return rows * columns

    def cells(self, inputs: Inputs) -> tuple[int, int]:
        pixels, mask = inputs["pixel_values"], inputs.get("pixel_mask")
        if pixels.ndim != 4 or pixels.shape[1] != self.channels or not min(pixels.shape[2:]):
            raise ValueError(f"pixel_values must be (batch, {self.channels}, height, width), got {tuple(pixels.shape)}")
        wanted = (pixels.shape[0], *pixels.shape[2:])
        if mask is not None and tuple(mask.shape) != wanted:
            raise ValueError(f"pixel_mask must be {wanted}, as pixel_values have it, got {tuple(mask.shape)}")
        return self.net.cells(pixels.shape[2]), self.net.cells(pixels.shape[3])

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        height, width = (n * self.net.stride - 1 for n in size[:2])  # no whole number of cells, which is the usual case
        return {"pixel_values": torch.randn(rows, self.channels, height, width, generator=noise)}

    def sizes(self) -> list[tuple[int, ...]]:
        return [(3, 2), (1, 1), (2, 4), (5, 3)]

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        mask = inputs.get("pixel_mask")
        x, extent = self.net(inputs["pixel_values"], None if mask is None else extent_of(mask))
        x = self.project(x)  # (B, D, R, S)
        rows, columns = x.shape[2], x.shape[3]
        flow.put(Cells(rows, columns, first=0))
        flow.put(Where(self.places(rows, columns, extent, x)))
        if extent is not None:
            flow.keep = extent.real(rows, columns).flatten(1)  # (B, T)
        return drop(self, x.flatten(2).mT)


def extent_of(mask: Tensor) -> Extent | None:
    """The extents that a mask of pixels marks, (B, height, width), 1 or True = real; None if every pixel is.

    Raises:
        ValueError: for real pixels of a row that are no rectangle from the top left, or none at all.
    """
    real = mask != 0
    extent = Extent(real.any(2).sum(1), real.any(1).sum(1))
    if not torch.compiler.is_compiling() and not isinstance(mask, FakeTensor) and not mask.is_meta:
        wrong = (real != extent.real(*mask.shape[1:])[:, 0]).flatten(1).any(1) | (extent.rows == 0)
        for row in wrong.nonzero().flatten().tolist():
            raise ValueError(
                f"pixel_mask of row {row} must mark a rectangle from the top left, and padding at the right and below"
            )
        if bool(real.all()):
            return None
    return extent
