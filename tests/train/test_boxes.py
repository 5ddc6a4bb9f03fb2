"""Training on pictures with boxes: the set loss, average precision, COCO's and VOC's files, the verb detect."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.cli import main
from anyformer.data import boxes as data
from anyformer.media.boxes import converted, giou, shares
from anyformer.skeletons.base import Output
from anyformer.train import train
from anyformer.train.average_precision import Boxed, average_precision
from anyformer.train.options import TrainOptions
from anyformer.train.set_prediction import SetPrediction, assigned
from anyformer.train.tasks.boxes import BoxData

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
    logits, boxes = out.logits.detach(), out.heads["boxes"].detach()
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
    real, mine = [], []
    for i, (one, other) in enumerate(zip(truth, found, strict=True)):
        for box, kind in zip(
            converted(torch.from_numpy(one.boxes).double(), "corners", "coco").tolist(), one.classes, strict=True
        ):
            real.append({"id": len(real) + 1, "image_id": i, "category_id": int(kind), "bbox": box, "iscrowd": 0,
                         "area": box[2] * box[3]})  # fmt: skip
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


# ------------------------------------------------------------------------------------------------ data


def squares(folder: Path, count: int = 20, form: str = "coco") -> Path:
    """Grey pictures of several sizes with squares of two colours, in COCO's or VOC's files."""
    noise, images, objects = np.random.default_rng(0), [], []
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        height, width = (int(n) for n in noise.integers(20, 36, 2))
        pixels = np.full((height, width, 3), 128, np.uint8)
        images.append({"id": 7 + number, "file_name": f"{number}.png", "height": height, "width": width})
        for kind in range(int(noise.integers(0 if number % 10 else 1, 3))):
            side = int(noise.integers(6, 12))
            left, top = int(noise.integers(0, width - side)), int(noise.integers(0, height - side))
            pixels[top : top + side, left : left + side] = ((30, 30, 220), (220, 30, 30))[kind]
            objects.append({"id": len(objects), "image_id": 7 + number, "category_id": (3, 11)[kind],
                            "bbox": [left, top, side, side]})  # fmt: skip
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    if form == "coco":
        categories = [{"id": 11, "name": NAMES[1]}, {"id": 3, "name": NAMES[0]}]
        content = {"images": images, "annotations": objects, "categories": categories}
        (folder / "all.json").write_text(json.dumps(content))
        return folder
    for image in images:
        parts = []
        for one in objects:
            if one["image_id"] == image["id"]:
                left, top, wide, high = one["bbox"]
                sides = {"xmin": left + 1, "ymin": top + 1, "xmax": left + wide, "ymax": top + high}
                inner = "".join(f"<{k}>{v}</{k}>" for k, v in sides.items())
                name = NAMES[one["category_id"] == 11]
                parts.append(f"<object><name>{name}</name><difficult>0</difficult><bndbox>{inner}</bndbox></object>")
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
        file = folder / f"{int(image['file_name'][:-4]):02}.xml"
        file.write_text(f"<annotation><filename>{image['file_name']}</filename>{size}{''.join(parts)}</annotation>")
    return folder


def test_both_kinds_of_files_say_the_same(tmp_path):
    one, other = (data.read(squares(tmp_path / form, form=form)) for form in ("coco", "voc"))
    assert one.names == other.names == NAMES and len(one.pictures) == len(other.pictures) == 20
    by_name = {picture.path.name: picture for picture in other.pictures}
    for picture in one.pictures:
        same = by_name[picture.path.name]
        order = picture.classes.argsort()
        torch.testing.assert_close(same.boxes[same.classes.argsort()], picture.boxes[order])
        assert (same.height, same.width) == (picture.height, picture.width)
    assert data.read(tmp_path / "coco" / "all.json").names == NAMES


def edited(folder: Path, change) -> Path:
    """The COCO file, changed."""
    file = folder / "all.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=4), "annotation 0 has the category 4, the file lists 3, 11"),
        (lambda c: c["annotations"][0].update(image_id=0), "an annotation of no listed image"),
        (lambda c: c["annotations"][0].update(bbox=[1, 1, 90, 5]), "image 7: box 0 .* leaves the picture"),
        (lambda c: c["annotations"][0].update(bbox=[1, 1, -3, 5]), "image 7: box 0 .* below 0, read as coco"),
        (lambda c: c["annotations"][0].update(bbox=None), "image 7: each box must be four"),
        (lambda c: c["images"][3].update(file_name="no.png"), "image 10: there is no picture 'no.png'"),
        (lambda c: c["images"][3].update(height=0), "image 10: height and width are 0"),
        (lambda c: c.pop("categories"), "is no COCO file with images, annotations and categories"),
        (lambda c: c["categories"][0].update(name=NAMES[0]), "two classes are both called 'blue square'"),
        (lambda c: c.update(annotations=[]), "no picture has a box"),
    ],
)
def test_a_wrong_coco_file_is_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        data.read(edited(squares(tmp_path / "set"), change))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmax>", "<xmin2>", "no XML"), ("<annotation>", "<!DOCTYPE a><annotation>", "declares entities"),
        ("<width>", "<width>x", "height and width are"), ("</xmin>", "a</xmin>", "four numbers are wanted"),
        (".png<", ".jpg<", "there is no picture '0.jpg'"),
    ],
)  # fmt: skip
def test_a_wrong_voc_file_is_named(old, new, message, tmp_path):
    file = squares(tmp_path / "set", form="voc") / "00.xml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        data.read(tmp_path / "set")


def test_what_is_left_out_is_counted(tmp_path):
    folder = squares(tmp_path / "set")

    def change(content):
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][1]["bbox"][2] = 0

    before, after = data.read(folder), data.read(edited(folder, change))
    assert after.notes == ("1 crowds are left out", "1 boxes without area are left out")
    assert sum(len(p.boxes) for p in after.pictures) == sum(len(p.boxes) for p in before.pictures) - 2
    with pytest.raises(FileNotFoundError, match="no COCO file"):
        data.read(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="neither a COCO file"):
        data.read(folder / "images")


def of(folder: Path, model=None, **options):
    """The task on a folder."""
    model = af.build("detr", "tiny", classes=2, overrides=SMALL, seed=0) if model is None else model
    from anyformer.train.model_setup import with_processor

    model = with_processor(model)
    return model, BoxData("detect", TrainOptions(model="detr", data=str(folder), **options)).task(model, None)


def test_a_batch_holds_the_boxes_as_shares(tmp_path):
    model, task = of(squares(tmp_path / "set"))
    batch = next(task.held_out(2))
    assert batch["pixel_values"].shape[2:] == batch["pixel_mask"].shape[1:]
    for row, one in zip(batch["labels"], task.pictures, strict=False):
        real = row[row[:, 0] != -100]
        expected = shares(converted(one.boxes, "corners", "centre"), one.height, one.width)
        torch.testing.assert_close(real[:, 1:], expected)
    SetPrediction().check(batch["labels"])
    assert task.measure(model.eval(), 1) == pytest.approx(task.measure(model, 2), abs=1e-9)  # over the whole set


def test_a_turned_a_cut_and_a_tiny_picture(tmp_path):
    folder = squares(tmp_path / "set")
    first = folder / "images" / "0.png"
    image = Image.open(first)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.transpose(Image.Transpose.ROTATE_90).save(first, exif=exif)
    model, task = of(folder)
    by_name = {one.path.name: one for one in data.read(folder).pictures}
    task.rows.batch([by_name["0.png"]])  # it shows the sides that its list says
    image.save(first, exif=exif)
    with pytest.raises(ValueError, match=r"0.png has .* pixels, and the list of its boxes says .* EXIF"):
        task.rows.batch([by_name["0.png"]])
    first.write_bytes(first.read_bytes()[:90])
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image"):
        task.rows.batch([by_name["0.png"]])
    assert len(af.detect(model, [Image.new("RGB", (1, 1))], threshold=0.0)[0]) == 4


def test_models_that_do_not_fit_are_refused(tmp_path):
    folder = squares(tmp_path / "set")
    with pytest.raises(ValueError, match=r"frozen norm without statistics.*overrides\.norm group"):
        of(folder, af.build("detr", "tiny", classes=2, seed=0))
    with pytest.raises(ValueError, match="the data has 2 classes, and the model's head 5"):
        of(folder, af.build("detr", "tiny", overrides={**SMALL, "classes": 5}, seed=0))
    with pytest.raises(ValueError, match="a picture has 2 boxes, and the model 1 queries"):
        of(folder, af.build("detr", "tiny", classes=2, overrides={**SMALL, "queries": 1}, seed=0))
    other = af.build("detr", "tiny", classes=2, overrides=SMALL, seed=0)
    other.origin = {"classes": ["a", "b"]}
    with pytest.raises(ValueError, match="the model's classes are a, b; the data's blue square, red square"):
        of(folder, other)
    with pytest.raises(ValueError, match="order=packed"):
        BoxData("detect", TrainOptions(model="detr", data=str(folder), order="packed"))


# ------------------------------------------------------------------------------------------------ from end to end


def learned(folder: Path, out: Path, steps: int, **options):
    given = {"size": "tiny", "overrides": SMALL, "batch": 4, "quiet": True, "eval_every": 0, "warmup": 0, **options}
    return train("detr", data=str(folder), steps=steps, out=str(out), schedule="constant", **given)


def test_training_resumes_exactly_and_its_folder_detects(tmp_path, capsys):
    folder = squares(tmp_path / "set")
    whole = learned(folder, tmp_path / "whole", 4)
    learned(folder, tmp_path / "parts", 2)
    again = learned(folder, tmp_path / "parts", 4, resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    picture, out = folder / "images" / "3.png", tmp_path / "drawn.png"
    assert (
        main(
            [
                "detect",
                str(picture),
                "--model",
                str(tmp_path / "whole"),
                "--threshold",
                "0",
                "--json",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)[0]["found"]
    with Image.open(picture) as image, Image.open(out) as drawn:
        assert drawn.size == image.size and np.any(np.asarray(drawn) != np.asarray(image))
        width, height = image.size
    assert len(found) == 4 and {one["name"] for one in found} <= set(NAMES)
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    for one in found:
        left, top, right, bottom = one["box"]
        assert 0 <= left <= right <= width and 0 <= top <= bottom <= height
    assert main(["detect", str(picture), str(picture), "--model", str(tmp_path / "whole"), "--threshold", "1"]) == 0
    assert "nothing above 1" in capsys.readouterr().out


def test_boxes_come_back_in_pixels_of_the_original(tmp_path):
    """Resized, padded beside a larger picture, turned by its EXIF: the same box of the upright original."""
    folder = squares(tmp_path / "set")
    model = learned(folder, tmp_path / "run", 1).model
    image = Image.open(folder / "images" / "3.png")
    turned, exif = tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    alone = af.detect(model, [image], 0.0)[0]
    both = af.detect(model, [Image.new("RGB", (60, 70)), turned], 0.0)[1]
    for one, other in zip(alone, both, strict=True):
        assert one.name == other.name and one.box == pytest.approx(other.box, abs=1e-3)
    shown = model.processor(image)
    heads = model.eval()(**shown).heads
    best = int(heads["classes"].softmax(-1)[0, :, :-1].max(-1).values.argmax())
    x, y, wide, high = (heads["boxes"][0, best] * torch.tensor([image.width, image.height] * 2)).tolist()
    expected = (
        max(0, x - wide / 2),
        max(0, y - high / 2),
        min(image.width, x + wide / 2),
        min(image.height, y + high / 2),
    )
    assert alone[0].box == pytest.approx(expected, abs=1e-3)


def test_no_object_is_never_an_answer_and_a_threshold_is_a_probability(tmp_path):
    model = learned(squares(tmp_path / "set"), tmp_path / "run", 1).model
    with torch.no_grad():
        model.heads["classes"].proj.bias[:] = torch.tensor([0.0, 0.0, 20.0])
    image = Image.new("RGB", (30, 30))
    assert af.detect(model, [image], 0.5) == [[]]
    assert all(one.name in NAMES for one in af.detect(model, [image], 0.0)[0])
    with pytest.raises(ValueError, match="threshold is a probability"):
        af.detect(model, [image], 50)
    with pytest.raises(ValueError, match="no heads of boxes and classes"):
        af.detect(af.build("vit", "tiny"), [image])


@pytest.mark.slow
def test_squares_are_learned(tmp_path):
    """A tiny model learns 20 pictures by heart."""
    folder = squares(tmp_path / "set")
    model = learned(folder, tmp_path / "run", 1000, batch=8, lr=2e-3).model
    read = data.read(folder)
    images = [Image.open(one.path) for one in read.pictures]
    found = [
        Boxed(np.array([f.box for f in own], np.float32).reshape(-1, 4),
              np.array([NAMES.index(f.name) for f in own], int), np.array([f.score for f in own]))
        for own in af.detect(model, images, 0.0)
    ]  # fmt: skip
    truth = [Boxed(one.boxes.numpy(), one.classes.numpy()) for one in read.pictures]
    assert average_precision(found, truth).ap50 > 0.5
