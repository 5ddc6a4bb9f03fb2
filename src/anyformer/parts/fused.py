"""RMSNorm, elu + 1, exp relative to the maximum, short convolutions and detached linear maps with their gradients
written by hand: the same numbers in fewer passes over memory.

In eager training, autograd would save and re-read every intermediate: forward and backward are 1.5 times faster by hand
(figures in docs/log.md). Without gradients, and under a compiler, the plain formula is used.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PIECE = 512  # tokens of a head per piece
WIDE_PIECE = 64  # tokens of all channels per piece
SHORT = 32  # the longest kernel that is applied tap by tap


def traced(x: Tensor) -> bool:
    """True under a compiler or torch.export, which need the plain formula."""
    return torch.compiler.is_compiling() or any(isinstance(size, torch.SymInt) for size in x.shape)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. Shapes: (..., D), (D,) -> (..., D)."""
    by_hand = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if by_hand and not torch.compiler.is_compiling():
        return RootMeanSquare.apply(x, weight, eps)
    return x * _factor(x, eps) * weight


def _factor(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps), (..., 1), in the type of x even under autocast, which would round the sum."""
    cast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if cast else contextlib.nullcontext():
        return torch.rsqrt(torch.linalg.vecdot(x, x)[..., None] / x.shape[-1] + eps)


class RootMeanSquare(torch.autograd.Function):
    """`rms_norm` as n * weight, n = x * r, r = 1 / sqrt(mean(x^2) + eps). Backward: (h - n mean(h n)) r, h = grad *
    weight.

    On a CPU that is LayerNorm's fused backward for a mean of 0, plus r mean(h), which LayerNorm subtracts.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = _factor(x, eps)
        ctx.fused = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
        if ctx.fused:
            ctx.save_for_backward(x, r, weight)
            return (x * r).mul_(weight)
        n = x * r
        ctx.save_for_backward(n, r, weight)
        return n * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        n, r, weight = ctx.saved_tensors
        if ctx.fused:
            x, width, wanted = n, n.shape[-1], (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False)
            of_x, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
                grad.contiguous(), x, [width], torch.zeros_like(r), r, weight, None, wanted
            )
            if wanted[0]:
                of_x.addcmul_(r, (grad @ weight)[..., None], value=1 / width)
            return of_x, of_weight, None
        of_weight = (grad * n).flatten(0, -2).sum(0)  # (D,)
        h = grad * weight
        mean = torch.linalg.vecdot(h, n)[..., None] / n.shape[-1]  # (..., 1)
        return torch.addcmul(h, n, mean, value=-1).mul_(r), of_weight, None


def elu_plus_one(x: Tensor) -> Tensor:
    """x + 1 above 0, exp(x) below: never negative. Any shape. F.elu(x) + 1 is 0 from -17 on, and its gradient does not
    compile."""
    if traced(x):
        return x.clamp(max=0).exp() + x.relu()
    return EluPlusOne.apply(x)


class EluPlusOne(torch.autograd.Function):
    """`elu_plus_one`; its derivative is its value, up to 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        pieces = (torch.atleast_2d(t).split(PIECE, -2) for t in (x, y))
        for x_p, y_p in zip(*pieces, strict=True):  # intermediate values stay in the processor's cache
            torch.clamp(x_p, max=0, out=y_p).exp_().add_(x_p.relu())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return y.clamp(max=1).mul_(grad)


def relative_exp(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """exp(x - m) + eps and m, the maximum of each row. Shape: (..., M) -> (..., M), (..., 1)."""
    if traced(x):
        top = x.max(-1, keepdim=True).values
        return (x - top).exp() + eps, top
    return RelativeExp.apply(x, eps)


class RelativeExp(torch.autograd.Function):
    """`relative_exp`. Backward: d = grad * exp(x - m), plus grad_m - sum d at the maximum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        top, place = x.max(-1, keepdim=True)
        y = (x - top).exp_().add_(eps)
        ctx.save_for_backward(y, place)
        ctx.eps = eps
        return y, top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_top: Tensor) -> tuple[Tensor, None]:
        y, place = ctx.saved_tensors
        of_x = (y - ctx.eps).mul_(grad)
        return of_x.scatter_add_(-1, place, grad_top - of_x.sum(-1, keepdim=True)), None


def depthwise(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A kernel for each channel: y_t = sum_w inputs_{t+w} weight_w + bias.

    On a CPU short kernels are applied tap by tap to pieces that stay in the cache: PyTorch's convolution transposes the
    text first, and takes several times as long.

    Shapes: inputs (B, W - 1 + T, E), weight (E, 1, W), bias (E,) -> (B, T, E).
    """
    supported = inputs.dtype in (torch.float32, torch.float64) and weight.dtype == inputs.dtype
    if supported and inputs.device.type == "cpu" and weight.shape[2] <= SHORT and not traced(inputs):
        return Depthwise.apply(inputs, weight, bias)
    return F.conv1d(inputs.mT, weight, bias, groups=weight.shape[0]).mT


class Depthwise(torch.autograd.Function):
    """`depthwise` on a CPU."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        taps = weight[:, 0].T.contiguous()  # (W, E)
        y = inputs.new_empty(inputs.shape[0], inputs.shape[1] - len(taps) + 1, len(weight))
        for start in range(0, y.shape[1], WIDE_PIECE):
            piece = y[:, start : start + WIDE_PIECE]
            seen = inputs[:, start : start + piece.shape[1] + len(taps) - 1]
            torch.mul(seen[:, : piece.shape[1]], taps[0], out=piece)
            for w in range(1, len(taps)):
                piece.addcmul_(seen[:, w : w + piece.shape[1]], taps[w])
            if bias is not None:
                piece.add_(bias)
        ctx.save_for_backward(inputs, taps)
        ctx.has_bias = bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        inputs, taps = ctx.saved_tensors
        of_inputs, of_taps = torch.zeros_like(inputs), torch.zeros_like(taps)
        for start in range(0, grad.shape[1], WIDE_PIECE):
            piece = grad[:, start : start + WIDE_PIECE]
            for w, tap in enumerate(taps):
                where = slice(start + w, start + w + piece.shape[1])
                of_inputs[:, where].addcmul_(piece, tap)
                of_taps[w] += (piece * inputs[:, where]).sum((0, 1))
        return of_inputs, of_taps.T[:, None], grad.sum((0, 1)) if ctx.has_bias else None


def apart(part: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """`part(x)` twice: with its gradient to x, and without. The parameters have gradients from both.

    A plain linear map runs once, and its backward once. Shapes: (..., D) -> two of (..., E).
    """
    watched = part._forward_hooks or part._forward_pre_hooks  # e.g. split over processes
    if type(part) is not nn.Linear or watched or traced(x):
        return part(x), part(x.detach())
    held = part(x.detach())
    return Through.apply(held, x, part.weight), held


class Through(torch.autograd.Function):
    """y = W x + b, computed from detached x, with the gradient to x restored. Backward: W^T grad for x."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grad, (grad @ weight.to(grad.dtype)).to(ctx.dtype), None
