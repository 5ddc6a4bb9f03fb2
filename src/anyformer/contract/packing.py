"""Items 6 and 7, for rows with several documents: none sees another one.

B batch, T time, D width.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from anyformer.contract.behaviour import refuses
from anyformer.contract.check import check
from anyformer.contract.oracle import fresh
from anyformer.contract.probe import Batch, close, draw, expect, outputs, slopes_agree
from anyformer.contract.subjects import Subject, apart_from_tiny
from anyformer.core.mixer import OverTime

MOST = 40  # tokens of a row


def takes_documents(subject: Subject) -> str | None:
    """The reason why a model takes no document_ids, or None."""
    return None if subject.reads_text and len(subject.outline.entrances()) == 1 else "it takes no document_ids"


def packs(subject: Subject) -> str | None:
    """The reason why checks of packed documents do not apply, or None."""
    if subject.has_source:
        return "sources and targets are not packed: one pair a row"
    if len(subject.outline.entrances()) > 1:
        return "it reads a text and something else: one pair a row"
    if not subject.reads_text:
        return "it reads no text: a row is one picture, or one episode"
    for part in (m for m in subject.outline.modules() if isinstance(m, OverTime) and not m.packs):
        return f"{type(part).__name__} cannot keep packed documents apart"
    return "it makes one vector of a row" if getattr(subject.outline, "pool", None) is not None else None


def packed(subject: Subject, rng: random.Random) -> tuple[Batch, list[list[slice]]]:
    """Two rows of random documents with padding on some side, and the slices of the documents in each."""
    most = min(MOST, subject.limit or MOST)
    batch = draw(subject, rng, [most] * 2, media=False)
    ids, places = torch.full((2, most), -1), []
    for row in ids:
        at = rng.choice((0, 0, rng.randint(1, 3)))
        documents: list[slice] = []
        while at < most and len(documents) < 5 and (not documents or rng.random() < 0.9):
            end = min(most, at + rng.randint(1, 14))
            row[at:end] = len(documents)
            documents.append(slice(at, end))
            at = end
        places.append(documents)
    return batch.with_(document_ids=ids), places


def combined(documents: list[dict[str, Tensor]]) -> Tensor:
    """A random combination of all values."""
    noise = torch.Generator().manual_seed(0)
    values = [value for document in documents for value in document.values()]
    return torch.stack([(value * torch.randn(value.shape, generator=noise)).sum() for value in values]).sum()


def slopes(model: Any, total: Tensor) -> dict[str, Tensor]:
    """The gradient of a number by all parameters."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, gradients, strict=True))


@check(6, "model", examples=4, needs=packs, checkpoint=True)
def packing_changes_nothing(subject: Subject, rng: random.Random) -> float:
    """Documents that share a row give the same outputs, at every position, and gradients as each alone.

    In float64: at the kink of ReLU, rounding in float32 decides about a whole gradient.
    """
    batch, places = packed(subject, rng)
    model, together, apart = fresh(subject.model).double(), [], []
    out = outputs(model(**batch.inputs))
    for row, documents in enumerate(places):
        for place in documents:
            inputs = {n: v[row : row + 1, place] for n, v in batch.inputs.items() if n != "document_ids"}
            alone = outputs(model(**inputs))
            names = [n for n in alone if not n.startswith("aux.")]  # an auxiliary loss is of the whole batch
            together.append({n: out[n][row, place] for n in names})
            apart.append({n: alone[n][0] for n in names})
    worst = 0.0
    for i, (actual, expected) in enumerate(zip(together, apart, strict=True)):
        worst = max(worst, *(close(actual[n], expected[n], f"document {i}: {n}") for n in expected))
    return max(worst, slopes_agree(slopes(model, combined(together)), slopes(model, combined(apart)), "packed"))


@check(7, "model", examples=3, needs=packs, checkpoint=True, later=apart_from_tiny)
def no_gradient_between_documents(subject: Subject, rng: random.Random) -> float:
    """The gradient of a document's outputs by inputs of another one, or of padding, is exactly 0."""
    batch, places = packed(subject, rng)
    entered: list[Tensor] = []
    hook = subject.model.embed.register_forward_hook(lambda module, inputs, output: entered.append(output))
    try:
        hidden = subject.model(**batch.inputs).hidden  # (B, T, D)
    finally:
        hook.remove()
    for row, documents in enumerate(places):
        for place in documents:
            goal = hidden[row, place].square().sum()
            (slope,) = torch.autograd.grad(goal, entered[0], retain_graph=True)  # (B, T, D)
            own = float(slope[row, place].abs().max())
            slope[row, place] = 0.0
            other = float(slope.abs().max())
            expect(other == 0.0, f"row {row}: tokens {place.start} to {place.stop} depend on others: {other:.2e}")
            expect(own > 0.0, f"row {row}: tokens {place.start} to {place.stop} depend on nothing")
    return 0.0


@check(6, "model", needs=takes_documents)
def packed_documents_are_separate_or_refused(subject: Subject) -> float:
    """Documents in two pieces, a mask beside them, a cache, or one vector for several documents are clear errors."""
    batch = draw(subject, random.Random(60), [6], media=False)
    ids, model = torch.tensor([[0, 0, 1, 1, -1, -1]]), subject.model
    if packs(subject):
        why = "one vector" if getattr(model, "pool", None) is not None else "cannot keep packed documents apart"
        refuses(lambda: model(**batch.inputs, document_ids=ids), why)
        return 0.0
    refuses(lambda: model(**batch.inputs, document_ids=torch.tensor([[0, 0, 1, 1, 0, 0]])), "one piece")
    refuses(lambda: model(**batch.inputs, document_ids=torch.tensor([[0, 0, -1, 0, 1, 1]])), "one piece")
    refuses(lambda: model(**batch.inputs, document_ids=ids[:, :5]), "document_ids must be")
    refuses(lambda: model(**batch.inputs, document_ids=ids, attention_mask=ids >= 0), "attention_mask")
    if subject.decodes:
        refuses(lambda: model(**batch.inputs, document_ids=ids, state=model.start(1)), "state")
    return 0.0
