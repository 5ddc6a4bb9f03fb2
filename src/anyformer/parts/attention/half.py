"""Fused attention in bfloat16 on a CPU, with a backward pass by blocks of keys.

PyTorch's fused kernel runs its forward pass at the speed of the products, and its backward pass at half of it: five
products over small blocks, and between them five passes in float32. Here the products are batched over heads, and there
is one pass over the weights and one over their slopes, both in bfloat16, since two differences become columns:

```
P = exp(scale q k^T - l)      = exp(scale [q, -l / scale] [k, 1]^T)        l: log sum of each row, from the forward pass
dS = P (g v^T - sum(g y))     = P ([g, -sum(g y)] [v, 1]^T)                g: gradient of the output y
dv = P^T g,   dq = scale dS k,   dk = scale dS^T q
```
So both are rounded after the subtraction, where they are small. A column is two: its value, and what rounding took.

B batch, H heads, T queries, S keys, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from anyformer.core.checks import traced
from anyformer.parts.attention.continued import FORWARD

AMX = getattr(torch.cpu, "_is_amx_tile_supported", bool)()  # its products are so fast that fewer, larger ones win
BLOCK = 256 if AMX else 128  # keys at a time
PIECE = 1 << (21 if AMX else 20)  # weights at a time: two tensors of 4 or 2 MB
ROWS = 256  # queries at a time under a window, in the forward pass
LEAST = 1 << 12  # weights of a head, below which calls cost more than they save
COLUMNS = 2  # of a number of float32
SUPPORTED = any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))
SCHEMA = (
    "half_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor y, Tensor sums, "
    "bool causal, int? window, float scale) -> (Tensor, Tensor, Tensor)"
)


def faster(q: Tensor, k: Tensor, v: Tensor, over: Tensor | None, dropout: float) -> bool:
    """True where the backward pass by blocks is the faster one, and holds: a mask is of booleans."""
    booleans = over is None or (over.dtype == torch.bool and over.ndim == 4)
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    if dropout or not booleans or kind != torch.bfloat16 or q.device.type != "cpu" or not SUPPORTED or not learns:
        return False
    if traced():
        made = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        return made and not isinstance(pairs := q.shape[2] * k.shape[2], torch.SymInt) and pairs >= LEAST
    watched = _get_current_dispatch_mode() is not None or type(q) is not Tensor
    if watched or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return False
    return q.shape[2] * k.shape[2] >= LEAST  # last: a question about an open size would close it


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None, window: int | None = None
) -> Tensor:
    """softmax(scale q k^T, over visible pairs) v; a query that sees nothing gives 0.

    `window`: of a causal text, the largest distance of a key; time and memory are O(T window).

    Shapes: q (B, H, T, K), k and v (B, H, S, K), mask of booleans that broadcasts to (B, H, T, S) -> (B, H, T, K).
    """
    q, k, v = (t.to(torch.bfloat16) for t in (q, k, v))
    with torch.autocast("cpu", enabled=False):
        y: Tensor = HalfAttention.apply(q, k, v, mask, causal, window, q.shape[-1] ** -0.5 if scale is None else scale)
    return y


class HalfAttention(torch.autograd.Function):
    """`attention` of bfloat16."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        window: int | None,
        scale: float,
    ) -> Tensor:
        if window is None:
            y, sums = FORWARD(q, k, v, 0.0, causal, attn_mask=None if mask is None else _added(mask, q), scale=scale)
        else:
            y, sums = _windowed(q, k, v, window, scale)
        ctx.save_for_backward(q, k, v, mask, y, sums)
        ctx.causal, ctx.window, ctx.scale = causal, window, scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, y, sums = ctx.saved_tensors
        run = torch.ops.anyformer.half_attention_backward if traced() else gradients
        return *run(grad, q, k, v, mask, y, sums, ctx.causal, ctx.window, ctx.scale), None, None, None, None


def _added(mask: Tensor, q: Tensor) -> Tensor:
    """Booleans as PyTorch's kernel adds them to scores."""
    return torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)


