"""The loss of a set of boxes. B batch, N queries, M boxes at most, C classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from anyformer.media.boxes import converted, giou
from anyformer.skeletons.base import Output
from anyformer.train.objectives import IGNORE

LARGEST = 1e9  # of a cost: a number that is not finite is never chosen, and is reported by the loop


@dataclass(frozen=True)
class SetPrediction:
    """DETR's loss (Carion et al., 2020; arXiv:2005.12872): each box gets the query that fits it best, each query one
    box at most; all other queries answer "no object".

    ```
    match    the least sum of  -p(class) + l1 |box - target| + giou (1 - GIoU)     over one query for each box
    loss     -sum w log p(class) / sum w  +  (l1 |box - target| + giou (1 - GIoU)) / boxes,     w = `none` of no object
    ```
    In training it is added up over all blocks of the decoder, each matched anew. Labels (B, M, 5): class, centre x and
    y, width, height as shares, float; rows of -100 fill up. No object is class C, which no label has.

    Both divisors are those of the whole step: neither padding nor accumulation changes the loss. A step without any box
    counts as one with a single box.
    """

    l1: float = 5.0
    giou: float = 2.0
    none: float = 0.1

    def counted(self, labels: Tensor) -> Tensor:
        """(2,): boxes, pictures."""
        return torch.stack(((labels[..., 0] != IGNORE).sum(), torch.tensor(len(labels), device=labels.device)))

    def check(self, labels: Tensor) -> None:
        """Raises ValueError for labels of another form."""
        if labels.ndim != 3 or labels.shape[2] != 5 or not labels.is_floating_point():
            raise ValueError(
                f"labels must be (pictures, boxes, 5) floats: class, centre x, y, width, height; got {labels.dtype} "
                f"{tuple(labels.shape)}"
            )
        real = labels[labels[..., 0] != IGNORE]
        if bool(((real[:, 1:] < 0) | (real[:, 1:] > 1)).any()) or bool((real[:, 3:] <= 0).any()):
            raise ValueError(
                "a label is no box of shares: centre x, y, width and height lie between 0 and 1, and are no pixels; "
                "see anyformer.media.boxes"
            )

    def __call__(self, output: Output, labels: Tensor, count: Any) -> Tensor:
        heads = [output.heads, *output.deep]
        return torch.stack([self._of(one, labels, count) for one in heads]).sum()

    def _of(self, heads: dict[str, Tensor], labels: Tensor, count: Any) -> Tensor:
        logits, boxes = heads["classes"].float(), heads["boxes"].float()
        queries, none = logits.shape[1], logits.shape[2] - 1
        if not isinstance(labels, FakeTensor):
            fits(labels, queries, none)
        row, query, place = self.matched(logits.detach(), boxes.detach(), labels)
        target = labels[row, place]  # (K, 5), K boxes in all
        classes = torch.full(logits.shape[:2], none, dtype=torch.long, device=logits.device)
        classes[row, query] = target[:, 0].long()
        weight = torch.ones(none + 1, device=logits.device)
        weight[none] = self.none
        unlikely = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weight, reduction="sum")
        whole = count[0] + self.none * (count[1] * queries - count[0])
        mine, wanted = boxes[row, query], target[:, 1:]
        beside = self.l1 * (mine - wanted).abs().sum()
        corners = [converted(b, "centre", "corners") for b in (mine, wanted)]
        beside = beside + self.giou * (1 - giou(*corners)).sum()
        return unlikely / whole + beside / torch.as_tensor(count[0]).clamp(min=1)

    def matched(self, logits: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Picture, query and place in the labels of every pair, (K,) each."""
        real = labels[..., 0] != IGNORE  # (B, M)
        if isinstance(labels, FakeTensor):  # a prediction of memory: any pairs
            row = torch.arange(len(labels), device=labels.device)
            return row, torch.zeros_like(row), torch.zeros_like(row)
        rows, queries, places = [], [], []
        for i, own in enumerate(real):
            index = own.nonzero().flatten()
            target = labels[i, index].float()  # (m, 5)
            cost = -logits[i].softmax(-1)[:, target[:, 0].long()]  # (N, m)
            cost = cost + self.l1 * torch.cdist(boxes[i], target[:, 1:], p=1)
            corners = [converted(b, "centre", "corners") for b in (boxes[i], target[:, 1:])]
            cost = cost - self.giou * giou(corners[0][:, None], corners[1])
            query, place = assigned(cost.nan_to_num(LARGEST, LARGEST, LARGEST))
            rows.append(torch.full_like(query, i))
            queries.append(query)
            places.append(index.cpu()[place])
        one, two, three = (torch.cat(parts).to(labels.device) for parts in (rows, queries, places))
        return one, two, three


def fits(labels: Tensor, queries: int, classes: int) -> None:
    """Raises ValueError for a class that the head has not, or more boxes than queries."""
    real = labels[..., 0] != IGNORE
    known = labels[..., 0][real]
    if bool(((known < 0) | (known >= classes)).any()):
        bad = known[(known < 0) | (known >= classes)][0]
        raise ValueError(f"class {int(bad)} is outside the head's classes: 0 to {classes - 1}; {classes} is no object")
    most = int(real.sum(1).max()) if len(real) else 0
    if most > queries:
        raise ValueError(f"a picture has {most} boxes, the model {queries} queries; build it with more of them")


def assigned(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of rows and columns with the least sum, (K,) each. Shape: (N, m) -> K = min(N, m).

    Raises:
        ImportError: without SciPy.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ImportError("training a detector needs `pip install 'anyformer[detect]'` (SciPy)") from None
    row, column = linear_sum_assignment(cost.double().cpu().numpy())
    return torch.as_tensor(row), torch.as_tensor(column)
