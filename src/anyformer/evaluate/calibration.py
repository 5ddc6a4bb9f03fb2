"""Confidence against truth, and abstention: questions that have no answer should not be answered with confidence.

The confidence is the probability of the chosen answer among all choices or classes (a softmax of log-likelihoods).

```
ECE                   sum over 10 bins of equal width: |accuracy - mean confidence| n / N   (Guo et al., 2017)
risk at coverage c    errors among the share c of the questions that are answered with most confidence
```
An invented question (its label is null) has no right answer: answering it is an error. B bins, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from anyformer.evaluate.answering import Measured, gold_of, likelihoods, shares
from anyformer.evaluate.intervals import Corpus, Metric, wilson
from anyformer.evaluate.items import Item
from anyformer.evaluate.shots import Form

BINS = 10
COVERAGES = (0.2, 0.4, 0.6, 0.8, 1.0)


def ece(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error, in probability; bins (a, b], as in the paper. Shapes: (N,), (N,)."""
    place = _places(confidence, bins)
    gap = np.bincount(place, right - confidence, bins)  # (B,)
    return float(np.abs(gap).sum() / len(confidence))


def _places(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def risks(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The share of errors among the k most confident answers, for k = 1 … N; equal confidences count evenly. (N,)."""
    order = np.argsort(-confidence, kind="stable")
    sorted_by, wrong = confidence[order], 1.0 - right[order]
    starts = np.flatnonzero(np.r_[True, sorted_by[1:] != sorted_by[:-1]])
    means = np.add.reduceat(wrong, starts) / np.diff(np.r_[starts, len(wrong)])
    even = np.repeat(means, np.diff(np.r_[starts, len(wrong)]))
    return np.cumsum(even) / np.arange(1, len(wrong) + 1)


def calibration(model: Any, items: Sequence[Item], form: Form) -> Measured:
    """ECE, the reliability table, and, with invented questions, risk and coverage.

    Raises:
        ValueError: if no question has an answer.
    """
    known = np.array([form.shown(item) for item in items])
    if not known.any():
        raise ValueError("every label is null: calibration needs questions that have an answer")
    if items[0].choices:
        logs = [likelihoods(model, item, form) for item in items]
        every = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in logs]
        gold = np.array([-1 if item.gold is None else item.gold for item in items])
    else:
        names, found = shares(model, items, form)
        every, gold = list(found), np.full(len(items), -1)
        gold[known] = gold_of(names, [item for item, answered in zip(items, known, strict=True) if answered])
    confidence = np.array([float(row.max()) for row in every])  # (N,)
    right = np.array([float(int(row.argmax()) == g) for row, g in zip(every, gold, strict=True)])
    sure, true = confidence[known], right[known]
    metrics: dict[str, Metric | Corpus] = {
        "ece": Corpus(lambda drawn: ece(sure[drawn], true[drawn]), int(known.sum())),
        "acc": Metric(true, share=True),
        "confidence": Metric(sure),
        "aurc": Corpus(lambda drawn: float(risks(confidence[drawn], right[drawn]).mean()), len(items)),
    }
    notes = ["ece, acc and confidence: of questions with an answer; aurc, the mean risk over all coverages: of all"]
    if not known.all():
        middle = float(np.median(sure))
        metrics["invented_confident"] = Metric((confidence[~known] >= middle).astype(float), share=True)
        notes.append(
            f"invented_confident: the share of {int((~known).sum())} invented questions answered at or above the "
            f"median confidence of real ones, {middle:.3f}; one half if the model cannot tell them apart"
        )
    curve = risks(confidence, right)
    steps = [max(1, round(c * len(items))) for c in COVERAGES]
    details = {
        "reliability": _table(sure, true),
        "risk": [
            {"coverage": c, "answered": k, "risk": wilson(round(curve[k - 1] * k), k).json()}
            for c, k in zip(COVERAGES, steps, strict=True)
        ],
    }
    rows = [
        {"item": i.where, "confidence": float(c), "right": bool(r), "invented": not bool(k)}
        for i, c, r, k in zip(items, confidence, right, known, strict=True)
    ]
    return Measured(metrics, details=details, rows=rows, notes=notes)


def _table(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Each bin that holds anything: its bounds, how many, mean confidence, accuracy with Wilson's interval."""
    place, made = _places(confidence, BINS), []
    for b in np.unique(place):
        inside = place == b
        found = wilson(int(right[inside].sum()), int(inside.sum()))
        made.append({
            "bin": [b / BINS, (b + 1) / BINS], "count": int(inside.sum()),
            "confidence": float(confidence[inside].mean()), "accuracy": found.json(),
        })  # fmt: skip
    return made