def _windowed(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    """The forward pass of a causal text under a window, and its log sums (B, H, T). Pieces inside the text have one
    mask."""
    found = []
    masks: dict[tuple[int, int], Tensor] = {}
    for start in range(0, q.shape[2], ROWS):
        stop = min(start + ROWS, q.shape[2])
        low = max(0, start - window)
        size = stop - start, stop - low
        if size not in masks:
            back = torch.arange(start, stop)[:, None] - torch.arange(low, stop)
            masks[size] = _added((back >= 0) & (back <= window), q)[None, None]
        s = slice(low, stop)
        piece = q[:, :, start:stop], k[:, :, s], v[:, :, s]
        found.append(FORWARD(*piece, 0.0, False, attn_mask=masks[size], scale=scale))
    ys, sums = zip(*found, strict=True)
    return torch.cat(ys, 2), torch.cat(sums, 2)


def gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    y: Tensor,
    sums: Tensor,
    causal: bool,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k, v from that of the output y, and the log sums (B, H, T) of the forward pass."""
    (*rows, queries, _), keys = q.shape, k.shape[2]
    if mask is not None:
        hidden = (~mask).expand(-1, -1, queries, keys).flatten(0, 1)  # (1 or B or B H, T, S)
        which = torch.arange(len(hidden)).view(mask.shape[:2]).expand(rows).flatten()  # (B H,)
    q, k, v, grad, y, sums = (t.flatten(0, 1) for t in (q, k, v, grad, y, sums))
    dq, dk, dv = torch.zeros(q.shape, dtype=torch.float32), torch.empty_like(k), torch.empty_like(v)
    far = queries if window is None else window
    heads = max(1, PIECE // (min(queries, far + BLOCK) * min(BLOCK, keys)))
    for first in range(0, len(q), heads):
        h = slice(first, first + heads)
        own = torch.linalg.vecdot(grad[h].float(), y[h].float())  # (h, T)
        asked, given = _beside(q[h], sums[h].float() / -scale), _beside(grad[h], -own)
        found, said = _beside(k[h]), _beside(v[h])
        for low in range(0, keys, BLOCK):
            s = slice(low, low + BLOCK)
            t = slice(low if causal else 0, min(queries, low + BLOCK + far))
            p = _product(asked[:, t], found[:, s], scale).exp_()  # (h, T, s)
            if causal:
                p[:, :BLOCK].tril_()
                p[:, far:].triu_()  # keys that have left the window
            if mask is not None:
                p.masked_fill_(hidden[which[h], t, s], 0.0)
            dv[h, s] = p.mT @ grad[h, t]
            slope = _product(given[:, t], said[:, s]).mul_(p)
            dk[h, s] = _product(slope.mT, q[h, t].mT, scale)
            dq[h, t] += slope @ k[h, s]
    dq = dq.mul_(scale).to(q.dtype)
    return dq.unflatten(0, rows), dk.unflatten(0, rows), dv.unflatten(0, rows)


def _beside(x: Tensor, value: Tensor | None = None) -> Tensor:
    """x with more columns: of a number for each row, in float32, or of ones. (n, T, K), (n, T)."""
    wide = x.new_ones(*x.shape[:-1], x.shape[-1] + COLUMNS)
    wide[..., :-COLUMNS] = x
    if value is not None:
        for i in range(-COLUMNS, 0):
            wide[..., i] = value
            value = value - wide[..., i]
    return wide


def _product(a: Tensor, b: Tensor, factor: float = 1.0) -> Tensor:
    """factor a b^T, rounded once. (n, T, K), (n, S, K) -> (n, T, S)."""
    return torch.baddbmm(a.new_empty(()), a, b.mT, beta=0, alpha=factor)


OWN = torch.library.Library("anyformer", "DEF")  # one operation to a compiler, which would unroll the blocks
OWN.define(SCHEMA)
OWN.impl("half_attention_backward", gradients, "CPU")


def _shapes(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (t.new_empty(t.shape) for t in (q, k, v))
    return q, k, v


torch.library.register_fake("anyformer::half_attention_backward", _shapes, lib=OWN)
