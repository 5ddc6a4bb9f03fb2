"""Boxes around things in pictures, in named forms. N, M boxes.

| form    | numbers                   | used by                                          |
|---------|---------------------------|--------------------------------------------------|
| corners | left, top, right, bottom  | results here, Pascal VOC                         |
| coco    | left, top, width, height  | COCO                                             |
| centre  | centre x, y, width, height | DETR, as shares of the picture's width and height |

x goes to the right and y down from the top left corner of the upright picture; pixel 0 lies between 0 and 1. Numbers
are pixels unless a name says shares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FORMS = ("corners", "coco", "centre")
SLACK = 1.0  # pixels by which published boxes leave their picture, by rounding or by counting from 1


def converted(boxes: Tensor, source: str, target: str) -> Tensor:
    """Boxes in another form. Shape: (..., 4) -> same.

    Raises:
        ValueError: for a form that has no name here.
    """
    for form in (source, target):
        if form not in FORMS:
            raise ValueError(f"there is no form {form!r} of boxes; there is {', '.join(FORMS)}")
    if source == target:
        return boxes
    a, b, c, d = boxes.unbind(-1)
    if source == "coco":
        a, b, c, d = a, b, a + c, b + d
    elif source == "centre":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if target == "coco":
        a, b, c, d = a, b, c - a, d - b
    elif target == "centre":
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    return torch.stack((a, b, c, d), -1)


def shares(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes in pixels as shares of a picture; of any form."""
    return boxes / boxes.new_tensor([width, height, width, height])


def pixels(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes as shares of a picture in its pixels; of any form."""
    return boxes * boxes.new_tensor([width, height, width, height])


def inside(boxes: Sequence[Sequence[float]], form: str, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The boxes of a picture as corners within it, and which of the given ones they are; those without area are left
    out. One that leaves the picture by a pixel at most is cut.

    Returns:
        (N, 4) and (N,) numbers of boxes.

    Raises:
        ValueError: for a box that is no four finite numbers, turned around, or further outside, which another form of
            boxes often is.
    """
    given = torch.zeros(0, 4, dtype=torch.float64)
    if len(boxes):
        try:
            given = torch.tensor(boxes, dtype=torch.float64)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"each box must be four numbers ({form}): {error}") from None
        if given.ndim != 2 or given.shape[1] != 4 or not bool(given.isfinite().all()):
            raise ValueError(f"each box must be four finite numbers ({form}), got {boxes!r:.80}")
    corners, edge = converted(given, form, "corners"), given.new_tensor([width, height, width, height])
    for number, (box, (left, top, right, bottom)) in enumerate(zip(given.tolist(), corners.tolist(), strict=True)):
        if right < left or bottom < top:
            raise ValueError(f"box {number} {box} has a width or height below 0, read as {form}; another form?")
        if left < -SLACK or top < -SLACK or right > width + SLACK or bottom > height + SLACK:
            raise ValueError(
                f"box {number} {box} leaves the picture of {width} x {height} pixels, read as {form}; is it in another "
                f"form ({', '.join(FORMS)}), or of the picture before it was turned or resized?"
            )
    corners = torch.minimum(corners.clamp(min=0), edge)
    whole = ((corners[:, 2:] - corners[:, :2]) > 0).all(1)
    return corners[whole].float(), whole.nonzero().flatten()


def area(boxes: Tensor) -> Tensor:
    """Areas of corners. Shape: (..., 4) -> (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlap(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The area of the intersection and of the union of corners, broadcast. Shapes: (..., 4), (..., 4) -> (...) each."""
    lower, upper = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    both = (upper - lower).clamp(min=0).prod(-1)
    return both, area(one) + area(other) - both


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of every pair of corners. Shapes: (N, 4), (M, 4) -> (N, M)."""
    both, union = overlap(one[:, None], other)
    return both / union


def giou(one: Tensor, other: Tensor) -> Tensor:
    """Generalised intersection over union of corners, broadcast, from -1 to 1 (Rezatofighi et al., 2019;
    arXiv:1902.09630): both / union - (around - union) / around, around the smallest box that holds the two.

    Shapes: (..., 4), (..., 4) -> (...).
    """
    both, union = overlap(one, other)
    lower, upper = torch.minimum(one[..., :2], other[..., :2]), torch.maximum(one[..., 2:], other[..., 2:])
    around = (upper - lower).prod(-1)
    return both / union - (around - union) / around
