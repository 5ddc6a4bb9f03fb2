"""Exact attention in linear memory, written to be read: the scores of all pairs never exist at once.

A softmax needs the largest score and the sum before it can divide. Both can be kept as running values (Milakov and
Gimelshein, 2018, arXiv:1805.02867; Rabe and Staats, 2021, arXiv:2112.05682; Dao et al., 2022, arXiv:2205.14135).
For one query, after the scores s of one more block of keys:

    m' = max(m, max s)                        largest score so far
    l' = l * exp(m - m') + sum exp(s - m')    sum so far, measured from the new largest
    a' = a * exp(m - m') + exp(s - m') v      weighted values so far, likewise
    at the end: y = a / l

`exp(m - m')` is essential: without it the blocks are weighted by different measures, and the error grows with the
difference of the blocks' largest scores (measured in tests/parts/test_blockwise.py).

Backward recomputes the weights, block by block, from one number a query, L = m + log l:

    p = exp(s - L)     dv = p^T dy     ds = p * (dy v^T - sum(dy * y))     dq = scale ds k     dk = scale ds^T q

Capped scores, s = c tanh(z / c), continue backward with dz = ds (1 - (s / c)^2) for ds, before any bias.
Memory: O(T + S) a head in both directions. Time: as plain attention; blocks without a visible pair are skipped.
B batch, H heads, G key/value heads, R = H / G, T queries, S keys, K head width, t and s the sizes of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from anyformer.parts.attention.masks import View

QUERIES, KEYS = 256, 512  # sizes of a block: its scores should stay in the processor's cache


def blockwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    view: View,
    bias: Tensor | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """softmax(cap(scale * q k^T) + bias, over visible pairs) v; 0 for a query that sees nothing.

    Shapes: q (B, H, T, K), k and v (B, G, S, K), bias (1 or B, H, T, S) -> (B, H, T, K). A bias is itself O(T S).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _Blockwise.apply(q, k, v, bias, view, scale, cap)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, view: View, scale: float, cap: float | None
    ) -> Tensor:
        y, wide = torch.empty_like(q), _wide(q)  # (B, H, T, K)
        log_sum = q.new_empty(q.shape[:3], dtype=wide)  # L (B, H, T)
        for rows in _cuts(view.count, QUERIES):
            block = q[:, :, rows]  # (B, H, t, K)
            m = q.new_full((*block.shape[:3], 1), -torch.inf, dtype=wide)  # (B, H, t, 1)
            total, a = torch.zeros_like(m), torch.zeros_like(block, dtype=wide)
            for columns, seen in _tiles(view, rows):
                scores, _ = _scores(block, k[:, :, columns], rows, columns, seen, bias, scale, cap)  # (B, H, t, s)
                larger = torch.maximum(m, scores.amax(-1, keepdim=True))
                base = larger.clamp(min=torch.finfo(larger.dtype).min)  # -inf - -inf is not a number
                p, rescale = (scores - base).exp(), (m - base).exp()
                total = total * rescale + p.sum(-1, keepdim=True)
                a = a * rescale + _times(p, v[:, :, columns].to(wide))
                m = larger
            y[:, :, rows] = (a / torch.where(total > 0, total, 1.0)).to(y.dtype)
            # a query that sees nothing: L = inf makes its weights 0 in backward
            log_sum[:, :, rows] = torch.where(total > 0, m + total.log(), torch.inf)[..., 0]
        ctx.save_for_backward(q, k, v, bias, y, log_sum)
        ctx.view, ctx.scale, ctx.cap = view, scale, cap
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, y, log_sum = ctx.saved_tensors
        wide = _wide(q)
        dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (q, k, v))
        dbias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[3] else None
        same = (dy * y).sum(-1, keepdim=True, dtype=wide)  # (B, H, T, 1)
        for rows in _cuts(ctx.view.count, QUERIES):
            block, slope = q[:, :, rows].to(wide), dy[:, :, rows].to(wide)
            for columns, seen in _tiles(ctx.view, rows):
                keys, values = k[:, :, columns].to(wide), v[:, :, columns].to(wide)
                scores, bend = _scores(block, keys, rows, columns, seen, bias, ctx.scale, ctx.cap)
                p = (scores - log_sum[:, :, rows, None]).exp()  # (B, H, t, s)
                ds = p * (_times(slope, values.mT) - same[:, :, rows])
                dv[:, :, columns] += _gathered(p, slope, k.shape[1])
                if dbias is not None:
                    dbias[:, :, rows, columns] = ds.sum(0, keepdim=True) if len(bias) == 1 else ds
                ds = ds if bend is None else ds * bend
                dq[:, :, rows] += _times(ds, keys) * ctx.scale
                dk[:, :, columns] += _gathered(ds, block, k.shape[1]) * ctx.scale
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dbias, None, None, None


def _wide(x: Tensor) -> torch.dtype:
    """The type of sums: float32 or wider."""
    return torch.promote_types(x.dtype, torch.float32)


def _cuts(count: int, size: int) -> Iterator[slice]:
    """A range in blocks."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _tiles(view: View, rows: slice) -> Iterator[tuple[slice, Tensor | None]]:
    """The blocks of keys that some of these queries can see, each with its mask, or None if it is all visible."""
    near = view.rows(rows.start, rows.stop)
    low = near.key - view.key
    for cut in _cuts(near.keys, KEYS):
        part = near.columns(cut.start, cut.stop)
        if part.nothing():
            continue
        if part.everything():
            yield slice(low + cut.start, low + cut.stop), None
            continue
        seen = part.tensor()  # (1 or B, 1, t, s)
        if bool(seen.any()):
            yield slice(low + cut.start, low + cut.stop), seen


def _scores(
    q: Tensor,
    k: Tensor,
    rows: slice,
    columns: slice,
    seen: Tensor | None,
    bias: Tensor | None,
    scale: float,
    cap: float | None,
) -> tuple[Tensor, Tensor | None]:
    """Scores (B, H, t, s) in float32 or wider, -inf for hidden pairs; and the slope of the cap, if there is one."""
    wide, bend = _wide(q), None
    scores = _times(q.to(wide), k.to(wide).mT) * scale
    if cap is not None:
        bent = torch.tanh(scores / cap)
        scores, bend = cap * bent, 1 - bent.square()
    if bias is not None:
        scores = scores + bias[:, :, rows, columns]
    return (scores if seen is None else scores.masked_fill(~seen, -torch.inf)), bend


def _times(a: Tensor, b: Tensor) -> Tensor:
    """(B, H, t, x), (B, G, x, y) to (B, H, t, y): a group's R heads are folded into the queries, b is not copied."""
    groups = b.shape[1]
    folded = a.unflatten(1, (groups, -1)).flatten(2, 3)  # (B, G, R t, x)
    return (folded @ b).unflatten(2, (-1, a.shape[2])).flatten(1, 2)


def _gathered(a: Tensor, b: Tensor, groups: int) -> Tensor:
    """a^T b summed over the heads of each group: (B, H, t, s), (B, H, t, K) to (B, G, s, K)."""
    a, b = (x.unflatten(1, (groups, -1)).flatten(2, 3) for x in (a, b))  # (B, G, R t, …)
    return a.mT @ b
