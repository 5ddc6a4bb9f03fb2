"""Parts of a decoder of a text followed by the codes of a picture, row by row (DALL-E).

B batch, T tokens of this call, S tokens so far, H heads, K head width, D width, V vocabulary. A place is a position in
the sequence: `first` places of text, then columns x columns cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.recipe import Recipe
from anyformer.core.slots import FeedForward
from anyformer.parts.attention.attention import Attention
from anyformer.parts.attention.cache import KeysValues
from anyformer.parts.attention.masks import FAR, Mask
from anyformer.parts.heads import Logits
from anyformer.parts.positions import Rotary

NEVER = -1e4  # the score of a token of the other medium: finite in half precision, and its share is 0 in float32
AWAY, APART = 8192, -10.0  # the place of every cell in the text, and of every token of text among the cells


@dataclass(frozen=True)
class Line(Mask):
    """The cells in the row of the query's cell; cells begin at place `first`. Those of its column are
    `Strided(columns)`."""

    first: int
    columns: int

    def __post_init__(self) -> None:
        if self.first < 0 or self.columns < 1:
            raise ValueError(f"Line: first is 0 or more, columns at least 1; got {self.first} and {self.columns}")

    def by_distance(self) -> bool:
        return False

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        q, k = query - self.first, key - self.first
        return (q // self.columns == k // self.columns) & (q >= 0) & (k >= 0)

    def reach(self) -> tuple[int, int]:
        return self.columns - 1, self.columns - 1


@dataclass(frozen=True)
class Corner(Mask):
    """The square of size x size cells whose last corner is the query's cell; cells begin at place `first`."""

    first: int
    columns: int
    size: int = 5

    def __post_init__(self) -> None:
        if self.first < 0 or self.columns < 1 or self.size < 1:
            given = f"{self.first}, {self.columns} and {self.size}"
            raise ValueError(f"Corner: first is 0 or more, columns and size at least 1; got {given}")

    def by_distance(self) -> bool:
        return False

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        q, k = query - self.first, key - self.first
        down, across = q // self.columns - k // self.columns, q % self.columns - k % self.columns
        near = (down >= 0) & (down < self.size) & (across >= 0) & (across < self.size)
        return near & (q >= 0) & (k >= 0)

    def reach(self) -> tuple[int, int]:
        return FAR, FAR


