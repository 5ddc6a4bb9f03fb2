"""The task that a small model is designed for: rows with a class or a number, split once, and its metric.

| metric | label | is |
|---|---|---|
| accuracy | a class | the share of right classes |
| f1 | a class | mean over the classes of the harmonic mean of precision and recall |
| pearson | a number | the correlation of scores and labels |
| spearman | a number | that of their ranks |

Of the rows 80 % teach, 10 % choose among architectures and steps, and 10 % are looked at once, at the end; or rows of
their own are, and 90 % teach.
N rows, C classes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.data.order import permuted
from anyformer.edge.medium import Medium, Part
from anyformer.evaluate.answering import confusion, macro_f1
from anyformer.evaluate.intervals import Corpus

LEAST = 50  # rows
PARTS = ("learn", "choose", "test")


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows whose largest logit is the label's. (N, C), (N,)."""
    return float((logits.argmax(-1) == labels).mean())


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of 2 TP / (2 TP + FP + FN) over the classes that rows or answers have. (N, C), (N,)."""
    return macro_f1(confusion(labels, logits.argmax(-1), logits.shape[-1]))


def pearson(scores: np.ndarray, labels: np.ndarray) -> float:
    """The correlation; 0 if all scores are equal. (N, 1), (N,)."""
    x, y = scores.reshape(-1) - scores.mean(), labels - labels.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 1e-12 else 0.0


def spearman(scores: np.ndarray, labels: np.ndarray) -> float:
    """The correlation of ranks; equal ones share their mean rank. (N, 1), (N,)."""
    return pearson(_ranks(scores.reshape(-1))[:, None], _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy, "f1": f1, "pearson": pearson, "spearman": spearman,
}  # fmt: skip
SCORES = ("pearson", "spearman")


@dataclass
class Task:
    """Rows in three parts, what makes inputs of them, and the metric. `vocab`: of the tokenizer; None of other media.

    Attributes:
        classes: their names, sorted; () of scores. mean, deviation: of the scores of `learn`, 0 and 1 of classes.
    """

    metric: str
    classes: tuple[str, ...]
    mean: float
    deviation: float
    medium: Medium
    parts: dict[str, Part]

    @property
    def outputs(self) -> int:
        """Numbers that the head gives."""
        return max(1, len(self.classes))

    def draws(self, part: Part, vocab: int | None, size: int, noise: random.Random) -> Iterator[list[int]]:
        """Rows of batches without end: each row once in a round, those of about one length together."""
        lengths = self.medium.lengths(part, vocab)
        while True:
            order = noise.sample(range(len(lengths)), len(lengths))
            near = [sorted(order[i : i + 16 * size], key=lengths.__getitem__) for i in range(0, len(order), 16 * size)]
            batches = [rows[i : i + size] for rows in near for i in range(0, len(rows), size)]
            yield from noise.sample(batches, len(batches))

    @torch.no_grad()
    def answers(self, run: Callable[..., Tensor], part: Part, vocab: int | None, size: int = 64) -> Tensor:
        """The outputs of a model for each row of a part with a label, (N, C)."""
        count = len(part.labels)
        order = sorted(range(count), key=self.medium.lengths(part, vocab).__getitem__)
        made = [run(**self.medium.batch(part, vocab, order[i : i + size])) for i in range(0, count, size)]
        return torch.cat(made)[torch.tensor(order).argsort()]

    def measure(self, answers: Tensor, part: Part) -> float:
        """The metric; higher is better."""
        return METRICS[self.metric](answers.float().numpy(), part.labels.numpy())

    def interval(self, answers: Tensor, part: Part) -> tuple[float, float]:
        """95 % of the metric over rows drawn again (bootstrap)."""
        a, b = answers.float().numpy(), part.labels.numpy()
        found = Corpus(lambda drawn: METRICS[self.metric](a[drawn], b[drawn]), len(b)).estimate()
        one = found.low is None or found.high is None  # a single row
        return (found.value, found.value) if one else (found.low, found.high)  # type: ignore[return-value]


def read(file: str | Path, metric: str, medium: Medium, seed: int = 0, test: str | Path | None = None) -> Task:
    """The task of a file of rows with the column of a medium and `label`, or of a folder of classes.

    Args:
        file: see `data.records`. seed: of the parts. test: rows that are looked at once, in place of a tenth
            of the others.

    Raises:
        ValueError: for an unknown metric, too few rows, one class only, labels that are no numbers where the metric
            wants these, that are all equal, or of which only the rows to test have some; with what is there.
        FileNotFoundError.
    """
    if metric not in METRICS:
        raise ValueError(f"--metric must be one of {', '.join(METRICS)}, got {metric!r}")
    rows = list(medium.rows(file))
    if len(rows) < LEAST:
        raise ValueError(f"{file} has {len(rows)} rows; a design needs at least {LEAST}: most teach, the others choose")
    apart = [] if test is None else list(medium.rows(test))
    if test is not None and not apart:
        raise ValueError(f"--test {test} has no rows")
    items, labels = medium.kept([item for item, _ in (*rows, *apart)]), [label for _, label in (*rows, *apart)]
    classes: tuple[str, ...] = ()
    if metric in SCORES:
        values = torch.tensor([_number(file, i, v) for i, v in enumerate(labels)])
    else:
        classes = tuple(sorted({str(label) for _, label in rows}))
        if other := sorted({str(label) for _, label in apart} - {*classes}):
            raise ValueError(f"--test {test} has a class {other[0]!r}, which {file} lacks; it has {', '.join(classes)}")
        if len(classes) == 1:
            raise ValueError(f"{file} has one class only, {classes[0]!r}: there is nothing to decide")
        if len(classes) > len(rows) / 5:
            raise ValueError(
                f"{file}: {len(classes)} classes for {len(rows)} rows, numbers perhaps: use --metric pearson for these"
            )
        values = torch.tensor([classes.index(str(v)) for v in labels])
    order = permuted(np.arange(len(rows)), len(rows), seed).tolist()
    tenth = 0 if apart else len(rows) // 10
    cut = tenth + len(rows) // 10
    places = {"test": order[:tenth] or list(range(len(rows), len(labels))), "choose": order[tenth:cut]}
    places["learn"] = order[cut:]
    mean, deviation = 0.0, 1.0
    if metric in SCORES:
        learned = values[places["learn"]]
        mean, deviation = float(learned.mean()), float(learned.std())
        if not deviation > 0:
            raise ValueError(f"{file}: every label is {mean:g}; there is nothing to learn")
        values = (values - mean) / deviation
    some: Callable[[list[int]], Any] = items.__getitem__ if hasattr(items, "shape") else lambda i: [items[n] for n in i]
    parts = {name: Part(some(places[name]), values[places[name]]) for name in PARTS}
    return Task(metric, classes, mean, deviation, medium, parts)


def _number(file: Any, i: int, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{file}, row {i + 1}: the label {value!r} is no number; classes have --metric accuracy or f1")
    return number
