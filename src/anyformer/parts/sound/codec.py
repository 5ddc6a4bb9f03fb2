"""Convolutions of a codec: sound to vectors, and vectors to sound (SEANet).

P pieces of sound, C channels, N samples, F frames, D width of the stream, W width of a layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.part import Part, check_option
from anyformer.core.value import Value

NORMS, PADS = ("weight", "group"), ("reflect", "constant", "replicate")


@dataclass(frozen=True)
class Convolutions(Value):
    """Options that both sides of a codec share.

    Attributes:
        filters: W of the layer next to the samples; each stage towards the vectors doubles it.
        ratios: samples to a frame, one factor for each stage, that of the vectors' side first.
        residual: blocks of each stage. growth: of their dilation, block by block. compress: W over the width inside.
        kernel, last_kernel, residual_kernel: of the first, the last, and the blocks' convolutions.
        causal: a frame sees no later sample.
        pad: beyond the ends: reflect, constant (zeros), replicate.
        norm: weight: of each filter (Salimans and Kingma, 2016; arXiv:1602.07868); group: over a piece's channels and
            frames, after each convolution.
        lstm: layers. shortcut: a convolution beside a block, in place of nothing.
    """

    filters: int = 32
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    residual: int = 1
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    growth: int = 2
    causal: bool = True
    pad: str = "reflect"
    norm: str = "weight"
    compress: int = 2
    lstm: int = 2
    shortcut: bool = True

    def __post_init__(self) -> None:
        check_option("Convolutions", "norm", self.norm, NORMS)
        check_option("Convolutions", "pad", self.pad, PADS)
        named = ("filters", "kernel", "last_kernel", "residual_kernel", "growth", "compress", "lstm")
        if low := next((n for n in named if getattr(self, n) < 1), None):
            raise ValueError(f"Convolutions: {low} is at least 1, got {getattr(self, low)}")
        if not self.ratios or min(self.ratios) < 1 or self.residual < 0:
            raise ValueError(
                f"Convolutions: ratios are at least 1, one or more, and residual at least 0; got {self.ratios} and "
                f"{self.residual}"
            )
        if self.filters < self.compress:
            raise ValueError(f"Convolutions: compress={self.compress} leaves nothing of {self.filters} filters")

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return math.prod(self.ratios)


class Normed(Part):
    """A convolution over time with a weight norm, or a norm over the piece behind it.

    ```
    weight = gain_c direction_c / |direction_c|       c: the first axis, of outputs; of inputs in a transposed one
    ```
    Parameters: `gain`, `direction`, `bias`; with a norm over the piece `weight`, `bias`, `norm`.
    """

    def __init__(self, dim: int, width: int, kernel: int, how: Convolutions, transposed: bool = False):
        super().__init__()
        shape = (dim, width, kernel) if transposed else (width, dim, kernel)
        self.inputs = dim * kernel
        self.transposed, self.normed = transposed, how.norm == "weight"
        if self.normed:
            self.gain, self.direction = nn.Parameter(torch.empty(shape[0], 1, 1)), nn.Parameter(torch.empty(shape))
        else:
            self.weight = nn.Parameter(torch.empty(shape))
            self.norm = nn.GroupNorm(1, width)
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        matrix = self.direction if self.normed else self.weight
        if matrix.is_meta:
            return  # there, arithmetic imports PyTorch's compiler
        if self.transposed:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5)) if self.normed else nn.init.normal_(matrix, std=0.02)
            nn.init.zeros_(self.bias)
        else:
            nn.init.kaiming_normal_(matrix)
            bound = 1 / math.sqrt(self.inputs)
            nn.init.uniform_(self.bias, -bound, bound)
        if self.normed:
            with torch.no_grad():
                self.gain.copy_(self._length())
        else:
            nn.init.ones_(self.norm.weight)
            nn.init.zeros_(self.norm.bias)

    def _length(self) -> Tensor:
        return torch.linalg.vector_norm(self.direction, dim=(1, 2), keepdim=True)

    def matrix(self) -> Tensor:
        """The weight of the convolution."""
        return self.direction * (self.gain / self._length()) if self.normed else self.weight

    def after(self, x: Tensor) -> Tensor:
        """The norm over the piece, where there is one."""
        return x if self.normed else self.norm(x)


class CodecConvolution(Normed):
    """A convolution over time with ceil(N / stride) outputs: padded at both ends, the last output to full samples.

    In a causal one all padding but that of the last output is on the left. A piece shorter than what is reflected is
    first filled with zeros.

    Shape: (P, C, N) -> (P, width, ceil(N / stride)).
    """

    def __init__(self, dim: int, width: int, kernel: int, how: Convolutions, stride: int = 1, dilation: int = 1):
        super().__init__(dim, width, kernel, how)
        self.stride, self.dilation, self.pad = stride, dilation, how.pad
        total = (kernel - 1) * dilation + 1 - stride
        self.right = 0 if how.causal else total // 2
        self.left = total - self.right

    def forward(self, x: Tensor) -> Tensor:
        right = self.right + -x.shape[-1] % self.stride
        reflects = self.pad == "reflect"
        x = reflected(x, self.left, right) if reflects else F.pad(x, (self.left, right), self.pad)
        return self.after(F.conv1d(x, self.matrix(), self.bias, self.stride, dilation=self.dilation))


def reflected(x: Tensor, left: int, right: int) -> Tensor:
    """A piece (P, C, N) mirrored at both ends; one with too few samples as if it went on with zeros."""
    count = x.shape[-1]
    if isinstance(count, int) and count > max(left, right):
        return F.pad(x, (left, right), "reflect")
    last = torch.sym_max(count - 1, torch.sym_max(left, right))  # without a branch: a program has an open length
    places = torch.arange(-left, count + right, device=x.device).abs()
    places = last - (last - places).abs()
    return x[..., places.clamp(max=count - 1)].masked_fill(places >= count, 0)


class CodecTransposed(Normed):
    """A transposed convolution over time: `stride` outputs a frame, the surplus cut off: a share `trim` at the end.

    Shape: (P, C, F) -> (P, width, stride F).
    """

    def __init__(self, dim: int, width: int, stride: int, how: Convolutions, trim: float):
        super().__init__(dim, width, 2 * stride, how, transposed=True)
        self.stride = stride
        self.right = math.ceil(stride * trim) if how.causal else stride // 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(F.conv_transpose1d(x, self.matrix(), self.bias, self.stride))
        return x[..., self.stride - self.right : x.shape[-1] - self.right]


class CodecBlock(Part):
    """y = shortcut(x) + second(elu(first(elu(x)))). Shape: (P, W, N) -> same."""

    def __init__(self, dim: int, how: Convolutions, dilation: int):
        super().__init__()
        inside = dim // how.compress
        self.first = CodecConvolution(dim, inside, how.residual_kernel, how, dilation=dilation)
        self.second = CodecConvolution(inside, dim, 1, how)
        self.shortcut = CodecConvolution(dim, dim, 1, how) if how.shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.shortcut is None else self.shortcut(x)) + self.second(F.elu(self.first(F.elu(x))))


class CodecLSTM(Part):
    """y = x + LSTM(x), over time (Hochreiter and Schmidhuber, 1997). Shape: (P, W, F) -> same."""

    def __init__(self, dim: int, layers: int):
        super().__init__()
        self.dim, self.layers = dim, layers
        for layer in range(layers):
            for side in ("ih", "hh"):
                self.register_parameter(f"weight_{side}_l{layer}", nn.Parameter(torch.empty(4 * dim, dim)))
            for side in ("ih", "hh"):
                self.register_parameter(f"bias_{side}_l{layer}", nn.Parameter(torch.empty(4 * dim)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.dim**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound) if parameter.ndim == 2 else nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        series = x.permute(2, 0, 1)  # (F, P, W)
        start, weights = series.new_zeros(self.layers, series.shape[1], self.dim), tuple(self.parameters())
        y = torch.lstm(series, (start, start), weights, True, self.layers, 0.0, self.training, False, False)[0]
        return (y + series).permute(1, 2, 0)


class CodecDown(Part):
    """Residual blocks, then fewer frames and twice the width. Shape: (P, W, N) -> (P, 2 W, ceil(N / ratio))."""

    def __init__(self, dim: int, ratio: int, how: Convolutions):
        super().__init__()
        self.blocks = nn.ModuleList(CodecBlock(dim, how, how.growth**i) for i in range(how.residual))
        self.scale = CodecConvolution(dim, 2 * dim, 2 * ratio, how, stride=ratio)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.scale(F.elu(x))


class CodecUp(Part):
    """More frames and half the width, then residual blocks. Shape: (P, W, F) -> (P, W / 2, ratio F)."""

    def __init__(self, dim: int, ratio: int, how: Convolutions, trim: float):
        super().__init__()
        self.scale = CodecTransposed(dim, dim // 2, ratio, how, trim)
        self.blocks = nn.ModuleList(CodecBlock(dim // 2, how, how.growth**i) for i in range(how.residual))

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale(F.elu(x))
        for block in self.blocks:
            x = block(x)
        return x


class SoundDecoder(Part):
    """Vectors of frames to sound: the encoder's layers backwards (Défossez et al., 2022; arXiv:2210.13438).

    Args:
        how: as in `SoundEncoder`.
        channels: C of the sound.
        trim: the share of a causal transposed convolution's surplus that is cut off at the end.

    Shape: (P, D, F) -> (P, C, hop F).
    """

    def __init__(self, dim: int, how: Convolutions, channels: int = 1, trim: float = 1.0):
        super().__init__()
        if channels < 1 or not 0 <= trim <= 1 or (trim != 1 and not how.causal):
            raise ValueError(
                f"SoundDecoder: channels is at least 1 and trim 0 … 1, other than 1 in causal ones only; got "
                f"channels={channels}, trim={trim}"
            )
        widths = [how.filters << i for i in range(len(how.ratios), 0, -1)]
        self.first = CodecConvolution(dim, widths[0], how.kernel, how)
        self.lstm = CodecLSTM(widths[0], how.lstm)
        self.stages = nn.ModuleList(CodecUp(w, r, how, trim) for w, r in zip(widths, how.ratios, strict=True))
        self.last = CodecConvolution(how.filters, channels, how.last_kernel, how)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(self.first(x))
        for stage in self.stages:
            x = stage(x)
        return self.last(F.elu(x))
