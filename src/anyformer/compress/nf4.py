"""Weights in 4 bits: each as one of 16 levels, times the largest value of its block (Dettmers et al., 2023;
arXiv:2305.14314, QLoRA).

    a_b = max |W| in block b of 64        q = the nearest of LEVELS to W / a_b        W ≈ a_b LEVELS[q]

The levels (NF4) are quantiles of the normal distribution, so that normal weights use each about equally often.
`double`: the a_b themselves are stored in 8 bits, in groups of 256: a_b ≈ low + step k, rounded up so that no weight is
outside its block. The paper takes 8-bit floats there; whole steps are simpler and have a provable error bound.

Stated error: a weight is off by at most HALF a_b (half the widest gap between two levels, 0.152), an output by at most
HALF x sum_j a_b(i, j) |x_j|, plus the rounding of floats (`Nf4Linear.bound`). A weight takes 4.5 bits, with `double`
4.13. Nothing here learns; `train.lora` puts adapters on top (QLoRA), and gradients pass through to the input.

    print(quantise(model))                 # nf4: 210 of 210 linear layers, 538.1 MB -> 175.2 MB, weights off by …

A rewrite of the tree, for every `nn.Linear` of every model. I inputs, O outputs, N blocks, G groups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from anyformer.core.rewrite import rewrite, select

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
HALF = max(b - a for a, b in itertools.pairwise(LEVELS)) / 2
BLOCK, GROUP = 64, 256
CHUNK = 4096  # blocks that are rounded at one time
MERGE = "it holds 4-bit weights: lora.merge(model) and nf4.dequantise(model) restore full ones first"


class Nf4(nn.Module):
    """A matrix in 4 bits.

    Buffers: `codes` (N x 32,) uint8, two weights a byte; `largest` (N,) float32, or with `double` `steps` (N,) uint8,
    `low` and `step` (G,) float32.
    """

    codes: Tensor

    def __init__(self, matrix: Tensor, double: bool = True):
        super().__init__()
        self.shape, self.dtype, self.twice = tuple(matrix.shape), matrix.dtype, double
        blocks = F.pad(matrix.flatten(), (0, -matrix.numel() % BLOCK)).view(-1, BLOCK)  # (N, 64)
        largest = blocks.abs().amax(1).float()  # (N,)
        if double:
            self._in_8_bits(largest)
            largest = self.scales()
        else:
            self.register_buffer("largest", largest)
        middles = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(LEVELS)], device=matrix.device)
        parts = zip(blocks.split(CHUNK), largest.split(CHUNK), strict=True)
        tiny = torch.finfo(torch.float32).tiny  # for a block of zeros
        index = [torch.bucketize(w.float() / a.clamp(min=tiny)[:, None], middles).to(torch.uint8) for w, a in parts]
        high, low = torch.cat(index).view(-1, 2).unbind(1)
        self.register_buffer("codes", high * 16 + low)

    def _in_8_bits(self, largest: Tensor) -> None:
        """Keeps (N,) values as whole steps above the smallest of their group, rounded up."""
        groups = F.pad(largest[None], (0, -len(largest) % GROUP), mode="replicate").view(-1, GROUP)  # (G, 256)
        low = groups.amin(1)
        step = (groups.amax(1) - low) / 255
        step = step.clamp(min=torch.finfo(torch.float32).tiny)
        steps = ((groups - low[:, None]) / step[:, None]).ceil().clamp(0, 255).to(torch.uint8)
        self.register_buffer("steps", steps.flatten()[: len(largest)].clone())
        self.register_buffer("low", low)
        self.register_buffer("step", step)

    def scales(self) -> Tensor:
        """The a of each block, (N,) float32."""
        if not self.twice:
            return self.largest  # type: ignore[return-value]
        group = torch.arange(len(self.steps), device=self.steps.device) // GROUP  # type: ignore[arg-type]
        return self.low[group] + self.step[group] * self.steps  # type: ignore[index,operator]

    def dequantised(self) -> Tensor:
        """The dequantised matrix, (O, I) float32."""
        levels = torch.tensor(LEVELS, device=self.codes.device)
        pairs = torch.stack((levels.repeat_interleave(16), levels.repeat(16)), 1)  # (256, 2): both values of each byte
        blocks = F.embedding(self.codes.int(), pairs).view(-1, BLOCK)  # (N, 64)
        return blocks.mul_(self.scales()[:, None]).flatten()[: math.prod(self.shape)].view(self.shape)

    def bounds(self) -> Tensor:
        """The a of each weight's block, (O, I) float32: a weight is off by at most HALF of it."""
        return self.scales()[:, None].expand(-1, BLOCK).flatten()[: math.prod(self.shape)].view(self.shape)


