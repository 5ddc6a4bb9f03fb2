"""The task that a small model is designed for: rows with a class or a number, split once, and its metric.

| metric | label | is |
|---|---|---|
| accuracy | a class | the share of right classes |
| f1 | a class | mean over the classes of the harmonic mean of precision and recall |
| pearson | a number | the correlation of scores and labels |
| spearman | a number | that of their ranks |
| bits | none | bits for each byte of running text; fewer are better |

Of the rows 80 % teach, 10 % choose among architectures and steps, and 10 % are looked at once, at the end; or rows of
their own are, and 90 % teach. Running text is cut in this order, and at most 128 KiB choose and are looked at.
N rows, C classes, T bytes of a piece.
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
from torch.nn import functional as F

from anyformer.data.order import permuted
from anyformer.edge.medium import Medium, Part
from anyformer.evaluate.answering import confusion, macro_f1
from anyformer.evaluate.intervals import Corpus

LEAST = 50  # rows
HELD = 1 << 17  # bytes of running text that choose, and that are looked at once, at most
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


def bits(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -log2 p(byte), 0 for a certain and right one. (N, T, C), (N, T)."""
    return float(_bits(torch.from_numpy(logits), torch.from_numpy(labels)).mean())


def _bits(logits: Tensor, labels: Tensor) -> Tensor:
    """Bits for each byte of a row, (N,)."""
    rows = zip(logits, labels, strict=True)
    return torch.stack([F.cross_entropy(a, b) for a, b in rows]) / math.log(2)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy, "f1": f1, "pearson": pearson, "spearman": spearman, "bits": bits,
}  # fmt: skip
SCORES = ("pearson", "spearman")
BITS = "bits"  # of running text; the one metric of which less is better


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
        """The outputs of a model for each row of a part with a label, (N, C), or (N, T, C) of running text."""
        count = len(part.labels)
        order = sorted(range(count), key=self.medium.lengths(part, vocab).__getitem__)
        made = [run(**self.medium.batch(part, vocab, order[i : i + size])) for i in range(0, count, size)]
        return torch.cat(made)[torch.tensor(order).argsort()]

    def measure(self, answers: Tensor, part: Part) -> float:
        """The metric as all comparisons here have it: higher is better, so bits are negative. `said` is for people."""
        return said(self.metric, METRICS[self.metric](answers.float().numpy(), part.labels.numpy()))

    def interval(self, answers: Tensor, part: Part) -> tuple[float, float]:
        """95 % of the metric over rows drawn again (bootstrap), for people."""
        a, b = answers.float().numpy(), part.labels.numpy()
        rows = _bits(answers.float(), part.labels).numpy() if self.metric == BITS else None

        def metric(drawn: Any) -> float:
            return METRICS[self.metric](a[drawn], b[drawn]) if rows is None else float(rows[drawn].mean())

        found = Corpus(metric, len(b)).estimate()
        one = found.low is None or found.high is None  # a single row
        return (found.value, found.value) if one else (found.low, found.high)  # type: ignore[return-value]


def said(metric: str, value: float) -> float:
    """A metric between what comparisons have, higher is better, and what people read; each way."""
    return -value if metric == BITS else value


def read(file: str | Path, metric: str, medium: Medium, seed: int = 0, test: str | Path | None = None) -> Task:
    """The task of a file of rows with the column of a medium and `label`, of a folder of classes, or of running text.

    Args:
        file: see `data.records`. seed: of the parts. test: rows that are looked at once, in place of a tenth
            of the others.

    Raises:
        ValueError: for an unknown metric, too few rows, one class only, labels that are no numbers where the metric
            wants these, that are all equal, or of which only the rows to test have some; with what is there.
        FileNotFoundError: if there is no such file.
    """
    if metric not in METRICS:
        raise ValueError(f"--metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if medium.labelled and metric == BITS:
        raise ValueError(f"--metric bits is of running text, and the model reads {medium.name}: --model llama, say")
    if not medium.labelled and metric != BITS:
        raise ValueError(
            f"--metric {metric} needs labels, and the model continues text: --metric bits, or --model bert"
        )
    rows = list(medium.rows(file))
    apart = [] if test is None else list(medium.rows(test))
    if test is not None and not apart:
        raise ValueError(f"--test {test} has no rows")
    if metric == BITS:
        return _following(file, medium, *([item for item, _ in some] for some in (rows, apart)))
    _enough(file, len(rows), "rows")
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


def _enough(file: Any, count: int, what: str) -> None:
    if count < LEAST:
        raise ValueError(f"{file} has {count} {what}; a design needs at least {LEAST}: most teach, the others choose")


def _following(file: Any, medium: Medium, texts: list[Any], apart: list[Any]) -> Task:
    """The task of what follows in running text: its beginning teaches, its end, or another text, is looked at once."""
    items = medium.kept(texts)
    _enough(file, len(items), medium.name)
    held = min(len(items) // 10, max(1, HELD // (items.shape[1] - 1)))
    cut = {"learn": items[: -2 * held], "choose": items[-2 * held : -held], "test": items[-held:]}
    if apart:
        cut = {"learn": items[:-held], "choose": items[-held:], "test": medium.kept(apart)[-held:]}
        if not len(cut["test"]):
            raise ValueError(f"--test has less than one of the {medium.name}, of {medium.words}")
    parts = {name: Part(some, torch.from_numpy(some[:, 1:]).long()) for name, some in cut.items()}
    return Task(BITS, (), 0.0, 1.0, medium, parts)


def _number(file: Any, i: int, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{file}, row {i + 1}: the label {value!r} is no number; classes have --metric accuracy or f1")
    return number
