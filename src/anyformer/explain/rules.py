"""The rules of relevance, one for each operation of PyTorch (Bach et al., 2015; Achtibat et al., 2024, AttnLRP,
arXiv:2402.05602). An operation without a rule is an error.

```
matrix, sum, shape, selection   linear: the gradient as it is; what is added is a source
product of n live factors       1 / n of the gradient to each
norm, division                  the divisor is a constant
activation with f(0) = 0        x times the constant f(x) / x, in closed form
softmax, sigmoid, exp …         f(x) = J x + r; r is a source
```
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.explain.linearised import HUGE, Linearised, Rule, live, shared
from anyformer.parts.approximate.fourier import _Transform
from anyformer.parts.attention.blockwise import _Blockwise
from anyformer.parts.attention.kernels import weights
from anyformer.parts.ffn import GatedProduct
from anyformer.parts.fused import Depthwise, EluPlusOne, RelativeExp, RootMeanSquare, Through, _factor
from anyformer.parts.products import Product, faster
from anyformer.parts.recurrent.mamba import CHUNK, side_by_side
from anyformer.parts.recurrent.mamba_cpu import _Scan
from anyformer.skeletons.reversible import _Reversing

QUESTIONS = """shape device dtype numel ndim dim size requires_grad is_meta is_cuda is_cpu is_floating_point
    is_complex is_sparse is_quantized is_contiguous is_leaf is_inference len untyped_storage storage_offset
    isnan isfinite isinf gt lt ge le eq ne argmax argmin argsort sign floor ceil round long int bool item tolist
    layout data_ptr stride grad_fn names element_size nbytes itemsize detach new_zeros new_ones new_empty
    new_full zeros_like ones_like empty_like full_like result_type allclose equal hash type get_device"""
LINEAR = """flatten unflatten getitem transpose swapaxes T mT H permute view view_as reshape roll split chunk
    tensor_split unbind expand expand_as broadcast_to broadcast_tensors repeat repeat_interleave tile squeeze
    unsqueeze contiguous movedim flip rot90 tril triu sum mean cumsum gather index_select take_along_dim neg
    negative positive clone double real imag conj resolve_conj view_as_real view_as_complex fft ifft rfft irfft
    fft2 ifft2 rfft2 narrow select diagonal diag_embed unfold fold avg_pool1d avg_pool2d adaptive_avg_pool1d
    adaptive_avg_pool2d interpolate upsample atleast_1d atleast_2d atleast_3d diff masked_select dropout
    alpha_dropout nan_to_num as_strided as_tensor pixel_shuffle pixel_unshuffle trace"""
SELECTING = """relu leaky_relu abs max min amax amin topk sort max_pool1d max_pool2d max_pool3d median kthvalue
    adaptive_max_pool1d adaptive_max_pool2d"""
PRODUCTS = "matmul mm bmm mv einsum vecdot dot bilinear tensordot outer cross"
SCALES = "rsqrt sqrt reciprocal norm vector_norm var std"


def _all(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


def _plain(mode: Linearised, func: Any, /, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _cast(mode: Linearised, func: Any, /, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A cast to fewer digits, which norms and routers ask for, does not round float64."""
    made = func(x, *args, **kwargs)
    return x if x.dtype == torch.float64 and made.is_floating_point() and made.device == x.device else made


def _product(mode: Linearised, func: Any, /, *args: Any, **kwargs: Any) -> Any:
    return func(*shared(args), **kwargs)


