"""What is learned: losses over counted tokens. B batch, T time, V vocabulary, C classes.

Every objective is `objective(output, labels, count) -> loss`: the *sum* over what is counted in this batch, divided by
`count`, which is how much is counted in the whole step: in all accumulated batches, on all machines. So neither padding
nor how a step is cut into batches changes the loss or its gradient.

A label stands where it should be read: `labels[b, t]` is what `logits[b, t]` should say. For a causal model that is the
*next* token; `next_tokens` makes such labels. The label -100 is not counted.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.core.skeletons import Output

IGNORE = -100


def counted(labels: Tensor) -> Tensor:
    """How many labels count: a whole number, in a tensor of no dimensions."""
    return (labels != IGNORE).sum()


def next_tokens(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Labels for a causal model: the token after each place; -100 at the last place, at padding and before it.

    Shapes: (B, T), (B, T) -> (B, T).
    """
    labels = F.pad(input_ids[:, 1:], (0, 1), value=IGNORE)  # (B, T)
    if attention_mask is not None:
        both = attention_mask.bool() & F.pad(attention_mask[:, 1:], (0, 1)).bool()
        labels = labels.masked_fill(~both, IGNORE)
    return labels


def causal_lm(output: Output, labels: Tensor, count: Tensor | float) -> Tensor:
    """-sum log p(label at t | tokens up to t) / count, for decoders and (teacher forcing) encoder-decoders.

    Shapes: logits (B, T, V), labels (B, T) -> a number, in nats a token.
    """
    return _cross_entropy(output.logits, labels, count)


def masked_lm(output: Output, labels: Tensor, count: Tensor | float) -> Tensor:
    """-sum log p(label at t | all tokens) / count (BERT). Labels are -100 wherever nothing was hidden.

    Reads the head `mlm`, else the first one.
    Shapes: logits (B, T, V), labels (B, T) -> a number, in nats a hidden token.
    """
    return _cross_entropy(output.heads.get("mlm", output.logits), labels, count)


def classification(output: Output, labels: Tensor, count: Tensor | float) -> Tensor:
    """-sum log p(label | input) / count, for a whole input or each token of it.

    Shapes: logits (B, C), labels (B,), or logits (B, T, C), labels (B, T) -> a number, in nats a label.
    """
    return _cross_entropy(output.logits, labels, count)


def with_auxiliary(loss: Tensor, output: Output, share: float) -> Tensor:
    """The loss and the auxiliary losses that parts added (`Flow.add_aux`).

    An auxiliary loss is a mean over one batch; `share` is the share of the step's counted tokens in that batch.
    """
    return loss + share * torch.stack(list(output.aux.values())).sum() if output.aux else loss


def _cross_entropy(logits: Tensor | None, labels: Tensor, count: Tensor | float) -> Tensor:
    if logits is None or logits.shape[:-1] != labels.shape:
        got = "no logits" if logits is None else f"logits {tuple(logits.shape)}"
        raise ValueError(f"labels of shape {tuple(labels.shape)} need one row of logits each, and the model gave {got}")
    try:
        total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    except IndexError:
        bad = labels[(labels != IGNORE) & ((labels < 0) | (labels >= logits.shape[-1]))]
        raise ValueError(
            f"label {int(bad[0])} is outside what the head knows: 0 to {logits.shape[-1] - 1}, or {IGNORE}: not counted"
        ) from None
    return total / count
