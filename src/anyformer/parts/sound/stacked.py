"""Parts of a decoder of codes that stand one above the other. B sounds, T steps, Q books, V codes, D width."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.core.part import built, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Positions


class CosinePlaces(Positions):
    """A fixed vector per position p, as MusicGen has it: cos(p w_i), then sin(p w_i), w_i = 10000^(-i / (D/2 - 1)).

    Differs from `Sinusoidal` by: cosines first; D/2 - 1 in place of D/2; 0 at the end of an odd D; angles in float32,
    with which its weights were trained.

    Shape: positions (T,) or (B, T) -> (..., D), D at least 4.
    """

    def __init__(self, dim: int):
        super().__init__()
        if dim < 4:
            raise ValueError(f"CosinePlaces: the width of the stream is at least 4, got {dim}")
        self.dim = dim

    def forward(self, positions: Tensor) -> Tensor:
        half = self.dim // 2
        steps = torch.arange(half, device=positions.device, dtype=torch.float32)
        angles = positions[..., None].float() * torch.exp(-math.log(10000.0) / (half - 1) * steps)
        rest = angles.new_zeros(*angles.shape[:-1], self.dim - 2 * half)
        return torch.cat((angles.cos(), angles.sin(), rest), -1)


class StackedCodes(FrontEnd):
    """Codes of Q books to vectors: x = sum_q table_q[code_q] + position.

    Args:
        vocab: V; the id V begins a sound and stands where a book has no code. books: Q.
        positions: added, or None. dropout: at the end.

    Shape: (B, T, Q) -> (B, T, D).
    """

    main, mask = "input_ids", "attention_mask"

    def __init__(
        self, dim: int, vocab: int, books: int, positions: Recipe[Positions] | None = None, dropout: float = 0.0
    ):
        super().__init__()
        if vocab < 1 or books < 1:
            raise ValueError(f"StackedCodes: vocab and books are at least 1, got {vocab} and {books}")
        self.tables: Any = nn.ModuleList(nn.Embedding(vocab + 1, dim) for _ in range(books))
        self.positions, self.dropout, self.pad = built(positions, dim), dropout, vocab

    def inputs(self) -> dict[str, Input]:
        return {"input_ids": Input(("time", "books"), ("time",), ("books",), ids=True)}

    def length(self, inputs: Inputs) -> int:
        ids = inputs["input_ids"]
        if ids.ndim != 3 or ids.shape[2] != len(self.tables) or ids.is_floating_point():
            raise ValueError(
                f"codes must be whole numbers (batch, steps, {len(self.tables)} books), got {ids.dtype} of "
                f"{tuple(ids.shape)}"
            )
        return ids.shape[1]

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        return {"input_ids": torch.randint(0, self.pad + 1, (rows, size[0], len(self.tables)), generator=noise)}

    def sizes(self) -> list[tuple[int, ...]]:
        return [(16,)]

    def check_ids(self, inputs: Inputs) -> None:
        ids = inputs["input_ids"]
        bad = ids[(ids < 0) | (ids > self.pad)]
        if len(bad):
            raise ValueError(f"code {int(bad[0])} is outside the tables: codes go from 0 to {self.pad}, which is none")

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        codes = inputs["input_ids"].unbind(-1)
        x = torch.stack([table(code) for table, code in zip(self.tables, codes, strict=True)]).sum(0)
        if self.positions is not None:
            x = x + self.positions(flow.positions).to(x.dtype)
        return drop(self, x)


class StackedLogits(Head):
    """A score for each code of each book: logits_q = W_q x.

    Args:
        vocab: V. books: Q.

    Shape: (B, T, D) -> (B, T, Q, V).
    """

    def __init__(self, dim: int, vocab: int, books: int):
        super().__init__()
        if vocab < 1 or books < 1:
            raise ValueError(f"StackedLogits: vocab and books are at least 1, got {vocab} and {books}")
        self.books: Any = nn.ModuleList(nn.Linear(dim, vocab, bias=False) for _ in range(books))

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return torch.stack([book(x) for book in self.books], -2)
