"""Labels of tokens. B batch, T time."""

from torch import Tensor
from torch.nn import functional as F

IGNORE = -100  # a label that is not counted


def next_tokens(input_ids: Tensor, attention_mask: Tensor | None = None, document_ids: Tensor | None = None) -> Tensor:
    """Labels for a causal model: the token after each position; -100 at the last one, at padding and before it, and at
    the last token of a packed document.

    Shapes: (B, T), (B, T), (B, T) -> (B, T).
    """
    labels = F.pad(input_ids[:, 1:], (0, 1), value=IGNORE)  # (B, T)
    if attention_mask is not None:
        both = attention_mask.bool() & F.pad(attention_mask[:, 1:], (0, 1)).bool()
        labels = labels.masked_fill(~both, IGNORE)
    if document_ids is not None:
        same = (document_ids == F.pad(document_ids[:, 1:], (0, 1), value=-1)) & (document_ids >= 0)
        labels = labels.masked_fill(~same, IGNORE)
    return labels


def shift_right(labels: Tensor, begin_id: int, pad_id: int = 0) -> Tensor:
    """A decoder's input for `labels`: `begin_id`, then each label one position later.

    Labels of -100 become `pad_id`, which no counted position attends to. Shape: (B, T) -> (B, T).
    """
    return F.pad(labels[:, :-1], (1, 0), value=begin_id).masked_fill(F.pad(labels[:, :-1], (1, 0)) == IGNORE, pad_id)
