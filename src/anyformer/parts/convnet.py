"""Convolutional networks over pictures of a batch whose sizes differ. B batch, C channels, R rows, S columns.

A picture in a batch has the numbers that it has alone: behind every convolution the cells beyond its own ones are
cleared, as if they were the zeros at the edge.

```
ConvNet     pixels (B, C, height, width) ── stem, half the size ── stages, each but the first half the size ──> cells
CellNorm    the norm of a convolution: FrozenNorm (stored numbers), GroupNorm (of each picture), BatchNorm (of a batch)
```
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.part import Part, check_option
from anyformer.core.recipe import Recipe
from anyformer.parts.norms import RunningNorm

KINDS = ("bottleneck", "basic")
NARROW = 4  # a bottleneck's inner convolution has a quarter of its channels


def after(size: Any, kernel: int, stride: int, padding: int) -> Any:
    """The cells along one side behind a convolution."""
    return (size + 2 * padding - kernel) // stride + 1


@dataclass(frozen=True)
class Extent:
    """The real cells of each picture: so many rows and columns, from the top left."""

    rows: Tensor  # (B,)
    columns: Tensor  # (B,)

    def after(self, kernel: int, stride: int, padding: int) -> Extent:
        """The extent behind a convolution."""
        return Extent(after(self.rows, kernel, stride, padding), after(self.columns, kernel, stride, padding))

    def real(self, rows: int, columns: int) -> Tensor:
        """(B, 1, R, S), True = a real cell."""
        row = torch.arange(rows, device=self.rows.device) < self.rows[:, None]
        column = torch.arange(columns, device=self.rows.device) < self.columns[:, None]
        return (row[:, :, None] & column[:, None])[:, None]

    def clear(self, x: Tensor, value: float = 0.0) -> Tensor:
        """(B, C, R, S) with `value` in all other cells, in place of anything there, NaN included."""
        return x.masked_fill(~self.real(*x.shape[2:]), value)


class CellNorm(Part):
    """Base of the norms behind a convolution: `forward(x, extent)`; an extent of None: all cells are real.

    Shape: (B, C, R, S) -> same.
    """

    @abstractmethod
    def forward(self, x: Tensor, extent: Extent | None) -> Tensor:
        """(B, C, R, S) -> same."""


class FrozenNorm(CellNorm):
    """A batch norm of which everything is stored and nothing is learned: y = (x - mean) / sqrt(var + eps) * weight +
    bias. In training, too: it is another part than `BatchNorm`, not a mode of it.

    With first weights it is no norm at all, so that training needs statistics from files: see `empty`.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for buffer, value in ((self.weight, 1), (self.bias, 0), (self.running_mean, 0), (self.running_var, 1)):
            nn.init.constant_(buffer, value)

    @property
    def empty(self) -> bool:
        """True with the statistics of first weights."""
        return not bool(self.running_mean.any()) and bool((self.running_var == 1).all())

    def forward(self, x: Tensor, extent: Extent | None) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = self.weight.to(wide) * (self.running_var.to(wide) + self.eps).rsqrt()
        shift = self.bias.to(wide) - self.running_mean.to(wide) * scale
        return torch.addcmul(shift[:, None, None], x.to(wide), scale[:, None, None]).to(x.dtype)


class GroupNorm(CellNorm):
    """Each picture's channels normed in groups, over its real cells (Wu and He, 2018; arXiv:1803.08494).

    Args:
        size: channels of a group: the largest divisor of all channels up to this.
        eps: added to the variance.
        groups: their number, in place of `size`; it divides the channels.
    """

    def __init__(self, dim: int, size: int = 8, eps: float = 1e-5, groups: int | None = None):
        super().__init__()
        if size < 1:
            raise ValueError(f"GroupNorm: size, the channels of a group, must be at least 1; got {size}")
        if groups is not None and (groups < 1 or dim % groups):
            raise ValueError(f"GroupNorm: groups={groups} does not divide {dim} channels")
        self.groups = dim // max(n for n in range(1, size + 1) if dim % n == 0) if groups is None else groups
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, extent: Extent | None) -> Tensor:
        if extent is None:
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        grouped = x.unflatten(1, (self.groups, -1))  # (B, G, C / G, R, S)
        real = extent.real(*x.shape[2:])[:, :, None]  # (B, 1, 1, R, S)
        mean, var = moments(grouped, real, (2, 3, 4))
        y = ((grouped - mean) * (var + self.eps).rsqrt()).flatten(1, 2)
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class BatchNorm(RunningNorm, CellNorm):
    """Each channel normed over all real cells of the batch in training, by running means in evaluation, see
    `RunningNorm`: in training a picture's numbers depend on the others of its batch."""

    def forward(self, x: Tensor, extent: Extent | None) -> Tensor:
        if extent is None:
            stored = self.running_mean, self.running_var
            return F.batch_norm(x, *stored, self.weight, self.bias, self.training, self.momentum, self.eps)
        return self.normed(x.movedim(1, -1), extent.real(*x.shape[2:]).movedim(1, -1)).movedim(-1, 1)


