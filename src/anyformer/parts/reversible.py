"""Reversible wiring: two streams from which every layer's input can be recomputed, so that none has to be saved.

B batch, T time, D width of one stream (models count 2 D: both side by side), F hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anyformer.core.flow import Flow
from anyformer.core.front import Inputs
from anyformer.core.mixer import Mixer
from anyformer.core.part import Part, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import FeedForward, Norm, Positions
from anyformer.parts.embeddings import Tokens
from anyformer.parts.ffn import MLP


class TwoStreams(Tokens):
    """Token ids to two equal streams side by side: `Tokens` of half the width, twice. Shape: (B, T) -> (B, T, 2 D)."""

    def __init__(self, dim: int, vocab: int, positions: Recipe[Positions] | None = None, dropout: float = 0.0):
        super().__init__(half("TwoStreams", dim), vocab, positions, dropout=dropout)

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        x = super().forward(inputs, flow)  # (B, T, D)
        return torch.cat((x, x), -1)


class ReversibleBlock(Part):
    """A layer of two streams (Gomez et al., 2017; arXiv:1707.04585; in Transformers Kitaev et al., 2020;
    arXiv:2001.04451).

    ```
    x1 ─────────────────────(+)── y1 ──┬──────────────      y1 = x1 + mixer(norm(x2))    x2 = y2 - ffn(norm(y1))
    x2 ──┬── norm ── mixer ──┘         │                    y2 = x2 + ffn(norm(y1))      x1 = y1 - mixer(norm(x2))
         └────────────────────── (+) ──┼── y2 ────────
                      norm ── ffn ┘ ───┘                    (backwards: on the right)
    ```
    Args:
        mixer, ffn: recipes.
        norm: recipe of both norms, `norm.mixer` and `norm.ffn`.
        dropout: at the end of each branch.

    Shape: both streams side by side, (B, T, 2 D) -> same.
    """

    def __init__(
        self, dim: int, mixer: Recipe[Mixer], ffn: Recipe[FeedForward], norm: Recipe[Norm], dropout: float = 0.0
    ):
        super().__init__()
        dim = half("ReversibleBlock", dim)
        self.mixer, self.ffn, self.dropout = mixer.build(dim), ffn.build(dim), dropout
        self.norm = nn.ModuleDict({name: norm.build(dim) for name in ("mixer", "ffn")})

    def branch(self, name: str, x: Tensor, flow: Flow) -> Tensor:
        """The output of `mixer` or `ffn` for the other stream, (B, T, D) -> same."""
        return drop(self, getattr(self, name)(self.norm[name](x), flow))

    def weights(self, name: str) -> list[nn.Parameter]:
        """The trained parameters of a branch."""
        return [p for m in (self.norm[name], getattr(self, name)) for p in m.parameters() if p.requires_grad]

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        a, b = x.chunk(2, -1)  # (B, T, D) each
        a = a + self.branch("mixer", b, flow)
        return torch.cat((a, b + self.branch("ffn", a, flow)), -1)


class ChunkedMLP(MLP):
    """`MLP` for `chunk` tokens at a time: the same numbers, with a hidden layer of (B, chunk, F) in memory instead of
    (B, T, F). In training each chunk is recomputed in backward. `chunk` None: all at once. Shape: (B, T,
    D) -> same."""

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        act: str = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
        chunk: int | None = None,
    ):
        super().__init__(dim, hidden, act, bias, dropout)
        if chunk is not None and chunk < 1:
            raise ValueError(f"ChunkedMLP: chunk, in tokens, must be at least 1, or None for all; got {chunk}")
        self.chunk = chunk

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        if self.chunk is None or isinstance(x.shape[1], torch.SymInt) or x.shape[1] <= self.chunk:
            return super().forward(x, flow)
        whole, pieces = super().forward, x.split(self.chunk, 1)
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(whole, piece, flow, use_reentrant=False) for piece in pieces], 1)
        return torch.cat([whole(piece, flow) for piece in pieces], 1)


def half(owner: str, dim: int) -> int:
    """The width of one of two streams."""
    if dim % 2:
        raise ValueError(f"{owner}: a width of {dim} does not divide into two streams; it counts both")
    return dim // 2
