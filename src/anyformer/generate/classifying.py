"""The class of a text or a picture. B items of a batch, N items, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anyformer.generate.decoding import evaluating
from anyformer.generate.embedding import check, embed, inputs_of


@torch.inference_mode()
def classify(
    model: Any, items: Sequence[Any], labels: Sequence[str] | None = None, template: str = "{}", batch: int = 32
) -> list[dict[str, float]]:
    """The probability of each class for each item; the likeliest first.

    A model with a classification head has its own classes. Two towers (CLIP) choose among any `labels`, by the
    similarity of text and image.

    Args:
        items: texts, or pictures, as of `embed`.
        labels: the classes for two towers, in words.
        template: around each label, such as "a photo of a {}.", like the captions of training.
        batch: items that go through the model at once.

    Raises:
        ValueError: without items, for labels where the model has its own or none where it needs them, a template
            without {}, a model without classes, tokenizer or processor, or an item of another type.
    """
    check(items, batch)
    if model.alike:
        return _alike(model, items, labels, template, batch)
    if labels is not None:
        raise ValueError(
            "labels are for a model with two towers (CLIP); this one has its own classes; leave labels out"
        )
    ranking: list[dict[str, float]] = []
    with evaluating(model):
        for at in range(0, len(items), batch):
            logits = model(**inputs_of(model, items[at : at + batch])).heads.get("classes")
            if logits is None or logits.ndim != 2:
                raise ValueError(
                    f"{type(model).__name__} has no classification head; `anyformer finetune` on rows with a label "
                    "adds one"
                )
            names = names_of(model, logits.shape[-1])
            ranking += [ranked(names, row) for row in logits.float().softmax(-1).tolist()]
    return ranking


def _alike(
    model: Any, items: Sequence[Any], labels: Sequence[str] | None, template: str, batch: int
) -> list[dict[str, float]]:
    if labels is None or isinstance(labels, str) or len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"labels must be a list of at least two different classes in words, got {labels!r:.80}")
    if "{}" not in template:
        raise ValueError(f"template is {template!r}; it needs {{}}, where the label stands")
    texts = embed(model, [template.replace("{}", label) for label in labels], batch)  # (C, E)
    scores = model.scale.exp().float() * embed(model, items, batch) @ texts.mT  # (N, C)
    return [ranked(labels, row) for row in scores.softmax(-1).tolist()]


def names_of(model: Any, count: int) -> list[str]:
    """The names of a model's classes, from its training or its files, else LABEL_0, LABEL_1 …."""
    known = known_names(model)
    return [str(known.get(str(i), f"LABEL_{i}")) for i in range(count)]


def known_names(model: Any) -> dict[str, str]:
    """The names of a model's classes by their number in words, as its training or its files say; {}: they do not."""
    origin = model.origin or {}
    trained = {str(i): name for i, name in enumerate(origin.get("classes") or ())}
    return trained or origin.get("config", {}).get("id2label") or {}


def ranked(names: Sequence[str], shares: Sequence[float]) -> dict[str, float]:
    """The probability of each class, the likeliest first."""
    return dict(sorted(zip(names, shares, strict=True), key=lambda pair: -pair[1]))
