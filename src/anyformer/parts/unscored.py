"""Logits that are never whole: the cross-entropy of a linear head, and its gradient, a few rows at a time.

```
rows of x (r, D) ── W ──> logits (r, V) ──> loss, and in the same memory (softmax - target) ──> gradient of x and W
```
N rows, D width, V vocabulary. The whole logits, their softmax and its gradient take 12 N V bytes, with 2,048 tokens and
128,256 words 3.2 GB; a piece takes `PIECE`. Both products of the gradient are made while the piece is there, so that
nothing is computed twice. Rows that do not count are left out of all products.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PIECE = 1 << 27  # bytes of the logits of a piece, in float32. Each adds to the whole gradient of W, ...
HALF = 2  # ... which takes longer than fast products do: the factor where these are in half precision
LEAST = 1 << 26  # bytes of whole logits, below which a head makes them whole unless it is told not to

_wanted: ContextVar[int | None] = ContextVar("pieces", default=None)


@contextlib.contextmanager
def in_pieces(least: int | None = LEAST) -> Iterator[None]:
    """Within it, linear heads return `Unscored` where their logits would have `least` bytes or more; None: never."""
    if torch.compiler.is_compiling():  # no logits are left then, and a compiler stops at what is set here
        yield
        return
    token = _wanted.set(least)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted(rows: int, vocab: int) -> bool:
    """True where the logits of so many rows are to be left to the loss; never while a model is compiled."""
    least = None if torch.compiler.is_compiling() else _wanted.get()
    return least is not None and 4 * rows * vocab >= least


def places(where: Tensor) -> Tensor:
    """The numbers of the true places of a mask, (...) -> (N,); shapes that are predicted count every place."""
    flat = where.flatten()
    return torch.arange(len(flat), device=flat.device) if isinstance(flat, FakeTensor) else flat.nonzero()[:, 0]


def rows(logits: Tensor | Unscored, at: Tensor) -> Tensor:
    """The logits of some places, by number. Shapes: (..., V), (N,) -> (N, V)."""
    if isinstance(logits, Unscored):
        return F.linear(logits.x.flatten(0, -2)[at], logits.weight, logits.bias)
    return logits.flatten(0, -2)[at]


@dataclass(frozen=True)
class Unscored:
    """Logits W x + b that an objective computes piece by piece.

    Attributes:
        x: (..., D). `weight`: (V, D). `bias`: (V,), or None.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the logits, (..., V)."""
        return *self.x.shape[:-1], self.weight.shape[0]

    def cross_entropy(self, labels: Tensor, ignore: int, smoothing: float = 0.0, z: float = 0.0) -> Tensor:
        """The sum over rows of -log softmax(logits)[label] + z log^2 sum exp(logits), in nats.

        Args:
            labels: (...) whole numbers.
            ignore: the label of rows that do not count.
            smoothing: share of the target that is spread over the vocabulary.
            z: factor of the squared logarithm of the softmax's sum (Chowdhery et al., 2022; arXiv:2204.02311).

        Raises:
            IndexError: for a label outside the vocabulary.
        """
        x, labels = self.x.flatten(0, -2), labels.flatten()
        counted = places(labels != ignore)
        if len(counted) < len(labels):
            x, labels = x[counted], labels[counted]
        known = labels.numel() and not isinstance(labels, FakeTensor)
        if known and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.weight):
            raise IndexError(f"labels outside 0 to {len(self.weight) - 1}")
        device = x.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            options = smoothing, z, torch.is_grad_enabled()  # which says no within the function
            total: Tensor = _Pieces.apply(x, self.weight, self.bias, labels, half, *options)
        return total


class _Pieces(torch.autograd.Function):
    """`Unscored.cross_entropy` of (N, D) rows that all count. The gradient for a loss of 1 is made in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        kind: torch.dtype,
        smoothing: float,
        z: float,
        learns: bool,
    ) -> Tensor:
        wide = torch.promote_types(kind, torch.float32)
        of_x, of_weight, of_bias = (learns and needed for needed in ctx.needs_input_grad[:3])
        rows, w, b = x.to(kind), weight.to(kind), None if bias is None else bias.to(wide)
        total = torch.zeros((), dtype=wide, device=x.device)
        grad_x = torch.empty_like(rows) if of_x else None
        grad_w = torch.zeros(weight.shape, dtype=wide, device=x.device) if of_weight else None
        grad_b = torch.zeros(len(weight), dtype=wide, device=x.device) if of_bias else None
        step = max(1, PIECE * (1 if kind == wide else HALF) // (4 * len(weight)))
        for first in range(0, len(rows), step):
            piece, target = rows[first : first + step], labels[first : first + step, None]  # (r, D), (r, 1)
            logits = (piece @ w.T).to(wide)  # (r, V)
            logits = logits if b is None else logits.add_(b)
            loss, slope = _piece(logits, target, smoothing, z, of_x or of_weight or of_bias)
            total += loss
            if slope is None:
                continue
            if grad_b is not None:
                grad_b += slope.sum(0)
            slope = slope.to(kind)
            if grad_x is not None:
                torch.mm(slope, w, out=grad_x[first : first + step])
            if grad_w is not None and kind == wide:
                grad_w.addmm_(slope.T, piece)
            elif grad_w is not None:
                grad_w += slope.T @ piece
        ctx.held = tuple(
            None if g is None else g.to(t.dtype)
            for g, t in ((grad_x, x), (grad_w, weight), (grad_b, bias if bias is not None else x))
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.held is None:
            raise RuntimeError("the gradient of a loss in pieces is there once: backward ran a second time")
        held, ctx.held = ctx.held, None
        return *(None if g is None else g.mul_(grad.to(g.dtype)) for g in held), None, None, None, None, None


def _piece(logits: Tensor, target: Tensor, smoothing: float, z: float, slope: bool) -> tuple[Tensor, Tensor | None]:
    """The sum of the losses of some rows, and in the memory of the logits its gradient. (r, V), (r, 1)."""
    vocab = logits.shape[-1]
    own = logits.gather(1, target)  # (r, 1)
    log_p = torch.log_softmax(logits, 1, out=logits)  # one pass over memory: each row is summed before it is written
    of_own = log_p.gather(1, target)
    norm = own - of_own
    spread = smoothing / vocab * log_p.sum(1, keepdim=True) if smoothing else 0.0
    loss = (z * norm.square() - (1 - smoothing) * of_own - spread).sum()
    if not slope:
        return loss, None
    p = log_p.exp_()
    if z:
        p.mul_(1 + 2 * z * norm)
    if smoothing:
        p.sub_(smoothing / vocab)
    p.scatter_add_(1, target, torch.full_like(own, smoothing - 1))
    return loss, p