def moments(x: Tensor, real: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and variance over the real entries along some axes, which stay with the size 1."""
    real = real.expand_as(x)
    count = real.sum(axes, keepdim=True)
    mean = x.masked_fill(~real, 0.0).sum(axes, keepdim=True) / count
    return mean, (x - mean).masked_fill(~real, 0.0).square().sum(axes, keepdim=True) / count


class Unit(nn.Module):
    """Convolution, norm, ReLU (`act`); other cells than real ones are cleared."""

    def __init__(
        self,
        inputs: int,
        dim: int,
        kernel: int,
        stride: int,
        norm: Recipe[CellNorm],
        act: bool = True,
        dilation: int = 1,
    ):
        super().__init__()
        padding = kernel // 2 * dilation
        self.shape = (kernel - 1) * dilation + 1, stride, padding
        self.conv = nn.Conv2d(inputs, dim, kernel, stride, padding, dilation, bias=False)
        self.norm = norm.build(dim)
        self.act = act

    def forward(self, x: Tensor, extent: Extent | None) -> tuple[Tensor, Extent | None]:
        x, extent = self.conv(x), extent and extent.after(*self.shape)
        x = self.norm(x, extent)
        x = x if extent is None else extent.clear(x)
        return (x.relu() if self.act else x), extent


class Residual(nn.Module):
    """y = relu(x + units(x)), where x is projected if the channels or the size change.

    ```
    bottleneck   1 x 1, a quarter of the channels ── 3 x 3 ── 1 x 1        basic   3 x 3 ── 3 x 3
    ```
    """

    def __init__(
        self,
        inputs: int,
        dim: int,
        stride: int,
        kind: str,
        norm: Recipe[CellNorm],
        early: bool,
        dilations: tuple[int, int] = (1, 1),  # of the first convolution of 3 x 3, of later ones
    ):
        super().__init__()
        if kind == "bottleneck":
            inner, first = dim // NARROW, stride if early else 1
            sizes = [(inputs, inner, 1, first), (inner, inner, 3, stride // first), (inner, dim, 1, 1)]
        else:
            sizes = [(inputs, dim, 3, stride), (dim, dim, 3, 1)]
        at = next(i for i, size in enumerate(sizes) if size[2] == 3)
        self.units = nn.ModuleList()
        for i, size in enumerate(sizes):
            dilation = 1 if size[2] == 1 else dilations[i > at]
            self.units.append(Unit(*size, norm, act=i < len(sizes) - 1, dilation=dilation))
        plain = inputs == dim and stride == 1
        self.shortcut = None if plain else Unit(inputs, dim, 1, stride, norm, act=False)

    def forward(self, x: Tensor, extent: Extent | None) -> tuple[Tensor, Extent | None]:
        y, behind = x, extent
        for unit in self.units:
            y, behind = unit(y, behind)
        return (y + (x if self.shortcut is None else self.shortcut(x, extent)[0])).relu(), behind


class ConvNet(Part):
    """A residual network (He et al., 2015; arXiv:1512.03385), without its classes.

    ```
    7 x 7, every second cell ── largest of 3 x 3, every second cell ── stage ── stage, every second cell ── …
    ```

    Args:
        norm: behind every convolution: `FrozenNorm.of()`, `GroupNorm.of()`, `BatchNorm.of()`.
        stem: channels of the first convolution.
        widths, depths: channels and residual layers of each stage.
        kind: of the layers, bottleneck or basic.
        first_stride: the first stage halves the size, too.
        early: a bottleneck halves the size in its first convolution (as published first), else in its second one.
        dilated: the last stage keeps the size; behind its first convolution of 3 x 3 they look at every second cell
            (DC5).

    Attributes:
        width: channels of its output. stride: pixels a cell.

    Shape: (B, channels, height, width) -> (B, width, R, S), with the extent of its cells.
    """

    given = ("channels",)

    def __init__(
        self,
        channels: int,
        norm: Recipe[CellNorm],
        stem: int = 64,
        widths: Sequence[int] = (256, 512, 1024, 2048),
        depths: Sequence[int] = (3, 4, 6, 3),
        kind: str = "bottleneck",
        first_stride: bool = False,
        early: bool = False,
        dilated: bool = False,
    ):
        super().__init__()
        check_option("ConvNet", "kind", kind, KINDS)
        if not widths or len(widths) != len(depths) or min(*widths, *depths, stem) < 1:
            raise ValueError(f"ConvNet: widths and depths have one number a stage, from 1; got {widths} and {depths}")
        if kind == "bottleneck" and any(width % NARROW for width in widths):
            raise ValueError(f"ConvNet: a bottleneck's widths are divided by {NARROW}; got {widths}")
        self.width = widths[-1]
        self.stem = Unit(channels, stem, 7, 2, norm)
        self.stages, self.stride = nn.ModuleList(), 4
        for stage, (inputs, dim, depth) in enumerate(zip((stem, *widths), widths, depths, strict=False)):
            wide = dilated and stage == len(widths) - 1
            stride = 2 if (stage or first_stride) and not wide else 1
            later = 2 if wide else 1
            first = Residual(inputs, dim, stride, kind, norm, early, (1, later))
            rest = [Residual(dim, dim, 1, kind, norm, early, (later, later)) for _ in range(depth - 1)]
            self.stages.append(nn.ModuleList([first, *rest]))
            self.stride *= stride

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al., 2015; arXiv:1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def cells(self, size: Any) -> Any:
        """The cells along a side of so many pixels."""
        size = after(after(size, 7, 2, 3), 3, 2, 1)
        for stage in self.stages:
            for unit in stage[0].units:  # type: ignore[index]
                size = after(size, *unit.shape)
        return size

    def forward(self, x: Tensor, extent: Extent | None) -> tuple[Tensor, Extent | None]:
        x, extent = self.stem(x if extent is None else extent.clear(x), extent)
        if extent is not None:
            x = extent.clear(x, torch.finfo(x.dtype).min)  # as beyond the edge: never the largest
        x, extent = F.max_pool2d(x, 3, 2, 1), extent and extent.after(3, 2, 1)
        x = x if extent is None else extent.clear(x)
        for stage in self.stages:
            for layer in stage:  # type: ignore[attr-defined]
                x, extent = layer(x, extent)
        return x, extent
