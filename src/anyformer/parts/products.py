"""Products with the matrix of a linear layer, by the faster of two libraries. M rows, D inputs, N outputs.

    y = act(x W^T + b)          dx = g W          dW = g^T x          db = sum of g over rows

PyTorch multiplies float32 on a CPU by MKL, which on a processor of AMD takes a slow path; its other library, oneDNN,
makes code for the processor at hand and adds bias and activation in the same pass. There the products of large
matrices are oneDNN's; every other layer, type, device and transformation calls the layer as it is. The numbers differ
by their rounding alone; figures are in docs/log.md.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode

from anyformer.core.checks import traced
from anyformer.core.machine import about

LEAST = 1 << 17  # numbers of a matrix: below, the call of oneDNN costs more than it saves
ROWS = 32  # rows of the input: below, as in decoding, oneDNN takes 0.9 to 1.7 times as long
EVEN, MANY = 4, 256  # rows are a multiple of it; where adding some costs nothing
ENDS = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", ""), "silu": ("swish", "")}


def product(layer: Any, x: Tensor, act: str = "") -> Tensor:
    """The output of a linear layer, (..., D) -> (..., N); of another module in its place (an adapter, 4 bits), its own.

    Args:
        act: one of `ENDS`, which is then applied, too: only where `fused` says so.
    """
    if not fast(layer, x):
        assert not act
        made: Tensor = layer(x)
        return made
    learned = [x, layer.weight, *([] if layer.bias is None else [layer.bias])]
    if torch.is_grad_enabled() and any(t.requires_grad for t in learned):
        assert not act
        made = Product.apply(x, layer.weight, layer.bias)
        return made
    return _onednn(x, layer.weight, layer.bias, *ENDS.get(act, ("none", "")))


def narrowed(x: Tensor) -> Tensor:
    """The input of several products: under autocast in its type, so that it is converted once, and its gradient."""
    if x.dtype != torch.float32 or x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def fused(layer: Any, x: Tensor, act: str) -> bool:
    """True if `product` can apply this activation in the same pass: nothing is kept for a backward pass."""
    return act in ENDS and not torch.is_grad_enabled() and fast(layer, x)


def fast(layer: Any, x: Tensor) -> bool:
    """True if the product of this layer is oneDNN's."""
    if type(layer) is not nn.Linear or not faster(x, layer.weight):
        return False
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return not (hooked or hooks._has_any_global_hook())


def faster(x: Tensor, weight: Tensor) -> bool:
    """True if oneDNN's product of these is the faster one, and nothing watches the call."""
    if traced():  # a compiler goes no further
        return False
    if weight.numel() < LEAST or not amd() or x.ndim < 1 or x.numel() < ROWS * x.shape[-1]:
        return False
    plain = type(x) is Tensor and type(weight) in (nn.Parameter, Tensor)
    if not plain or x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32:
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    watched = _get_current_dispatch_mode() is not None or torch._C._len_torch_function_stack() > 0
    return not watched and forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active()


@functools.cache
def amd() -> bool:
    """True on a processor of AMD, if this PyTorch has oneDNN."""
    return about().get("vendor_id") == "AuthenticAMD" and torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )  # fmt: skip


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None, end: str = "none", way: str = "") -> Tensor:
    """act(x W^T + b). oneDNN is a third slower where the rows divide badly (577 = 24 x 24 + 1): some of 0 are added."""
    rows = x.flatten(0, -2)
    short = -len(rows) % EVEN if len(rows) > MANY else 0
    given = F.pad(rows, (0, 0, 0, short)) if short else x
    made: Tensor = torch.ops.mkldnn._linear_pointwise(given, weight, bias, end, [], way)
    return made[: len(rows)].view(*x.shape[:-1], -1) if short else made


class Product(torch.autograd.Function):
    """x W^T + b with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)  # (M, N), (M, D)
        plain = torch.is_grad_enabled()  # for second derivatives
        dx = dw = None
        if of_x:
            dx = grad @ weight if plain else _onednn(grad, weight.t())
        if of_weight:
            dw = rows.t() @ inputs if plain else _onednn(rows.t(), inputs.t())
        return dx, dw, rows.sum(0) if of_bias else None
