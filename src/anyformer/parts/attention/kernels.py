"""Attention kernels. All give the same numbers; a query that sees nothing gives 0, with gradient 0.

The rule of "auto", from the top:
  1. the keys in reach are fewer than half of all, and there are many queries (`View.local`): "chunked"; with gradients
     in bfloat16 on a CPU, under a causal window, by the backward pass of `parts/attention/half.py`
  2. several documents share rows, and are far fewer pairs than the rows: one after the other (`View.cuts`)
  3. a bias can be computed in pieces, or scores are capped, and there are many queries (`View.long`): "chunked", too:
     its pieces stay in the processor's cache, and in a decoder they are half as many as all pairs
  4. a mask outside fused attention, or capped scores, would be a tensor of more than 2^27 pairs: "blockwise"
  5. scores are capped: "reference"
  6. on a CPU, all pairs are visible and a bias learns: "reference"; no fused kernel has the gradient of a bias there,
     and PyTorch's formula also looks for rows that see nothing
  7. otherwise: "sdpa", PyTorch's fused attention, which adds a bias and cannot cap
With gradients in bfloat16 on a CPU, fused attention has a faster backward pass: `parts/attention/half.py`.
The last tokens of a plain text, with gradients, need none of these: `parts/attention/continued.py`, on a CPU.
"reference" is the formula in plain operations; "flex" is PyTorch's FlexAttention (on CPU: compiled, forward only);
"blockwise" keeps memory linear in the length on any device, and is written to be read (`parts/attention/blockwise.py`).

B batch, H heads, G key/value heads, T queries, S keys, K head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.part import check_option
from anyformer.parts.attention import continued, half
from anyformer.parts.attention.blockwise import blockwise
from anyformer.parts.attention.masks import CHUNK, View
from anyformer.parts.attention.scores import Bias

KERNELS = ("auto", "reference", "sdpa", "chunked", "blockwise", "flex")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    view: View,
    mask: Tensor | None = None,
    bias: Tensor | Bias | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    kernel: str = "auto",
    cap: float | None = None,
) -> Tensor:
    """softmax(cap(scale * q k^T) + bias, over visible pairs) v.

    Args:
        q: (B, H, T, K). k, v: (B, G, S, K), where G divides H: each of them serves H / G heads.
        view: the visible pairs. `mask`: its tensor, if the caller has it already.
        bias: added to the scores, (1 or B, H, T, S); or a function that computes it for a view, in pieces in "chunked".
        scale: K^-1/2 by default.
        dropout: of the weights, for training.
        kernel: one of `KERNELS`.
        cap: c of cap(s) = c tanh(s / c); None = no cap.

    Returns:
        (B, H, T, K)

    Raises:
        ValueError: for a kernel without a cap, or without dropout, if it needs one.
    """
    check_option("attend", "kernel", kernel, KERNELS)
    plain = kernel in ("auto", "sdpa") and bias is None and cap is None and not dropout
    if plain and view.continues() and continued.fits(q, k, v):
        return continued.Continued.apply(q, k, v, scale)
    if kernel == "auto" and bias is None and cap is None and view.cuts:
        return _by_document(q, k, v, view, scale, dropout)
    window = view.causal_window() if kernel == "auto" and bias is None and cap is None else None
    if window is not None and half.faster(q, k, v, None, dropout):
        return _sdpa(q, k, v, None, None, scale, dropout, True, window)
    if kernel == "auto":
        kernel = _choice(view, bias, dropout, cap)
    if kernel == "chunked":
        return _chunked(q, k, v, view, bias, scale, dropout, cap)
    if callable(bias):
        bias = bias(view)
    if kernel == "blockwise":
        if dropout:
            raise ValueError('kernel "blockwise" has no dropout of weights; use "sdpa"')
        return blockwise(q, k, v, view, bias, scale, cap)
    causal = kernel == "sdpa" and bias is None and view.plainly_causal()
    if causal or view.everything():
        mask = None
    elif mask is None:
        mask = view.tensor()
    if kernel == "sdpa":
        if cap is not None:
            raise ValueError(
                'kernel "sdpa" cannot cap scores (SoftCap); use "auto", "reference", "blockwise" or "flex"'
            )
        return _sdpa(q, k, v, mask, bias, scale, dropout, causal)
    if kernel == "flex":
        return _flex(q, k, v, mask, bias, scale, dropout, cap)
    return _plain(q, k, v, mask, bias, scale, dropout, cap)


def _by_document(q: Tensor, k: Tensor, v: Tensor, view: View, scale: float | None, dropout: float) -> Tensor:
    """Attention within each document: time by the pairs that are visible, and no mask. 0 at padding."""
    rows = []
    for row, documents in zip(zip(*(t.split(1) for t in (q, k, v)), strict=True), view.cuts, strict=True):
        parts = zip(*(t.split([n for n, _ in documents], 2) for t in row), strict=True)
        found = []
        for (mine, keys, values), (n, real) in zip(parts, documents, strict=True):
            seen = View(view.mask, 0, n, 0, n, device=view.device)
            found.append(attend(mine, keys, values, seen, None, None, scale, dropout) if real else mine * 0)
        rows.append(torch.cat(found, 2))
    return torch.cat(rows)


def _choice(view: View, bias: Tensor | Bias | None, dropout: float, cap: float | None) -> str:
    """The rule of "auto"."""
    plain = cap is None and (view.everything() or (view.plainly_causal() and bias is None))
    if view.local() or callable(bias):
        return "chunked"
    if view.heavy() and not plain and not dropout:
        return "blockwise"
    if cap is None:
        learned = isinstance(bias, Tensor) and bias.requires_grad and bias.device.type == "cpu"
        return "reference" if learned and view.everything() else "sdpa"
    return "chunked" if view.long() else "reference"


def weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    bias: Tensor | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """The attention weights: each row sums to 1, or is 0 for a query that sees nothing.

    Shapes: q (B, H, T, K), k (B, G, S, K), mask and bias as in `attend` -> (B, H, T, S).
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)  # (B, H, T, S)
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if bias is not None:
        scores = scores + bias
    if mask is None:
        return scores.softmax(-1)
    # a finite floor instead of -inf: a row of equal scores has a softmax, and a gradient, which the second mask makes 0
    floor = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, floor).softmax(-1).masked_fill(~mask, 0.0)


