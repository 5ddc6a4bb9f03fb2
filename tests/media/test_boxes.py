"""Boxes in named forms."""

from __future__ import annotations

import pytest
import torch

from anyformer.media.boxes import FORMS, converted, giou, inside, iou, pixels, shares


def random(count: int, seed: int = 0) -> torch.Tensor:
    """Corners (N, 4) from 0 to 1."""
    noise = torch.Generator().manual_seed(seed)
    one, other = (torch.rand(count, 2, generator=noise, dtype=torch.float64) for _ in range(2))
    return torch.cat((torch.minimum(one, other), torch.maximum(one, other)), 1)


def test_a_box_in_each_form():
    box = torch.tensor([[2.0, 3.0, 8.0, 13.0]])
    assert converted(box, "corners", "coco").tolist() == [[2, 3, 6, 10]]
    assert converted(box, "corners", "centre").tolist() == [[5, 8, 6, 10]]
    for one in FORMS:
        for other in FORMS:
            torch.testing.assert_close(
                converted(converted(box, "corners", one), one, other), converted(box, "corners", other)
            )
    with pytest.raises(ValueError, match="no form 'xywh' of boxes; there is corners, coco, centre"):
        converted(box, "xywh", "corners")


def test_shares_and_pixels_are_inverse():
    box = torch.tensor([2.0, 3.0, 8.0, 13.0])
    assert shares(box, 20, 10).tolist() == pytest.approx([0.2, 0.15, 0.8, 0.65])
    torch.testing.assert_close(pixels(shares(box, 20, 10), 20, 10), box)


def test_overlaps_are_those_of_pixels_that_are_counted():
    noise = torch.Generator().manual_seed(1)
    boxes = torch.randint(0, 12, (30, 2, 2), generator=noise).sort(1).values.flatten(1)  # left, top, right, bottom
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)]
    grids = torch.zeros(len(boxes), 12, 12, dtype=torch.bool)
    for grid, (left, top, right, bottom) in zip(grids, boxes.tolist(), strict=True):
        grid[top:bottom, left:right] = True
    both = (grids[:, None] & grids).flatten(2).sum(-1)
    either = (grids[:, None] | grids).flatten(2).sum(-1)
    torch.testing.assert_close(iou(boxes.double(), boxes.double()), both.double() / either.double())


def test_generalised_overlaps_are_the_published_ones():
    pytest.importorskip("transformers")
    from transformers.loss.loss_for_object_detection import generalized_box_iou

    one, other = random(20), random(30, 1)
    torch.testing.assert_close(giou(one[:, None], other), generalized_box_iou(one, other))
    apart = giou(torch.tensor([0.0, 0, 1, 1]), torch.tensor([9.0, 0, 10, 1]))
    assert float(apart) == pytest.approx(-0.8)


def test_boxes_inside_a_picture():
    corners, kept = inside([[0, 0, 5, 4], [2, 2, 0, 3], [-0.5, 1, 3, 2], [6, 6, 4.9, 2.6]], "coco", 8, 10)
    assert kept.tolist() == [0, 2, 3]  # one has no area
    torch.testing.assert_close(corners, torch.tensor([[0.0, 0, 5, 4], [0, 1, 2.5, 3], [6, 6, 10, 8]]))
    corners, kept = inside([], "coco", 8, 10)
    assert corners.shape == (0, 4) and kept.shape == (0,)


@pytest.mark.parametrize(
    ("boxes", "form", "message"),
    [
        ([[0, 0, 12, 4]], "coco", r"box 0 \[0.0, 0.0, 12.0, 4.0\] leaves the picture of 10 x 8 pixels, read as coco"),
        ([[0, 0, 1, 1], [6, 1, 9, 3]], "coco", "box 1 .* leaves the picture .* another form"),  # corners
        ([[6, 5, 2, 7]], "corners", "width or height below 0, read as corners; another form"),
        ([[1, 2, 3]], "coco", "four finite numbers"),
        ([[1, 2, 3, float("nan")]], "coco", "four finite numbers"),
        ([[1, 2, 3, None]], "coco", "four numbers"),
        ([[1, 2, 3, "4"]], "coco", "four numbers"),
        ([1, 2, 3, 4], "coco", "four finite numbers"),
    ],
)
def test_wrong_boxes_are_named(boxes, form, message):
    with pytest.raises(ValueError, match=message):
        inside(boxes, form, 8, 10)
