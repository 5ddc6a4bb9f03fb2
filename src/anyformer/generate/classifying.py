"""The class of a text or a picture. B items of a batch, N items, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anyformer.generate.decoding import evaluating
from anyformer.generate.embedding import inputs_of


@torch.inference_mode()
def classify(model: Any, items: Sequence[Any], batch: int = 32) -> list[dict[str, float]]:
    """How likely each class is for each item, by a model with a head of classes; the likeliest first.

    Args:
        items: texts, or for a model of pictures whatever `media.picture` reads, such as paths.
        batch: items that go through the model at once.

    Raises:
        ValueError: without items, for a model without such a head, tokenizer or processor, or an item that is none.
    """
    head = model.heads["classes"] if "classes" in getattr(model, "heads", ()) else None
    if head is None or getattr(head, "each", False):
        raise ValueError(
            f"{type(model).__name__} has no head of classes for a whole item; `anyformer finetune` on rows with a "
            "label makes one"
        )
    found: list[dict[str, float]] = []
    with evaluating(model):
        for inputs, _ in inputs_of(model, items, batch):
            shares = model(**inputs).heads["classes"].float().softmax(-1)  # (B, C)
            found += [_ranked(names_of(model, shares.shape[-1]), row) for row in shares.tolist()]
    return found


def names_of(model: Any, count: int) -> list[str]:
    """The names of a model's classes, as its files say them, else LABEL_0, LABEL_1 …."""
    said = (model.origin or {}).get("config", {}).get("id2label") or {}
    return [str(said.get(str(i), f"LABEL_{i}")) for i in range(count)]


def _ranked(names: Sequence[str], shares: Sequence[float]) -> dict[str, float]:
    return dict(sorted(zip(names, shares, strict=True), key=lambda pair: -pair[1]))
