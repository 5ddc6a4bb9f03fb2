"""Big Transfer's convolutional network. B batch, C channels, R rows, S columns, T = R S cells, D width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.core.part import Part, drop
from anyformer.core.recipe import Recipe
from anyformer.parts.convnet import GroupNorm
from anyformer.parts.embeddings import Cells

EPS = 1e-8  # added to the variance of a filter


def completed(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around (B, C, R, S), at the right and below one more where their number is odd, so that a convolution
    gives ceil(size / stride) cells: they depend on the size of the picture."""
    missing = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:]]
    rows, columns = missing
    around = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return F.pad(x, around) if any(missing) else x


class Standardised(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1, each over its own inputs (Qiao et al., 2019;
    arXiv:1903.10520), with the padding of `completed`."""

    def __init__(self, inputs: int, dim: int, kernel: int, stride: int = 1):
        super().__init__(inputs, dim, kernel, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)).flatten(1)  # (C', C k k)
        variance, mean = torch.var_mean(wide, 1, correction=0, keepdim=True)
        weight = ((wide - mean) * (variance + EPS).rsqrt()).to(x.dtype).view_as(self.weight)
        kernel, stride = self.kernel_size[0], self.stride[0]
        return F.conv2d(completed(x, kernel, stride), weight, None, stride)


class Unit(nn.Module):
    """Convolution, norm, ReLU (`act`)."""

    def __init__(self, inputs: int, dim: int, kernel: int, stride: int, norm: Recipe[GroupNorm], act: bool = True):
        super().__init__()
        self.conv, self.norm, self.act = Standardised(inputs, dim, kernel, stride), norm.build(dim), act

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x), None)
        return x.relu() if self.act else x


class Residual(nn.Module):
    """y = relu(shortcut(x) + units(x)): 1 x 1, a quarter of the channels; 3 x 3; 1 x 1."""

    def __init__(self, inputs: int, dim: int, stride: int, norm: Recipe[GroupNorm], first: bool):
        super().__init__()
        inner = eighths(dim / 4)
        self.units = nn.Sequential(
            Unit(inputs, inner, 1, 1, norm), Unit(inner, inner, 3, stride, norm), Unit(inner, dim, 1, 1, norm, False)
        )
        self.shortcut = Unit(inputs, dim, 1, stride, norm, False) if first else None

    def forward(self, x: Tensor) -> Tensor:
        return (self.units(x) + (x if self.shortcut is None else self.shortcut(x))).relu()


def eighths(width: float) -> int:
    """The multiple of 8 next to a width, at least 8, and not below 0.9 of it."""
    near = max(8, int(width + 4) // 8 * 8)
    return near + 8 if near < 0.9 * width else near


class BiT(Part):
    """A residual network of standardised convolutions and norms of groups (Kolesnikov et al., 2019; arXiv:1912.11370),
    in the form that ViT's hybrids have: norms behind the convolutions, zeros that complete every size.

    Args:
        stem: channels of the first convolution.
        widths, depths: channels, multiples of 8, and residual layers of each stage.
        groups: of the norms.

    Attributes:
        width: channels of its output. stride: pixels a cell.

    Shape: (B, channels, height, width) -> (B, width, R, S).
    """

    given = ("channels",)

    def __init__(
        self,
        channels: int,
        stem: int = 64,
        widths: Sequence[int] = (256, 512, 1024),
        depths: Sequence[int] = (3, 4, 9),
        groups: int = 32,
    ):
        super().__init__()
        if not widths or len(widths) != len(depths) or any(n < 8 or n % 8 for n in widths) or min(depths) < 1:
            raise ValueError(
                f"BiT: widths and depths have one number a stage, widths are multiples of 8; got {widths}, {depths}"
            )
        norm = GroupNorm.of(groups=groups)
        self.stem, self.stages = Unit(channels, stem, 7, 2, norm), nn.ModuleList()
        self.width, self.stride = widths[-1], 2 * 2 ** len(widths)
        for stage, (inputs, dim, depth) in enumerate(zip((stem, *widths), widths, depths, strict=False)):
            layers = [Residual(inputs, dim, 2 if stage else 1, norm, True)]
            self.stages.append(nn.Sequential(*layers, *(Residual(dim, dim, 1, norm, False) for _ in range(depth - 1))))

    def cells(self, size: Any) -> Any:
        """The cells along a side of so many pixels."""
        for _ in range(len(self.stages) + 1):
            size = -(-size // 2)
        return size

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(completed(self.stem(x), 3, 2), 3, 2)
        for stage in self.stages:
            x = stage(x)
        return x


class HybridPatches(FrontEnd):
    """The cells of a convolutional network as a row of patches after a class token (Dosovitskiy et al., 2020;
    arXiv:2010.11929, section 3.1).

    ```
    pixels (B, C, height, width) -> net -> 1 x 1 -> [class] + cells, + positions
    ```
    Other image sizes than the trained one are accepted: the grid of positions is resampled (bilinear).

    Args:
        net: `BiT.of(...)`.
        image: trained height and width in pixels.
        channels: colours.
        dropout: at the end.

    Shape: (B, C, height, width) -> (B, 1 + R S, D).
    """

    main = "pixel_values"
    static = frozenset({"height", "width"})  # five roundings: with open sizes an export takes ten minutes and more

    def __init__(self, dim: int, net: Recipe[BiT], image: int = 384, channels: int = 3, dropout: float = 0.0):
        super().__init__()
        self.channels, self.image, self.dropout, self.net = channels, image, dropout, net.build(channels)
        if image < 1:
            raise ValueError(f"HybridPatches: image must be at least 1 pixel, got {image}")
        self.grid = self.net.cells(image)
        self.project = nn.Conv2d(self.net.width, dim, 1)
        self.cls = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, 1 + self.grid**2, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.cls)
        nn.init.zeros_(self.positions)

    def inputs(self) -> dict[str, Input]:
        return {"pixel_values": Input(("channels", "height", "width"), fixed=("channels",))}

    def length(self, inputs: Inputs) -> int:
        rows, columns = self.cells(inputs)
        return 1 + rows * columns

    def cells(self, inputs: Inputs) -> tuple[int, int]:
        pixels = inputs["pixel_values"]
        if pixels.ndim != 4 or pixels.shape[1] != self.channels or not min(pixels.shape[2:]):
            raise ValueError(f"pixel_values must be (batch, {self.channels}, height, width), got {tuple(pixels.shape)}")
        return self.net.cells(pixels.shape[2]), self.net.cells(pixels.shape[3])

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        height, width = (n * self.net.stride for n in size[:2])
        return {"pixel_values": torch.randn(rows, self.channels, height, width, generator=noise)}

    def sizes(self) -> list[tuple[int, ...]]:
        n = self.grid
        return [(n, n), (1, 1), (n + 1, n), (2 * n, 2 * n)]

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        x = self.project(self.net(inputs["pixel_values"]))  # (B, D, R, S)
        grid = x.shape[2], x.shape[3]
        flow.put(Cells(*grid))
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x.flatten(2).mT), 1)
        return drop(self, x + bilinear(self.positions, *grid))


def bilinear(positions: Tensor, rows: int, columns: int) -> Tensor:
    """(1, 1 + n * n, D) positions of a square grid behind a class token, for another grid."""
    side = round((positions.shape[1] - 1) ** 0.5)
    if isinstance(rows, int) and (rows, columns) == (side, side):  # a symbol (torch.export) is no int
        return positions
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, n, n)
    grid = F.interpolate(grid, (rows, columns), mode="bilinear")
    return torch.cat((positions[:, :1], grid.flatten(2).mT), 1)
