"""Gated attention along one axis of a table: rows and columns of an alignment, starts and ends of pairs.

B batch, I lines (rows of an alignment, or of the pairs), L positions of a line, D width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Concatenate

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anyformer.core import checks
from anyformer.core.flow import Companion, Flow
from anyformer.core.part import O, Part, T
from anyformer.core.recipe import Recipe
from anyformer.core.recompute import Recomputed
from anyformer.parts.attention.heads import width

CHUNK = 32  # lines at a time


@dataclass(frozen=True)
class Lines(Companion):
    """The number of lines whose scores exist at one time: less memory, more time, the same numbers."""

    left_by: ClassVar[str] = "a Folder"
    count: int = CHUNK


class PairPart(Part):
    """Base of parts that work on two streams: residues (or rows of an alignment) of width D, pairs of width C."""

    given = ("dim", "pair_dim")
    if TYPE_CHECKING:

        @classmethod
        def of(cls: Callable[Concatenate[int, int, O], T], *args: O.args, **options: O.kwargs) -> Recipe[T]: ...


class GatedAttention(Part):
    """Attention of every line of a table, whose outputs are gated: o(sigmoid(g(x)) softmax(K^-1/2 q k^T + bias) v).

    Scores of `Lines` lines exist at a time: memory is O(lines H L^2), not O(I H L^2). In training they are computed
    again in backward (Jumper et al., 2021; supplement 1.11.8).

    Args:
        heads: H.
        head_dim: K; D / heads by default.

    Shape: (B, I, L, D), bias (B, H, L, L) or None, keep (B, I or 1, L) or None, True = real -> (B, I, L, D). A line
    without a real position gives o's bias.
    """

    def __init__(self, dim: int, heads: int, head_dim: int | None = None):
        super().__init__()
        if heads < 1:
            raise ValueError(f"GatedAttention: heads must be at least 1, got {heads}")
        self.heads = heads
        self.head_dim = width("GatedAttention", dim, heads, head_dim)
        inner = heads * self.head_dim
        self.q, self.k, self.v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.gate, self.o = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def reset_parameters(self) -> None:
        for projection in (self.q, self.k, self.v):
            nn.init.xavier_uniform_(projection.weight)
        opened(self.gate)
        closed(self.o)

    def forward(self, x: Tensor, flow: Flow, bias: Tensor | None, keep: Tensor | None) -> Tensor:
        lines = flow.find(Lines)
        count = CHUNK if lines is None else lines.count
        whole = checks.traced() or x.shape[1] <= count
        if whole:
            return self.some(x, bias, keep)
        again = torch.is_grad_enabled() and flow.find(Recomputed) is None
        each = keep is not None and keep.shape[1] == x.shape[1]
        made = []
        for start in range(0, x.shape[1], count):
            part = slice(start, start + count)
            given = (x[:, part], bias, keep[:, part] if each and keep is not None else keep)
            made.append(checkpoint(self.some, *given, use_reentrant=False) if again else self.some(*given))
        return torch.cat(made, 1)

    def some(self, x: Tensor, bias: Tensor | None, keep: Tensor | None) -> Tensor:
        """A few lines, (B, I', L, D) -> same."""
        q, k, v = (self._split(p(x)) for p in (self.q, self.k, self.v))  # (B, I', H, L, K)
        y = attended(q, k, v, bias, keep).transpose(2, 3).flatten(3)  # (B, I', L, H K)
        return self.o(torch.sigmoid(self.gate(x)) * y)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(2, 3)


def attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, keep: Tensor | None) -> Tensor:
    """softmax(K^-1/2 q k^T + bias) v for (B, I, H, L, K), over real keys; 0 where a line has none."""
    alike = keep is None or keep.shape[1] == 1
    if bias is not None and alike and checks.readable(q) and not torch.is_grad_enabled():
        over = bias[:, None].to(q.dtype)  # (B, 1, H, L, L): of four axes for each protein, else nothing is fused
        over = over if keep is None else over.masked_fill(~keep[:, :, None, None], float("-inf"))
        # one protein at a time, its lines as the batch: fused attention then copies no bias and holds no scores
        each = zip(q, k, v, over, strict=False)
        return torch.stack([F.scaled_dot_product_attention(*one) for one in each])
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    scores = scores if bias is None else scores + bias[:, None].to(q.dtype)
    if keep is None:
        return scores.softmax(-1) @ v
    hidden = ~keep[:, :, None, None, :]  # (B, I or 1, 1, 1, L)
    weights = scores.masked_fill(hidden, torch.finfo(q.dtype).min).softmax(-1).masked_fill(hidden, 0.0)
    return weights @ v


def real_pairs(flow: Flow, count: int) -> Tensor | None:
    """(B, L, L) True where both residues are real; None without padding."""
    keep = flow.keep_now(count)
    return None if keep is None else flow.once("real pairs", lambda: keep[:, :, None] & keep[:, None])


def shared_dropout(part: Part, x: Tensor, rate: float, axis: int) -> Tensor:
    """Dropout with one mask along an axis: all rows, or all columns, of a table lose the same cells."""
    if not (part.training and rate):
        return x
    shape = [1 if i == axis else n for i, n in enumerate(x.shape)]
    return x * F.dropout(x.new_ones(shape), rate)


def opened(layer: nn.Linear) -> None:
    """First weights of a gate: open, whatever it reads (supplement 1.11.4)."""
    nn.init.zeros_(layer.weight)
    nn.init.ones_(layer.bias)


def closed(layer: nn.Linear) -> None:
    """First weights of the last layer of a branch: the branch adds nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def lecun(layer: nn.Linear, gain: float = 1.0) -> None:
    """First weights N(0, gain / inputs), cut at two standard deviations; bias 0."""
    std = (gain / max(1, layer.in_features)) ** 0.5
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
