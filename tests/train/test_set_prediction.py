"""The loss of a set of boxes, and average precision."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from anyformer.media.boxes import converted, giou
from anyformer.skeletons.base import Output
from anyformer.train.average_precision import Boxed, average_precision
from anyformer.train.set_prediction import SetPrediction, assigned

NAMES = ("blue square", "red square")
SMALL = {"norm": "group", "net.widths": (8, 8), "net.depths": (1, 1), "net.stem": 8, "queries": 4}


def answers(rows: int, queries: int, classes: int, seed: int = 0) -> Output:
    noise = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, queries, classes + 1, generator=noise, requires_grad=True)
    boxes = torch.rand(rows, queries, 4, generator=noise).mul(0.8).add(0.1).requires_grad_()
    return Output(None, logits, {"classes": logits, "boxes": boxes})


def targets(counts: list[int], classes: int, seed: int = 1) -> torch.Tensor:
    """Labels (B, M, 5) with so many boxes each."""
    noise = torch.Generator().manual_seed(seed)
    labels = torch.full((len(counts), max(1, *counts), 5), -100.0)
    for row, count in zip(labels, counts, strict=True):
        size = torch.rand(count, 2, generator=noise) * 0.4 + 0.1
        centre = size / 2 + (1 - size) * torch.rand(count, 2, generator=noise)
        row[:count] = torch.cat((torch.randint(0, classes, (count, 1), generator=noise), centre, size), 1)
    return labels


def rows_of(out: Output, rows: list[int]) -> Output:
    heads = {name: value[rows] for name, value in out.heads.items()}
    return Output(None, heads["classes"], heads, deep=tuple({n: v[rows] for n, v in one.items()} for one in out.deep))


# ------------------------------------------------------------------------------------------------ the loss


def test_the_loss_with_earlier_blocks_is_the_published_one():
    pytest.importorskip("transformers")
    from transformers import DetrConfig
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    config = DetrConfig(num_labels=3, auxiliary_loss=True, decoder_layers=3)
    out, early = answers(4, 6, 3), [answers(4, 6, 3, seed) for seed in (5, 6)]
    out.deep = tuple(one.heads for one in early)
    labels = targets([2, 0, 5, 1], 3)
    theirs = [{"class_labels": r[:, 0].long(), "boxes": r[:, 1:]} for r in (one[one[:, 0] >= 0] for one in labels)]
    every = [*early, out]
    deep = [torch.stack([one.heads[name] for one in every]) for name in ("classes", "boxes")]
    expected, _, _ = ForObjectDetectionLoss(out.logits, theirs, "cpu", out.heads["boxes"], config, *deep)
    loss = SetPrediction()
    actual = loss(out, labels, loss.counted(labels))
    torch.testing.assert_close(actual, expected)
    inputs = [v for one in every for v in one.heads.values()]
    for mine, wanted in zip(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, wanted)


def test_pictures_without_boxes_alone_have_the_published_loss():
    pytest.importorskip("transformers")
    from transformers import DetrConfig
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    out, loss = answers(2, 4, 3), SetPrediction()
    theirs = [{"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}] * 2
    expected, _, _ = ForObjectDetectionLoss(out.logits, theirs, "cpu", out.heads["boxes"], DetrConfig(num_labels=3))
    torch.testing.assert_close(loss(out, targets([0, 0], 3), loss.counted(targets([0, 0], 3))), expected)


def test_the_match_is_the_best_of_all():
    out, labels, loss = answers(1, 5, 3), targets([3], 3), SetPrediction()
    logits, boxes = out.heads["classes"].detach(), out.heads["boxes"].detach()
    _, queries, places = loss.matched(logits, boxes, labels)

    def cost(query: int, place: int) -> float:
        target = labels[0, place]
        corners = [converted(b, "centre", "corners") for b in (boxes[0, query], target[1:])]
        near = 5 * (boxes[0, query] - target[1:]).abs().sum() - 2 * giou(*corners)
        return float(near - logits[0, query].softmax(-1)[int(target[0])])

    chosen = sum(cost(q, p) for q, p in zip(queries.tolist(), places.tolist(), strict=True))
    least = min(sum(cost(q, p) for p, q in enumerate(some)) for some in itertools.permutations(range(5), 3))
    assert chosen == pytest.approx(least, abs=1e-5)


def test_neither_the_order_of_boxes_nor_padding_nor_the_cut_of_a_step_changes_the_loss():
    out, labels, loss = answers(4, 6, 3), targets([2, 0, 5, 1], 3), SetPrediction()
    count = loss.counted(labels)
    whole = loss(out, labels, count)
    torch.testing.assert_close(loss(out, labels[:, torch.randperm(5)], count), whole)
    more = torch.cat((labels, torch.full((4, 3, 5), -100.0)), 1)
    torch.testing.assert_close(loss(out, more, count), whole)
    parts = [loss(rows_of(out, rows), labels[rows], count) for rows in ([0, 1], [2], [3])]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    order = torch.randperm(6)
    mixed = {name: value[:, order] for name, value in out.heads.items()}
    torch.testing.assert_close(loss(Output(None, mixed["classes"], mixed), labels, count), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y.index_put_((torch.tensor(0), torch.tensor(0), torch.tensor(0)), torch.tensor(3.0)),
         "class 3 is outside the head's classes: 0 to 2; 3 is no object"),
        (lambda y: torch.cat([y] * 4, 1), "a picture has 8 boxes, the model 6 queries"),
    ],
)  # fmt: skip
def test_labels_beyond_the_model_are_refused(change, message):
    out, loss, labels = answers(1, 6, 3), SetPrediction(), change(targets([2], 3))
    with pytest.raises(ValueError, match=message):
        loss(out, labels, loss.counted(labels))


def test_labels_of_another_form_are_refused():
    loss = SetPrediction()
    with pytest.raises(ValueError, match=r"must be \(pictures, boxes, 5\) floats"):
        loss.check(torch.zeros(2, 3, 4))
    for wrong in ([0, 30.0, 20.0, 5.0, 5.0], [0, 0.5, 0.5, 0.0, 0.2]):
        with pytest.raises(ValueError, match="no box of shares"):
            loss.check(torch.tensor([[wrong]]))


def test_a_cost_that_is_not_finite_is_chosen_last():
    cost = torch.tensor([[math.nan, 1.0], [0.5, math.inf], [0.0, 2.0]])
    query, place = assigned(cost.nan_to_num(1e9, 1e9, 1e9))
    assert sorted(zip(query.tolist(), place.tolist(), strict=True)) == [(0, 1), (2, 0)]


# ------------------------------------------------------------------------------------------------ average precision


def scene(seed: int, pictures: int = 12, classes: int = 4) -> tuple[list[Boxed], list[Boxed]]:
    """True boxes, and found ones: some of them shifted, some missing, some of nothing; scores with ties."""
    noise = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(pictures):
        n = int(noise.integers(0, 6))
        corner, size = noise.uniform(0, 60, (n, 2)), noise.uniform(4, 30, (n, 2))
        boxes = np.concatenate((corner, corner + size), 1).astype(np.float32)
        kinds = noise.integers(0, classes, n)
        truth.append(Boxed(boxes, kinds))
        keep = noise.random(n) < 0.8
        shifted = boxes[keep] + noise.normal(0, 2, (int(keep.sum()), 4)).astype(np.float32)
        twice = np.concatenate((shifted, boxes[keep], noise.uniform(0, 20, (3, 4)).cumsum(1).astype(np.float32)))
        names = np.concatenate((kinds[keep], kinds[keep], noise.integers(0, classes, 3)))
        twice[:, 2:] = np.maximum(twice[:, 2:], twice[:, :2] + 1)
        found.append(Boxed(twice, names, noise.integers(1, 20, len(twice)) / 20))
    return found, truth


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_cocos(seed, capsys):
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    found, truth = scene(seed)
    images = [{"id": i} for i in range(len(truth))]
    real, mine = list[Any](), list[Any]()
    for i, (one, other) in enumerate(zip(truth, found, strict=True)):
        for box, kind in zip(
            converted(torch.from_numpy(one.boxes).double(), "corners", "coco").tolist(), one.classes, strict=True
        ):
            real.append({"id": len(real) + 1, "image_id": i, "category_id": int(kind), "bbox": box, "iscrowd": 0,
                         "area": box[2] * box[3]})  # fmt: skip
        assert other.scores is not None
        own = converted(torch.from_numpy(other.boxes).double(), "corners", "coco").tolist()
        mine += [{"image_id": i, "category_id": int(k), "bbox": b, "score": float(s)}
                 for b, k, s in zip(own, other.classes, other.scores, strict=True)]  # fmt: skip
    theirs = coco.COCO()
    theirs.dataset = {"images": images, "annotations": real, "categories": [{"id": i} for i in range(4)]}
    theirs.createIndex()
    counted = evaluation.COCOeval(theirs, theirs.loadRes(mine), "bbox")
    counted.evaluate()
    counted.accumulate()
    counted.summarize()
    ours = average_precision(found, truth)
    assert [ours.ap, ours.ap50, ours.ap75] == pytest.approx(counted.stats[:3].tolist(), abs=1e-9)


def test_average_precision_by_hand():
    box = np.array([[0, 0, 10, 10]], np.float32)
    truth = [Boxed(box, np.array([0])), Boxed(box, np.array([0]))]
    sure, unsure = Boxed(box, np.array([0]), np.array([0.9])), Boxed(box[:0], np.zeros(0, int), np.zeros(0))
    assert average_precision([sure, sure], truth).ap == pytest.approx(1.0)
    assert average_precision([sure, unsure], truth).ap == pytest.approx(51 / 101)  # recalls of 0, 0.01, … 0.5
    nine = Boxed(np.array([[0, 0, 10, 9]], np.float32), np.array([0]), np.array([0.9]))
    assert average_precision([nine, nine], truth).ap == pytest.approx(0.9)  # good up to an overlap of 0.9
    with pytest.raises(ValueError, match="no picture has a true box"):
        average_precision([unsure], [Boxed(box[:0], np.zeros(0, int))])
    with pytest.raises(ValueError, match="1 pictures were looked at, and 2"):
        average_precision([sure], truth)
