"""Cross-attention to media between the tokens of a text: a token sees the last medium before it, and no other.

B batch, T tokens, N media of a row, L positions of each, S = N L, D width, E width of the media.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from anyformer.core.flow import Companion, Flow
from anyformer.core.mixer import OverTime
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.core.state import Slot
from anyformer.parts.attention.attention import Attention
from anyformer.parts.attention.cache import KeysValues
from anyformer.parts.attention.kernels import attend, offer
from anyformer.parts.attention.masks import FULL, Packed, View, resolved

NOTHING = -1  # the medium of a token before all media


@dataclass(frozen=True)
class Media(Companion):
    """The media of this call, and the medium that each token sees.

    Attributes:
        stream: (B, n L, E) the n media of each row that are new in this call; None without any.
        each: L. seen: (B, T) the number of the medium, of all so far; -1 = none.
    """

    left_by: ClassVar[str] = "the skeleton Interleaved"
    per_position: ClassVar[bool] = True
    stream: Tensor | None
    each: int
    seen: Tensor


class MediaAttention(Attention):
    """Attention to the last medium before each token (Alayrac et al., 2022; arXiv:2204.14198). A token before all
    media gets 0.

    Args:
        memory_dim: E.
        heads, head_dim, norm, dropout, kernel: as in `Attention`. There is no bias: nothing gives 0.

    Taps: `weights` (B, H, T, S).
    Shape: (B, T, D) -> same.
    """

    packs = False

    def __init__(
        self,
        dim: int,
        memory_dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        norm: Recipe[Norm] | None = None,
        dropout: float = 0.0,
        kernel: str = "auto",
    ):
        super().__init__(
            dim, heads=heads, head_dim=head_dim, bias=False, norm=norm, cross=True, dropout=dropout, kernel=kernel
        )
        self.k, self.v = (nn.Linear(memory_dim, heads * self.head_dim, bias=False) for _ in "kv")

    def skips_gaps(self) -> bool:
        return True

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        media = flow.get(Media, "MediaAttention")
        known = self._keys(media, flow)
        if known is None:
            return torch.zeros_like(x)
        k, v = known  # (B, H, S, K) each
        q = self._normed("q", self._split(self.q(x), self.heads)).transpose(1, 2)  # (B, H, T, K)
        seen, mask = flow.once("media", lambda: resolved(_view(media, k.shape[2])))
        offer(flow, self, q, k, seen)
        y = attend(q, k, v, seen, mask, dropout=self.dropout if self.training else 0.0, kernel=self.kernel)
        return self.o(y.transpose(1, 2).flatten(2))

    def _keys(self, media: Media, flow: Flow) -> tuple[Tensor, Tensor] | None:
        """Keys and values of all media so far, those of earlier calls from the state; None if there are none."""
        slot = flow.slot(self)
        if media.stream is None:
            return (slot.k, slot.v) if slot is not None and slot.length else None
        k, v = (self._split(p(media.stream), self.heads) for p in (self.k, self.v))  # (B, n L, H, K) each
        k, v = self._normed("k", k).transpose(1, 2), v.transpose(1, 2)
        return (k, v) if slot is None else slot.take(flow.first, k, v)

    def start(self, batch: int, length: int, like: Tensor) -> MediaKeys:
        return MediaKeys(batch, self.heads, self.head_dim, 0, like)


def _view(media: Media, keys: int) -> View:
    """The visible pairs: a medium and the tokens that see it are like one document."""
    here, device = media.seen, media.seen.device
    number = (torch.arange(keys, device=device) // media.each)[None]  # (1, S)
    mine, theirs = Packed(here, torch.zeros_like(here)), Packed(number, torch.zeros_like(number))
    return View(FULL, 0, here.shape[1], 0, keys, None, device, mine, theirs)


class Arrivals:
    """The number of things after each call that brought some, with the length of the text before it."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    @property
    def total(self) -> int:
        return self.calls[-1][1] if self.calls else 0

    def add(self, first: int, count: int) -> None:
        """`count` more come with the token at index `first`."""
        if count:
            self.calls.append((first, self.total + count))

    def trim(self, length: int) -> None:
        """Forgets what came behind the first `length` tokens."""
        self.calls = [call for call in self.calls if call[0] < length]


class MediaKeys(KeysValues):
    """Keys and values of the media so far. The text behind a call's first token brings none of its media back."""

    def __init__(self, batch: int, heads: int, head_dim: int, room: int, like: Tensor):
        super().__init__(batch, heads, head_dim, room, like)
        self.arrivals = Arrivals()

    def take(self, first: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends those that came with the token at index `first`, and returns all."""
        self.arrivals.add(first, k.shape[2])
        self.append(k, v)
        return self.k, self.v

    def trim(self, length: int) -> None:
        self.arrivals.trim(length)
        self.length = self.arrivals.total

    @property
    def joins(self) -> bool:
        return False  # what came with a call is counted for all rows at once


class LastMedium(OverTime):
    """The number of the medium that each token sees: of the last one that begins at the token or before it.

    Shape: begins (B, T) True where a medium begins -> (B, T), -1 = none.
    """

    def skips_gaps(self) -> bool:
        return True

    def forward(self, begins: Tensor, slot: Seen | None) -> Tensor:
        count = begins.long().cumsum(1)  # (B, T) of this call
        if slot is None or not slot.length:
            return count - 1
        return torch.where(count > 0, count - 1 + slot.arrivals.total, slot.numbers[:, -1:])

    def start(self, batch: int, length: int, like: Tensor) -> Seen:
        return Seen(torch.empty(batch, 0, dtype=torch.long, device=like.device))


class Seen(Slot):
    """The number of the medium that each token so far saw, (B, length), and of the media that came.

    Attributes:
        each: the positions of a medium.
    """

    def __init__(self, numbers: Tensor):
        self.numbers, self.arrivals, self.each = numbers, Arrivals(), 0

    @property
    def length(self) -> int:
        return self.numbers.shape[1]

    def take(self, seen: Tensor, media: int, each: int) -> None:
        """Appends the numbers of this call's tokens, (B, T), and its number of media of `each` positions."""
        self.arrivals.add(self.length, media)
        self.each = each
        self.numbers = torch.cat((self.numbers, seen), 1)

    def reorder(self, index: Tensor) -> None:
        self.numbers = self.numbers[index]

    def trim(self, length: int) -> None:
        self.numbers = self.numbers[:, :length]
        self.arrivals.trim(length)

    def bytes(self) -> int:
        return self.numbers.nbytes
