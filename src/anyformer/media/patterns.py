"""Patterns: the order in which a decoder says codes that stand one above the other.

B sounds, T frames, Q books of a frame, L steps of the decoder.

| pattern      | a step says                                     | steps              |
|--------------|-------------------------------------------------|--------------------|
| `Parallel()` | all books of a frame at once                    | T                  |
| `Delay()`    | book q of the frame q steps ago                 | T + Q - 1          |
| `Flat()`     | one book of a frame, the others are padding     | T Q                |

A pattern is no part of a network: it lays out what the network is given and says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anyformer.core.value import Value


class Pattern(Value):
    """Base of all patterns: where each code stands, as a frame for each step and book, -1 for none."""

    def frames(self, frames: int, books: int) -> Tensor:
        """The frame that stands at each step in each row of books, (L, Q), -1 = none."""
        raise NotImplementedError

    def steps(self, frames: int, books: int) -> int:
        """L."""
        return len(self.frames(frames, books))

    def laid(self, codes: Tensor, pad: int) -> Tensor:
        """Codes (B, T, Q) as the steps of a decoder (B, L, Q), with `pad` where there is none."""
        if codes.ndim != 3 or not codes.shape[1]:
            raise ValueError(f"codes must be (batch, frames, books), at least one frame; got {tuple(codes.shape)}")
        frames = self.frames(*codes.shape[1:]).to(codes.device)
        there = codes.gather(1, frames.clamp(min=0).expand(len(codes), -1, -1))
        return there.masked_fill(frames < 0, pad)

    def back(self, laid: Tensor, frames: int) -> Tensor:
        """The codes (B, T, Q) of the steps of a decoder (B, L, Q): the inverse of `laid`."""
        places = self.frames(frames, laid.shape[2])
        if laid.shape[1] != len(places):
            raise ValueError(f"{frames} frames have {len(places)} steps, got {laid.shape[1]}")
        codes = laid.new_empty(len(laid), frames, laid.shape[2])
        for book in range(laid.shape[2]):
            steps = (places[:, book] >= 0).nonzero()[:, 0].to(laid.device)
            codes[:, places[:, book][steps.cpu()].to(laid.device), book] = laid[:, steps, book]
        return codes


@dataclass(frozen=True)
class Parallel(Pattern):
    """All books of a frame at once: fast, but no book of a frame sees the others."""

    def frames(self, frames: int, books: int) -> Tensor:
        return torch.arange(frames)[:, None].expand(-1, books)


@dataclass(frozen=True)
class Delay(Pattern):
    """Each book a step after the one before (Copet et al., 2023, "MusicGen"; arXiv:2306.05284).

    Attributes:
        together: neighbouring books that share a delay: 2 where those of the left and the right channel alternate.
    """

    together: int = 1

    def __post_init__(self) -> None:
        if self.together < 1:
            raise ValueError(f"Delay: together is at least 1, got {self.together}")

    def frames(self, frames: int, books: int) -> Tensor:
        late = torch.arange(books) // self.together
        places = torch.arange(frames + int(late[-1]))[:, None] - late
        return places.masked_fill((places < 0) | (places >= frames), -1)


@dataclass(frozen=True)
class Flat(Pattern):
    """One book of a frame after the other: exact, and Q times as long."""

    def frames(self, frames: int, books: int) -> Tensor:
        own = torch.eye(books, dtype=torch.bool).repeat(frames, 1)  # (L, Q)
        return torch.where(own, torch.arange(frames).repeat_interleave(books)[:, None], -1)


PATTERNS = {"parallel": Parallel(), "delay": Delay(), "flat": Flat()}