def offer(
    flow: Flow,
    mixer: nn.Module,
    q: Tensor,
    k: Tensor,
    seen: View,
    bias: Tensor | Bias | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> None:
    """Offers the `weights` of a mixer to taps that want them, in blocks of queries. Arguments as of `attend`."""
    if flow.taps is None or not flow.taps.wants(mixer, "weights"):
        return

    def rows(at: slice) -> Tensor:
        part, some = seen.queries(at.start, at.stop), bias
        if some is not None:
            some = some(part) if callable(some) else some[..., at, :] if some.shape[-2] > 1 else some
        return weights(q[:, :, at], k, part.tensor(), some, scale, cap)  # (B, H, t, S)

    flow.taps.offer(mixer, "weights", rows, q.shape[2])


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    dropout: float,
    cap: float | None,
) -> Tensor:
    w = F.dropout(weights(q, k, mask, bias, scale, cap), dropout)  # (B, H, T, S)
    return w @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)


def _sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    dropout: float,
    causal: bool,
    window: int | None = None,
) -> Tensor:
    heads, groups = q.shape[1], k.shape[1]
    if bias is not None and mask is not None:
        bias = bias.masked_fill(~mask, float("-inf"))
    over = mask if bias is None else bias
    if heads == groups:
        return _fused(q, k, v, over, dropout, causal, scale, window)
    if q.shape[2] == 1:  # one query: the heads of a group take the axis of the queries, and no key is copied
        folded = q.unflatten(1, (groups, heads // groups)).squeeze(3)  # (B, G, H/G, K)
        if bias is not None:
            over = bias.unflatten(1, (groups, heads // groups)).squeeze(3)  # (B, G, H/G, S)
        y = F.scaled_dot_product_attention(folded, k, v, over, dropout, scale=scale)
        return y.flatten(1, 2)[:, :, None]
    if groups == 1:  # one key for all heads need not be copied
        k, v = (t.expand(-1, heads, -1, -1) for t in (k, v))
    else:
        k, v = (t.repeat_interleave(heads // groups, 1) for t in (k, v))
    return _fused(q, k, v, over, dropout, causal, scale, window)


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    over: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """PyTorch's fused attention, in bfloat16 on a CPU with a backward pass of its own. `over`: mask, or bias."""
    if window is not None or half.faster(q, k, v, over, dropout):
        return half.attention(q, k, v, over, causal, scale, window)
    return F.scaled_dot_product_attention(q, k, v, over, dropout, causal, scale=scale)


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    view: View,
    bias: Tensor | Bias | None,
    scale: float | None,
    dropout: float,
    cap: float | None,
) -> Tensor:
    """Attention of `view.chunk` queries at a time to the keys in their reach: time and memory O(T x window) instead of
    O(T x S)."""
    out, keys_of, values_of = [], reader(k), reader(v)
    for start, rows in zip(range(0, view.count, view.chunk), q.split(view.chunk, 2), strict=True):
        part = view.rows(start, min(start + view.chunk, view.count))
        low = part.key - view.key
        high = low + part.keys
        if callable(bias):
            near: Tensor | None = bias(part)
        else:
            near = None if bias is None else bias[:, :, start : start + view.chunk, low:high]
        some, seen = (keys_of(low, high), values_of(low, high)), part.tensor()
        if cap is None:
            out.append(_sdpa(rows, *some, seen, near, scale, dropout, causal=False))
        else:
            out.append(_plain(rows, *some, seen, near, scale, dropout, cap))
    return torch.cat(out, 2)


def reader(t: Tensor) -> Callable[[int, int], Tensor]:
    """A function that returns t[:, :, low:high]. The gradient of each slice would be as long as the text, all of them
    together its square: with gradients, it joins pieces of the text instead."""
    if not (torch.is_grad_enabled() and t.requires_grad) or isinstance(t.shape[2], torch.SymInt):
        return lambda low, high: t[:, :, low:high]
    pieces = t.split(CHUNK, 2)

    def joined(low: int, high: int) -> Tensor:
        first = low // CHUNK
        near = torch.cat(pieces[first : max(first + 1, -(-high // CHUNK))], 2)
        return near[:, :, low - first * CHUNK : high - first * CHUNK]

    return joined


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)  # open shapes: its CPU code does not compile


def _flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    dropout: float,
    cap: float | None,
) -> Tensor:
    """FlexAttention. On CPU PyTorch offers its forward pass only.

    Raises:
        ValueError: for dropout, or a gradient on the CPU.
    """
    if dropout:
        raise ValueError('kernel "flex" has no dropout of weights; use "sdpa"')
    if q.device.type == "cpu" and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise ValueError('kernel "flex" has no gradient on the CPU; use "sdpa", or torch.no_grad()')

    def change(score: Tensor, b: Any, h: Any, i: Any, j: Any) -> Tensor:
        if cap is not None:
            score = cap * torch.tanh(score / cap)
        if bias is not None:
            score = score + bias[b % bias.shape[0], h, i, j]
        return score if mask is None else torch.where(mask[b % mask.shape[0], 0, i, j], score, -float("inf"))

    return _compiled_flex()(q, k, v, score_mod=change, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
