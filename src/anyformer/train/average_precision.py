"""Average precision of boxes, as COCO counts it. n found boxes, m true ones, T thresholds of overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anyformer.media.boxes import iou

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # boxes of a picture, the surest ones


@dataclass(frozen=True)
class Boxed:
    """The boxes of a picture: corners (n, 4), classes (n,), and of found ones their scores (n,)."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None


@dataclass(frozen=True)
class Precision:
    """Average precision over classes: the mean over overlaps of 0.5 to 0.95, and at 0.5 and 0.75 alone.

    Attributes:
        classes: the first of these by class; only classes that have a true box.
    """

    ap: float
    ap50: float
    ap75: float
    classes: dict[int, float]


def average_precision(found: Sequence[Boxed], truth: Sequence[Boxed]) -> Precision:
    """Average precision over a whole set of pictures (Lin et al., 2014; arXiv:1405.0312).

    In each picture the surest box of a class takes the true box of that class that it overlaps most, if by enough and
    if no surer one took it. Over all pictures, by falling score, precision is the share of such boxes, and recall the
    share of true boxes taken. Average precision is the mean, over 101 recalls, of the largest precision at that recall
    or a higher one. It is counted over the set as a whole, never as a mean over batches.

    Raises:
        ValueError: for lists of different lengths, or a set without any true box.
    """
    if len(found) != len(truth):
        raise ValueError(f"{len(found)} pictures were looked at, and {len(truth)} have true boxes; give one each")
    classes = sorted({int(c) for one in truth for c in one.classes})
    if not classes:
        raise ValueError("no picture has a true box, so there is no precision")
    each = np.stack([_of_class(found, truth, c) for c in classes])  # (classes, T)
    fifty, seventy = (int(np.argmin(abs(OVERLAPS - t))) for t in (0.5, 0.75))
    by_class = dict(zip(classes, each.mean(1).tolist(), strict=True))
    return Precision(float(each.mean()), float(each[:, fifty].mean()), float(each[:, seventy].mean()), by_class)


def _of_class(found: Sequence[Boxed], truth: Sequence[Boxed], c: int) -> np.ndarray:
    """(T,) average precision of one class."""
    scores, right, count = [], [], 0
    for mine, wanted in zip(found, truth, strict=True):
        assert mine.scores is not None
        own, real = mine.classes == c, wanted.boxes[wanted.classes == c]
        order = np.argsort(-mine.scores[own], kind="mergesort")[:MOST]
        count += len(real)
        scores.append(mine.scores[own][order])
        right.append(_taken(mine.boxes[own][order], real))
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    hits = np.concatenate(right, 1)[:, order].cumsum(1)  # (T, n)
    precision = hits / np.arange(1, hits.shape[1] + 1)
    best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]  # at that recall or a higher one
    out = np.zeros(len(OVERLAPS))
    for t, (mine_best, recall) in enumerate(zip(best, hits / count, strict=True)):
        places = np.searchsorted(recall, RECALLS, side="left")
        out[t] = np.append(mine_best, 0.0)[places].mean()
    return out


def _taken(boxes: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(T, n) True where a box, by falling score, takes a true one."""
    taken = np.zeros((len(OVERLAPS), len(boxes)), bool)
    if not len(boxes) or not len(real):
        return taken
    overlaps = iou(torch.from_numpy(boxes).double(), torch.from_numpy(real).double()).numpy()
    for t, least in enumerate(OVERLAPS):
        free = np.ones(len(real), bool)
        for i, row in enumerate(overlaps):
            open_ = np.where(free, row, -1.0)
            best = len(open_) - 1 - int(open_[::-1].argmax())  # of equal ones the last, as COCO's code
            if open_[best] >= min(least, 1 - 1e-10):
                taken[t, i], free[best] = True, False
    return taken
