"""Checks of the first batch, and of labels that do not count."""

from __future__ import annotations

import torch

from anyformer.data.batches import Batch
from anyformer.train.loggers import Observer
from anyformer.train.objectives import IGNORE, Objective, classification, masked_lm, plain


def nothing_counts(step: int, first: bool, observer: Observer) -> None:
    """Reports a step in which every label is -100.

    Raises:
        ValueError: at the first step; at later ones the observer gets a message.
    """
    problem = f"step {step + 1}: every label is {IGNORE}, so none counts"
    if first:
        raise ValueError(f"{problem}, so there is nothing to learn: was the counted part cut off?")
    observer.message(f"{problem}; nothing is learned from it")


def across(objective: Objective, accumulate: int) -> None:
    """Raises ValueError for accumulated batches if the loss compares all rows of a step."""
    if accumulate > 1 and getattr(objective, "across", False):
        raise ValueError(
            f"accumulate={accumulate}: {type(objective).__name__} compares every row of a batch with every other one, "
            f"and rows of other batches would be missing from the negatives. Use a batch {accumulate} times as large; "
            "activation_checkpointing=['**.blocks.*'] or more processes make room for it"
        )


def check(batch: Batch, objective: Objective) -> None:
    """Raises ValueError for a batch that would train silently on nonsense, or fail with an unclear error."""
    if "labels" not in batch:
        raise ValueError(
            f"a batch needs labels; it has {', '.join(batch)}; for a causal model: objectives.next_tokens(input_ids)"
        )
    for name, value in batch.items():
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise ValueError(f"the batch's {name} must be a tensor, got {kind}; torch.as_tensor makes one")
        if name == "labels" and getattr(objective, "gaps", False):
            continue  # NaN is a missing value
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"the batch's {name} hold NaN or infinity before the first step: clean the data")
    if own := getattr(objective, "check", None):
        own(batch["labels"])
    if _copies(batch, plain(objective)):
        raise ValueError(
            "the labels are the inputs themselves: a model would learn to copy. A label stands where it is to be read; "
            "for a causal model it is the next token: objectives.next_tokens(input_ids, attention_mask)"
        )


def _copies(batch: Batch, objective: Objective) -> bool:
    """Are the labels the tokens at their own places? Of a text like "aaaa" they are, and are the next tokens, too."""
    labels, ids = batch["labels"], batch.get("decoder_input_ids", batch.get("input_ids"))
    if ids is None or ids.shape != labels.shape or objective is classification:  # a class is no token
        return False
    seen, ids = labels != IGNORE, ids.to(labels.dtype)
    if not bool(seen.any()) or (objective is masked_lm and not bool(seen.all())):  # hidden tokens may stand there
        return False
    next_ = torch.equal(ids[:, 1:][seen[:, :-1]], labels[:, :-1][seen[:, :-1]])
    return torch.equal(ids[seen], labels[seen]) and not next_
