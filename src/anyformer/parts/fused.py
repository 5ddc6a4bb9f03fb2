"""RMSNorm and elu + 1 with their gradients written by hand: the same numbers in fewer passes over memory.

In eager training, autograd would keep and re-read every intermediate: forward and backward are 1.5 times faster by hand
(figures in docs/log.md). Without gradients, and under a compiler, the plain formula is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 512  # tokens at a time


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. Shapes: (..., D), (D,) -> (..., D)."""
    by_hand = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if by_hand and not torch.compiler.is_compiling():
        return RootMeanSquare.apply(x, weight, eps)
    return x * _factor(x, eps) * weight


def _factor(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps), (..., 1)."""
    return torch.rsqrt(torch.linalg.vecdot(x, x)[..., None] / x.shape[-1] + eps)


class RootMeanSquare(torch.autograd.Function):
    """`rms_norm` as n * weight, n = x * r, r = 1 / sqrt(mean(x^2) + eps). Backward: (h - n mean(h n)) r, h = grad *
    weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = _factor(x, eps)
        n = x * r
        ctx.save_for_backward(n, r, weight)
        return n * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        n, r, weight = ctx.saved_tensors
        of_weight = (grad * n).flatten(0, -2).sum(0)  # (D,)
        h = grad * weight
        mean = torch.linalg.vecdot(h, n)[..., None] / n.shape[-1]  # (..., 1)
        return torch.addcmul(h, n, mean, value=-1).mul_(r), of_weight, None


def elu_plus_one(x: Tensor) -> Tensor:
    """x + 1 above 0, exp(x) below: never negative. Any shape. F.elu(x) + 1 is 0 from -17 on, and its gradient does not
    compile."""
    if torch.compiler.is_compiling() or any(isinstance(size, torch.SymInt) for size in x.shape):
        return x.clamp(max=0).exp() + x.relu()
    return EluPlusOne.apply(x)


class EluPlusOne(torch.autograd.Function):
    """`elu_plus_one`; its slope is its value, up to 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        pieces = (torch.atleast_2d(t).split(PIECE, -2) for t in (x, y))
        for x_p, y_p in zip(*pieces, strict=True):  # what is between stays in the processor's cache
            torch.clamp(x_p, max=0, out=y_p).exp_().add_(x_p.relu())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        return y.clamp(max=1).mul_(grad)
