"""Packed documents: several texts in one row, each read as if it were alone. B batch, T time.

`document_ids` (B, T) says of which document each token is: 0, 1, 2 … along a row, -1 where there is padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anyformer.core.part import Mixer


def places(document_ids: Tensor) -> Tensor:
    """The place of each token in its own document: 0 where one begins (and where a run of padding does), (B, T).

    Raises:
        ValueError: if a document comes back after another one or padding: what is recurrent has forgotten it.
    """
    before = torch.cat((torch.full_like(document_ids[:, :1], -2), document_ids[:, :-1]), 1)  # (B, T)
    begins = document_ids != before
    if not torch.compiler.is_compiling():
        again = (document_ids >= 0) & (document_ids <= before.cummax(1).values)
        wrong = (begins & again) | (document_ids < -1)
        if bool(wrong.any()):
            row, place = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"document_ids: in each row they count the documents 0, 1, 2 …, every one in one piece, and are -1 at "
                f"padding; row {row} has {int(document_ids[row, place])} at place {place}, after "
                f"{int(before[row, : place + 1].max())}"
            )
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    return index - index.masked_fill(~begins, 0).cummax(1).values


def lengths(places: Tensor) -> Tensor:
    """The length of the document that each token is of, from `places`, (B, T)."""
    number = (places == 0).cumsum(1) - 1
    return torch.zeros_like(places).scatter_add_(1, number, torch.ones_like(places)).gather(1, number)


def check_packed(
    model: nn.Module, document_ids: Tensor, inputs: Tensor, mask: Tensor | None, positions: Tensor | None, state: object
) -> None:
    """Raises ValueError, naming what it is, unless this model can keep these documents apart."""
    if document_ids.shape != inputs.shape:
        raise ValueError(
            f"document_ids must be (batch, tokens) = {tuple(inputs.shape)}, got {tuple(document_ids.shape)}"
        )
    others = {"attention_mask": mask, "position_ids": positions, "state": state}
    for name in (n for n, value in others.items() if value is not None):
        raise ValueError(
            f"document_ids and {name} cannot be given together: the ids say what is padding (-1), places begin again "
            "in each document, and decoding continues one text a row"
        )
    for part in (m for m in model.modules() if isinstance(m, Mixer) and not m.packs):
        raise ValueError(
            f"{type(part).__name__} cannot keep packed documents apart; give one document a row, with attention_mask"
        )
