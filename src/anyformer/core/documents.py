"""Packed documents: several texts in one row, independent of each other. B batch, T time.

`document_ids` (B, T) is the document of each token: 0, 1, 2 … along a row, -1 at padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anyformer.core.checks import readable


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """The position of each token in its own document: 0 at its start (and at the start of a run of padding), (B, T).

    Raises:
        ValueError: if a document resumes after another one or padding: recurrent mixers no longer hold its state.
    """
    before = torch.cat((torch.full_like(document_ids[:, :1], -2), document_ids[:, :-1]), 1)  # (B, T)
    begins = document_ids != before
    if readable(document_ids):
        again = (document_ids >= 0) & (document_ids <= before.cummax(1).values)
        wrong = (begins & again) | (document_ids < -1)
        if bool(wrong.any()):
            row, place = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"document_ids must number the documents of a row 0, 1, 2 …, each in one piece, and be -1 at "
                f"padding; row {row} has {int(document_ids[row, place])} at position {place}, after "
                f"{int(before[row, : place + 1].max())}"
            )
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    return index - index.masked_fill(~begins, 0).cummax(1).values


def counted(keep: Tensor) -> Tensor:
    """The position of each token of padded rows, padding not counted; 0 before the first one. (B, S) -> same."""
    return (keep.long().cumsum(1) - 1).clamp(min=0)


def lengths(positions: Tensor) -> Tensor:
    """The length of each token's document, from `positions`, (B, T)."""
    number = (positions == 0).cumsum(1) - 1
    return torch.zeros_like(positions).scatter_add_(1, number, torch.ones_like(positions)).gather(1, number)