class ThreeRotary(Rotary):
    """Rotary positions with a third of a head's pairs for the place in the text, the row and the column.

    A cell stands at 8192 in the text, a token of text at -10 of rows and columns, which go from -1 to 1. Pairs are
    adjacent; the frequencies of the text are theta^(-2i/n), those of rows and columns go from pi to 5 pi. Numbers left
    over stay.

    Args:
        first: places of text. columns: of the grid.

    Shape: (B, T, H, K) -> same, K at least 6.
    """

    def __init__(self, dim: int, first: int, columns: int, theta: float = 10000.0):
        each = dim // 3 // 2  # pairs
        if each < 1 or first < 0 or columns < 1:
            raise ValueError(
                f"ThreeRotary turns three kinds of pairs and needs a grid: got {dim} numbers a head, first={first}, "
                f"columns={columns}"
            )
        super().__init__(6 * each, theta, pairs="adjacent")
        self.first, self.columns, self.each, self.third = first, columns, each, dim // 3
        self._key = ("three", dim, first, columns, theta)

    def angles(self, flow: Flow) -> tuple[Tensor, float]:
        places, n = flow.positions, self.columns
        cell = places - self.first
        drawn = cell >= 0  # a cell
        lines = torch.linspace(-1, 1, n, device=places.device)
        text = torch.where(drawn, AWAY, places).float()
        row = torch.where(drawn, lines[(cell // n).clamp(0, n - 1)], APART)
        column = torch.where(drawn, lines[(cell % n).clamp(0, n - 1)], APART)
        steps = torch.arange(0, 2 * self.each, 2, device=places.device, dtype=torch.float32)
        words = 1.0 / self.theta ** (steps / self.third)  # (K/6,)
        pixels = torch.linspace(1.0, 5.0, self.each, device=places.device) * torch.pi
        angles = (text[..., None] * words, row[..., None] * pixels, column[..., None] * pixels)
        return torch.cat(angles, -1)[..., None, :], 1.0  # (T, 1, K/2)


class TurnedAttention(Attention):
    """Attention whose positions turn the values, too; no biases of q, k and v. Args and shape: as in `Attention`."""

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        positions: Recipe[Rotary] | None = None,
        mask: Mask | None = None,
        kernel: str = "auto",
    ):
        super().__init__(
            dim,
            heads=heads,
            head_dim=head_dim,
            bias=False,
            out_bias=True,
            positions=positions,
            mask=mask,
            kernel=kernel,
        )

    def _self(self, x: Tensor, at: Tensor, q: Tensor, flow: Flow) -> tuple[Tensor, Tensor, Tensor]:
        kv = [self._split(p, self.kv_heads) for p in (self.k(at), self.v(x))]  # (B, T, G, K) each
        if self.positions is not None:
            q, *kv = (self.positions(t, flow) for t in (q, *kv))
        k, v = (t.transpose(1, 2) for t in kv)  # (B, G, T, K)
        slot = flow.slot(self)
        return (q, k, v) if slot is None else (q, *slot.append(k, v))


class Shifted(Mixer):
    """A part whose input has channels of earlier tokens: half of them from the token before; for a cell a quarter from
    the cell above and a quarter from the one on the left, 0 outside the picture.

    Args:
        inside: the part, a mixer or a feed-forward layer.
        first: places of text. columns: of the grid.

    Shape: (B, T, D) -> same, D a multiple of 4.
    """

    def __init__(self, dim: int, inside: Recipe[Mixer] | Recipe[FeedForward], first: int, columns: int):
        super().__init__()
        if dim % 4 or first < 0 or columns < 1:
            raise ValueError(
                f"Shifted moves quarters of the channels in a grid: got width {dim}, first={first}, columns={columns}"
            )
        self.inside: Any = inside.build(dim)
        self.first, self.columns, self.moving = first, columns, dim // 2

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        flow_in, T, n = flow.clear(x)[..., : self.moving], x.shape[1], self.columns
        slot = flow.slot(self)
        past = flow_in if slot is None else slot.append(flow_in[:, None])[0][:, 0]  # (B, S, D/2)
        past = F.pad(past, (0, 0, n, 0))
        before, above = (past[:, past.shape[1] - T - back : past.shape[1] - back] for back in (1, n))
        cell = flow.positions - self.first
        drawn, start = (cell >= 0)[..., None], (cell % n == 0)[..., None]
        quarter = self.moving // 2
        up = above[..., :quarter].masked_fill((cell < n)[..., None], 0.0)
        left = before[..., quarter:].masked_fill(start, 0.0)
        text = before.masked_fill((flow.positions == 0)[..., None], 0.0)
        moved = torch.where(drawn, torch.cat((up, left), -1), text)
        return self.inside(torch.cat((moved, x[..., self.moving :]), -1), flow)

    def start(self, batch: int, length: int, like: Tensor) -> KeysValues:
        return KeysValues(batch, 1, self.moving, length, like, kinds=1)


class OneMedium(Logits):
    """Scores of the tokens that can be next: those of the text (ids below `codes`) while the next place is one of text,
    else codes; all others have -10,000.

    Args:
        codes: the first id of a code. first: places of text, the beginning included.
        vocab, tied, bias: as in `Logits`.

    Shape: (B, T, D) -> (B, T, V).
    """

    plain = False

    def __init__(self, dim: int, vocab: int, codes: int, first: int, tied: bool = False, bias: bool = False):
        super().__init__(dim, vocab, tied, bias)
        if not 0 < codes < vocab or first < 1:
            raise ValueError(
                f"OneMedium: codes={codes} and first={first} do not divide {vocab} ids into text and codes"
            )
        self.codes, self.first = codes, first

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        scores = super().forward(x, flow)
        drawn = flow.positions[..., -x.shape[1] :] + 1 >= self.first  # the next one is a code
        code = torch.arange(scores.shape[-1], device=x.device) >= self.codes
        return scores.masked_fill(drawn[..., None] != code, NEVER)


def sequence(text: Sequence[Sequence[int]], vocab: int, places: int, codes: Tensor | None = None) -> Tensor:
    """Rows of text ids, and the codes of their pictures, as ids of one sequence (B, T): 0, text, padding with an id of
    its own for each place, codes.

    Args:
        vocab: ids of the text; 0 is padding. places: of the text.
        codes: (B, R, S) of whole pictures, or (B, n) the first ones.

    Raises:
        ValueError: naming the text, if it is too long or has another id.
    """
    rows = []
    for i, row in enumerate(text):
        if len(row) > places or any(not 0 <= token < vocab for token in row):
            raise ValueError(f"text {i} must be at most {places} ids from 0 to {vocab - 1}, got {list(row)[:9]}")
        padded = [*row, *[0] * (places - len(row))]
        rows.append([0, *(token or vocab + place for place, token in enumerate(padded))])
    ids = torch.tensor(rows)  # (B, 1 + places)
    return ids if codes is None else torch.cat((ids.to(codes.device), codes.flatten(1) + vocab + places), 1)