class _Product(torch.autograd.Function):
    """x times a 4-bit matrix. The full matrix is made twice, in forward and in backward, and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Nf4) -> Tensor:
        ctx.matrix = matrix
        return F.linear(x, matrix.dequantised().to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad @ ctx.matrix.dequantised().to(grad.dtype), None


def linear(x: Tensor, weight: Tensor | Nf4, bias: Tensor | None) -> Tensor:
    """x W^T + b for a matrix in full or in 4 bits. Shape: (..., I) -> (..., O)."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        y = _Product.apply(x, weight)
    else:
        y = F.linear(x, weight.dequantised().to(x.dtype))
    return y if bias is None else y + bias


class Nf4Linear(nn.Module):
    """A linear layer with an `Nf4` as `weight`; `bias` is unchanged. Shape: (..., I) -> (..., O)."""

    unsaved = MERGE
    weight: Nf4

    def __init__(self, base: nn.Linear, double: bool = True):
        super().__init__()
        self.weight, self.bias = Nf4(base.weight.detach(), double), base.bias
        self.out_features, self.in_features = self.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def bound(self, x: Tensor) -> Tensor:
        """The largest possible error of each output, (..., I) -> (..., O)."""
        rounding = 2 * (x.shape[-1] * torch.finfo(torch.float32).eps + 2 * torch.finfo(x.dtype).eps)
        return F.linear(x.abs().float(), self.weight.bounds()) * (HALF + rounding)

    def plain(self) -> nn.Linear:
        """The same function with a full matrix."""
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        made.weight, made.bias = nn.Parameter(self.weight.dequantised().to(self.weight.dtype)), self.bias
        return made

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, 4 bits"


@dataclass(frozen=True)
class Coverage:
    """The report of `quantise`. Bytes are those of all parameters and buffers of the model."""

    layers: tuple[str, ...]  # paths of the linear layers that are in 4 bits now
    of: int  # linear layers in the model
    before: int
    after: int
    error: float  # the largest |W - Wq|
    share: float  # the largest |W - Wq| / a of its block: at most HALF

    def __str__(self) -> str:
        return (
            f"nf4: {len(self.layers)} of {self.of} linear layers, {self.before / 1e6:.1f} MB -> "
            f"{self.after / 1e6:.1f} MB, weights off by at most {self.error:.2g} ({self.share:.3f} of their block's "
            "largest)"
        )


@torch.no_grad()
def quantise(model: nn.Module, targets: Sequence[str] = ("**",), double: bool = True) -> Coverage:
    """Quantises the linear layers at the targets to 4 bits, in place.

    Args:
        targets: path patterns (see `core.rewrite.select`); every linear layer by default.
        double: the blocks' largest values in 8 bits, too.

    Raises:
        ValueError: for a target without a linear layer (with the nearest paths), or weights that are not finite;
            nothing has changed then.
    """
    before, was = _bytes(model), [m for m in model.modules() if isinstance(m, nn.Linear | Nf4Linear)]
    chosen = select(model, *targets, kind=nn.Linear)
    for path, base in chosen.items():
        if not base.weight.isfinite().all():
            raise ValueError(f"{path}.weight holds infinities or NaN, so it has no largest value to scale by")
    made = rewrite(model, *chosen, kind=nn.Linear, make=lambda base: Nf4Linear(base, double))
    error, share = 0.0, 0.0
    for path, new in made.items():
        off = (chosen[path].weight.float() - new.weight.dequantised()).abs()
        error = max(error, float(off.max()))
        share = max(share, float((off / new.weight.bounds().clamp(min=torch.finfo(torch.float32).tiny)).max()))
    return Coverage(tuple(made), len(was), before, _bytes(model), error, share)


@torch.no_grad()
def dequantise(model: nn.Module) -> list[str]:
    """Replaces 4-bit matrices by full ones with the dequantised values; the rounding error stays.

    Returns:
        The paths that were in 4 bits; an empty list is no error.
    """
    there = [m for m in model.modules() if isinstance(m, Nf4Linear)]
    return list(rewrite(model, "**", kind=Nf4Linear, make=Nf4Linear.plain)) if there else []


def _bytes(model: nn.Module) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
