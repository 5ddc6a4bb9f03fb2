"""Causal attention of the last tokens of a text, with gradients, without a mask: all earlier keys, and a triangle.

```
          earlier keys │ own keys           softmax over both = their outputs, weighted by exp(log sum of each
query 4   █ █ █ █      │ █                  - log sum of all); the gradient of each part follows from the output and
query 5   █ █ █ █      │ █ █                the log sum of all (Liu et al., 2023; arXiv:2310.01889)
```
A fused kernel has no such form: with a mask it computes all pairs, and saves the mask in float32 for every layer.

B batch, H heads, G key/value heads, T queries, S keys, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """True on a CPU, for a pass with gradients that is neither traced nor compiled."""
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return learns and q.device.type == "cpu" and not torch.compiler.is_compiling()


class Continued(torch.autograd.Function):
    """softmax(scale q k^T, over the keys up to the query's own) v; the queries belong to the last keys.

    Shapes: q (B, H, T, K), k and v (B, G, S, K), T <= S -> (B, H, T, K).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        outputs, sums = zip(
            *(FORWARD(q, key, value, 0.0, causal, scale=scale) for key, value, causal in _parts(q, k, v)), strict=True
        )
        whole = torch.logaddexp(*sums)  # (B, H, T)
        y = sum(o * (s - whole).exp()[..., None].to(o.dtype) for o, s in zip(outputs, sums, strict=True))
        ctx.save_for_backward(q, k, v, y, whole)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, y, whole = ctx.saved_tensors
        found = [
            BACKWARD(gradient, q, key, value, y, whole, 0.0, causal, scale=ctx.scale)
            for key, value, causal in _parts(q, k, v)
        ]
        dq, dk, dv = found[0][0] + found[1][0], *(torch.cat((found[0][i], found[1][i]), 2) for i in (1, 2))
        groups = k.shape[1]
        dk, dv = (t.unflatten(1, (groups, -1)).sum(2) for t in (dk, dv))
        return dq, dk, dv, None


def _parts(q: Tensor, k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor, bool]]:
    """Earlier keys and values, and the queries' own, of as many heads as the queries; is it a triangle?"""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    first = k.shape[2] - q.shape[2]
    return [(k[:, :, :first], v[:, :, :first], False), (k[:, :, first:], v[:, :, first:], True)]