def _constant(mode: Linearised, func: Any, /, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return func(*args, **kwargs)


def _sum(mode: Linearised, func: Any, /, x: Any, y: Any, **kwargs: Any) -> Tensor:
    return func(mode.source(x, y) if live(y) else x, mode.source(y, x) if live(x) else y, **kwargs)


def _joined(mode: Linearised, func: Any, /, tensors: Any, *args: Any, **kwargs: Any) -> Any:
    like = next(t for t in tensors if live(t))
    return func([t if live(t) else mode.source(t, like) for t in tensors], *args, **kwargs)


def _where(mode: Linearised, func: Any, /, *args: Any) -> Any:
    condition, x, y = args if func is not torch.Tensor.where else (args[1], args[0], args[2])
    like = x if live(x) else y
    return torch.where(condition, *(v if live(v) else _shown(mode, v, like) for v in (x, y)))


def _shown(mode: Linearised, value: Any, like: Tensor) -> Any:
    """A constant as a source, unless it hides scores."""
    number = value if not isinstance(value, Tensor) else value.detach().abs().max() if value.numel() == 1 else 0
    return value if abs(float(number)) > HUGE else mode.source(value, like)


def _masked_fill(mode: Linearised, func: Any, /, x: Tensor, mask: Tensor, value: Any) -> Tensor:
    number = float(value)
    if live(x) and (abs(number) > HUGE or not number):
        return x.masked_fill(mask, number)
    return torch.where(mask, mode.source(value, x), x)


def _scattered(mode: Linearised, func: Any, /, x: Tensor, dim: int, index: Tensor, source: Any, **kw: Any) -> Tensor:
    like = x if live(x) else source
    source = source if isinstance(source, Tensor) else torch.full(index.shape, source, dtype=x.dtype)
    return func(mode.source(x, like), dim, index, mode.source(source, like), **kw)


def _setitem(mode: Linearised, func: Any, /, x: Tensor, index: Any, value: Any) -> None:
    if not live(x) and bool(x.any()):
        torch.Tensor.copy_(x, mode.source(x, value))
    func(x, index, value if live(value) else mode.source(value, x))


def _copied(mode: Linearised, func: Any, /, x: Tensor, value: Tensor, *args: Any) -> Tensor:
    return func(x, mode.source(value, x), *args)


def _addcmul(mode: Linearised, func: Any, /, x: Tensor, a: Any, b: Any, *, value: float = 1.0) -> Tensor:
    with mode:
        return x + a * b * value


def _lerp(mode: Linearised, func: Any, /, x: Tensor, y: Tensor, weight: Any) -> Tensor:
    with mode:
        return x + (y - x) * weight


def _linear(
    mode: Linearised, func: Any, /, x: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kw: Any
) -> Tensor:
    """Of linear maps and convolutions."""
    x, weight = shared((x, weight))
    fast = func is F.linear and not live(weight) and faster(x, weight)
    made = Product.apply(x, weight, None) if fast else func(x, weight, None, *args, **kw)
    if bias is None:
        return made
    if func is not F.linear:
        bias = bias[:, None] if made.ndim == 3 else bias[:, None, None]
    return made + (bias if live(bias) else mode.source(bias, made))


def _addmm(
    mode: Linearised, func: Any, /, x: Any, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    with mode:
        return x * beta + a @ b * alpha


def _padded(
    made: Linearised, func: Any, /, x: Tensor, pad: Any, mode: str = "constant", value: float | None = 0
) -> Tensor:
    if mode != "constant" or not value or abs(value) > HUGE:
        return func(x, pad, mode, value)
    return func(x, pad) + made.source(func(torch.zeros_like(x), pad, "constant", value), x)


def _clamped(mode: Linearised, func: Any, /, x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    with mode:
        x = x if min is None else torch.where(x < min, min, x)
        return x if max is None else torch.where(x > max, max, x)


def _larger(mode: Linearised, func: Any, /, x: Tensor, y: Tensor) -> Tensor:
    with mode:
        return torch.where(x > y if func is torch.maximum else x < y, x, y)


def _mul(mode: Linearised, func: Any, /, x: Any, y: Any) -> Tensor:
    return torch.mul(*shared((x, y)))


def _div(mode: Linearised, func: Any, /, x: Any, y: Any, **kwargs: Any) -> Tensor:
    return func(x, y.detach() if isinstance(y, Tensor) else y, **kwargs)


def _pow(mode: Linearised, func: Any, /, x: Any, power: Any) -> Tensor:
    if isinstance(power, Tensor) or not live(x) or power < 1:  # a scale, or a number to the power of x
        return func(x, power).detach()
    return x * x.detach() ** (power - 1)


def _square(mode: Linearised, func: Any, /, x: Tensor) -> Tensor:
    return x * x.detach()


def _gelu(mode: Linearised, func: Any, /, x: Tensor, approximate: str = "none") -> Tensor:
    c = x.detach()
    if approximate == "tanh":
        return x * (0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (c + 0.044715 * c**3))))
    return x * (0.5 * torch.erfc(-c * math.sqrt(0.5)))


def _silu(mode: Linearised, func: Any, /, x: Tensor, inplace: bool = False) -> Tensor:
    return x * x.detach().sigmoid()


def _odd(mode: Linearised, func: Any, /, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """tanh, elu, erf, sin: f(x) / x, and its limit 1 (of erf 2 / sqrt(pi)) at 0."""
    c = x.detach()
    limit = 2 / math.sqrt(math.pi) if func in (torch.erf, torch.Tensor.erf) else 1.0
    some = torch.where(c == 0, 1.0, c)
    return x * torch.where(c == 0, limit, func(some, *args, **kwargs) / some)


def _curved(mode: Linearised, func: Any, /, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """f(x) = f'(x) x + r of an operation on each number alone."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(func(at, *args, **kwargs).sum(), at)
    y = func(x, *args, **kwargs)
    line = slope * at.detach().masked_fill(at.detach().abs() > HUGE, 0.0)
    rest = (y.detach() - line).to(y.dtype)
    return (y - rest) + mode.source(rest, y, "others")


def _softmax(
    mode: Linearised, func: Any, /, x: Tensor, dim: int = -1, *args: Any, dtype: Any = None, **kw: Any
) -> Tensor:
    s = torch.softmax(x, dim, dtype)
    held = s.detach()
    if mode.softmax == "fixed":
        return held
    seen = x.detach().to(held).masked_fill(x.detach() < -HUGE, 0.0)
    rest = held - held * (seen - (held * seen).sum(dim, keepdim=True))
    return (s - rest) + mode.source(rest, s, "softmax")


def _log_sum_exp(mode: Linearised, func: Any, /, x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    y, held = torch.logsumexp(x, dim, keepdim), x.detach()
    rest = y.detach() - (held.softmax(dim) * held.masked_fill(held < -HUGE, 0.0)).sum(dim, keepdim)
    return (y - rest) + mode.source(rest, y, "softmax")


def _log_softmax(mode: Linearised, func: Any, /, x: Tensor, dim: int = -1) -> Tensor:
    with mode:
        return x - torch.logsumexp(x, dim, True)


def _attention(
    mode: Linearised, func: Any, /, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    mask, bias = attn_mask, None
    if is_causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    elif attn_mask is not None and attn_mask.dtype != torch.bool:
        hidden = attn_mask.detach() < -HUGE
        mask, bias = ~hidden, attn_mask.masked_fill(hidden, 0.0)
        bias = bias if live(bias) else mode.source(bias, q if live(q) else k, "positions")
    if q.ndim == 3:
        wider = [None if t is None or t.ndim < 3 else t[:, None] for t in (mask, bias)]
        mask, bias = (w if w is not None else t for w, t in zip(wider, (mask, bias), strict=True))
        return _attended(mode, q[:, None], k[:, None], v[:, None], mask, bias, scale)[:, 0]
    return _attended(mode, q, k, v, mask, bias, scale)


def _attended(mode: Linearised, q: Any, k: Any, v: Any, mask: Any, bias: Any, scale: Any, cap: Any = None) -> Tensor:
    with mode:
        return weights(q, k, mask, bias, scale, cap) @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)


def _layer_norm(
    mode: Linearised, func: Any, /, x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    over = tuple(range(-len(shape), 0))
    centred = x - x.mean(over, keepdim=True)
    y = centred * (centred.detach().square().mean(over, keepdim=True) + eps).rsqrt()
    return _affine(mode, y, weight, bias)


def _affine(mode: Linearised, y: Tensor, weight: Any, bias: Any) -> Tensor:
    with mode:
        y = y if weight is None else y * weight
        return y if bias is None else y + bias


def _rms(mode: Linearised, func: Any, /, x: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    over = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _affine(mode, x * (x.detach().square().mean(over, keepdim=True) + eps).rsqrt(), weight, None)


def _group_norm(
    mode: Linearised, func: Any, /, x: Tensor, groups: int, weight: Any = None, bias: Any = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    flat = x.unflatten(1, (groups, -1)).flatten(2)  # (B, G, …)
    y = _layer_norm(mode, func, flat, flat.shape[-1:], eps=eps).view_as(x)
    channels = (-1, *[1] * (x.ndim - 2))
    return _affine(mode, y, *(None if t is None else t.reshape(channels) for t in (weight, bias)))


def _batch_norm(
    mode: Linearised, func: Any, /, x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    shape = (1, -1, *[1] * (x.ndim - 2))
    with mode:
        y = (x - mean.reshape(shape)) * (var.reshape(shape) + eps).rsqrt()
    return _affine(mode, y, *(None if t is None else t.reshape(shape) for t in (weight, bias)))


def _normalize(
    mode: Linearised, func: Any, /, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None,
) -> Tensor:  # fmt: skip
    return x / x.detach().norm(p, dim, keepdim=True).clamp(min=eps)


def _glu(mode: Linearised, func: Any, /, x: Tensor, dim: int = -1) -> Tensor:
    with mode:
        a, b = x.chunk(2, dim)
        return a * b.sigmoid()


def _lstm(
    mode: Linearised, func: Any, /, x: Tensor, start: Any, flat: Any, biases: bool, layers: int, dropout: float,
    train: bool, both: bool, first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """An LSTM in one direction, step by step."""
    if both:
        raise ValueError(mode.unknown("an LSTM in both directions"))
    with mode:
        steps = x.unbind(1 if first else 0)
        ends: list[tuple[Tensor, Tensor]] = []
        per = 4 if biases else 2
        for n in range(layers):
            w, u, *b = flat[per * n : per * n + per]
            h, c = start[0][n], start[1][n]
            made = []
            for step in steps:
                gates = F.linear(step, w, b[0] if b else None) + F.linear(h, u, b[1] if b else None)
                i, f, g, o = gates.chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                made.append(h)
            steps = tuple(made)
            ends.append((h, c))
        out = torch.stack(steps, 1 if first else 0)
        return out, torch.stack([h for h, _ in ends]), torch.stack([c for _, c in ends])


RULES: dict[str, Rule] = {
    **_all(QUESTIONS, _plain), **_all(LINEAR, _plain), **_all(SELECTING, _plain), **_all(PRODUCTS, _product),
    **_all(SCALES, _constant), **_all("to float half bfloat16 type_as", _cast),
    **_all("add sub radd rsub subtract", _sum),
    **_all("mul rmul multiply", _mul), **_all("div rdiv truediv rtruediv true_divide divide", _div),
    **_all("cat concat stack hstack vstack", _joined), **_all("scatter scatter_add index_add index_copy", _scattered),
    **_all("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d", _linear),
    **_all("addmm baddbmm addbmm", _addmm), **_all("clamp clip clamp_min", _clamped),
    **_all("maximum minimum", _larger),
    **_all("tanh elu erf sin", _odd), **_all("sigmoid exp softplus log log1p expm1 cos logsigmoid", _curved),
    "where": _where, "masked_fill": _masked_fill, "setitem": _setitem, "copy_": _copied, "addcmul": _addcmul,
    "lerp": _lerp, "pad": _padded, "pow": _pow, "square": _square, "gelu": _gelu, "silu": _silu, "softmax": _softmax,
    "logsumexp": _log_sum_exp, "log_softmax": _log_softmax,
    "scaled_dot_product_attention": _attention, "layer_norm": _layer_norm, "rms_norm": _rms,
    "group_norm": _group_norm, "batch_norm": _batch_norm, "normalize": _normalize, "glu": _glu, "lstm": _lstm,
}  # fmt: skip


def _through(mode: Linearised, held: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    y = x @ weight.mT
    return y + mode.source(held - y.detach(), y)


def _reversing(mode: Linearised, blocks: Any, flow: Any, names: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    for block in blocks:
        x = block(x, flow)
    names += flow.aux
    return x, *flow.aux.values()


def _relative_exp(mode: Linearised, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    top = x.max(-1, keepdim=True).values
    return (x - top).exp() + eps, top


def _depthwise(mode: Linearised, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv1d(x.mT, weight, bias, groups=weight.shape[0]).mT


def _blockwise(mode: Linearised, q: Any, k: Any, v: Any, bias: Any, view: Any, scale: Any, cap: Any) -> Tensor:
    return _attended(mode, q, k, v, view.tensor(), bias, scale, cap)


FUNCTIONS: dict[Any, Rule] = {
    RootMeanSquare: lambda mode, x, weight, eps: x * _factor(x, eps).detach() * weight,
    EluPlusOne: lambda mode, x: x.clamp(max=0).exp() + x.relu(),
    RelativeExp: _relative_exp,
    Depthwise: _depthwise,
    Through: _through,
    GatedProduct: lambda mode, gate, up, of: of.act(gate) * up,
    _Scan: lambda mode, u, step, A, B, C, h, begins: side_by_side(u, step, A, B, C, h, CHUNK, begins),
    _Transform: lambda mode, x: torch.fft.fft2(x, dim=(1, 2)).real,
    _Blockwise: _blockwise,
    _Reversing: _reversing,
}
