"""Unpadding: real tokens first, for mixers that index, sample or shift.

B batch, T time, H heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anyformer.core.flow import Flow

FAR = 1 << 30  # position of padding: larger than any real one


@dataclass(frozen=True)
class Rows:
    """The positions of the real tokens of each row. Padding comes after them, from either side."""

    count: Tensor  # (B, 1) real tokens of a row
    place: Tensor  # (B, T) position of each token among the real ones
    token: Tensor  # (B, T) the inverse: the index of the token at a position
    whole: bool  # True if there is no padding: then both are 0, 1, 2, …

    def packed(self, t: Tensor) -> Tensor:
        """(B, H, T, K) in the order of the positions: real tokens first."""
        return t if self.whole else t.gather(2, self.token[:, None, :, None].expand_as(t))

    def unpacked(self, t: Tensor) -> Tensor:
        """The inverse of `packed`."""
        return t if self.whole else t.gather(2, self.place[:, None, :, None].expand_as(t))

    def real(self) -> Tensor:
        """(B, T) by position: True = a token."""
        return torch.arange(self.place.shape[1], device=self.place.device) < self.count


def rows(flow: Flow, x: Tensor) -> Rows:
    """The rows of this call, of `x` (B, T, D)."""
    batch, time = x.shape[:2]
    keep = flow.keep_now(time)
    if keep is None:
        place = torch.arange(time, device=x.device).expand(batch, time)
        return Rows(place.new_full((batch, 1), time), place, place, True)
    token = keep.int().argsort(dim=1, descending=True, stable=True)
    return Rows(keep.sum(1, keepdim=True), token.argsort(1), token, False)


def divided(count: Tensor, by: int) -> Tensor:
    """`count` / `by`, rounded up."""
    return torch.div(count + by - 1, by, rounding_mode="floor")
