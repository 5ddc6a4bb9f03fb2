"""Training on pictures with boxes: COCO's and VOC's files, the verb detect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.cli import main
from anyformer.data import boxes as data
from anyformer.media.boxes import converted, shares
from anyformer.train import finetune, train
from anyformer.train.average_precision import Boxed, average_precision
from anyformer.train.options import TrainOptions
from anyformer.train.set_prediction import SetPrediction
from anyformer.train.tasks.boxes import BoxData

NAMES = ("blue square", "red square")
SMALL = {"norm": "group", "net.widths": (8, 8), "net.depths": (1, 1), "net.stem": 8, "queries": 4}


# ------------------------------------------------------------------------------------------------ data


def squares(folder: Path, count: int = 20, form: str = "coco") -> Path:
    """Grey pictures of several sizes with squares of two colours, in COCO's or VOC's files."""
    noise, images, objects = np.random.default_rng(0), list[Any](), list[Any]()
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


@pytest.mark.parametrize(("form", "method"), [("coco", "lora"), ("voc", "full"), ("coco", "full")])
def test_a_detector_is_tuned_to_other_classes_by_adapters_or_in_full(form, method, tmp_path):
    """The head makes room for the new classes; everything else begins where it was, and adapters leave it there."""
    start = learned(squares(tmp_path / "set"), tmp_path / "run", 2)
    other = squares(tmp_path / "other", form=form)
    for file in other.glob("*.*"):
        file.write_text(file.read_text().replace(NAMES[0], "a sea").replace(NAMES[1], "brick"))
    if form == "coco":
        content = json.loads((other / "all.json").read_text())
        content["categories"].append({"id": 99, "name": "never"})
        (other / "all.json").write_text(json.dumps(content))
    given: dict[str, Any] = {"method": method, "batch": 4, "quiet": True, "device": "cpu", "held_out": 0.2}
    done = finetune(str(tmp_path / "run"), other, steps=4, save_every=2, out=tmp_path / "tuned", **given)
    assert done.task == "detect" and done.classes == (
        ("a sea", "brick", "never") if form == "coco" else ("a sea", "brick")
    )
    assert done.folder is not None and 0 <= done.before <= 1 and done.after is not None
    model: Any = af.load(done.folder)
    assert model.heads["classes"].proj.out_features == len(done.classes) + 1
    assert {f.name for f in af.detect(model, [Image.new("RGB", (30, 30))], 0.0)[0]} <= set(done.classes)
    before, after = start.model.state_dict(), model.state_dict()
    still = [n for n in before if "convolution" in n or n.endswith("queries.weight") or ".norm" in n]
    assert still and (method == "full") != all(torch.equal(before[n], after[n]) for n in still)
    mixer = "decoder.blocks.0.cross.q.weight"
    assert not torch.equal(before[mixer], after[mixer])
    shutil.rmtree(tmp_path / "tuned" / "step-000004")
    again = finetune(str(tmp_path / "run"), other, steps=4, save_every=2, out=tmp_path / "tuned", resume=True, **given)
    for name, value in again.model.state_dict().items():
        torch.testing.assert_close(value, after[name], rtol=0, atol=0)


def test_what_a_detector_cannot_be_tuned_on_is_named(tmp_path):
    folder = squares(tmp_path / "set")
    learned(folder, tmp_path / "run", 1)
    given: dict[str, Any] = {"steps": 1, "quiet": True, "device": "cpu", "out": tmp_path / "tuned"}
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n')
    vit = af.build("vit", "tiny", seed=0)
    vit.save(tmp_path / "vit")
    for model, place, options, said in (
        ("run", "rows.jsonl", {}, r"data is a COCO file \(set/annotations\.json\) or a folder"),
        ("run", "set", {"task": "classify"}, "a detector learns .*task=classify is asked for"),
        ("vit", "set", {}, "the data has boxes, which a detector learns"),
        ("run", "set", {"context": 5}, "context=5 is a number of tokens"),
        ("run", "set", {"fields": {"text": "a"}}, "fields rename columns of tables"),
        ("run", "set", {"held_out": str(tmp_path / "rows.jsonl")}, "of pictures with boxes it is a share"),
    ):
        with pytest.raises(ValueError, match=said):
            finetune(str(tmp_path / model), tmp_path / place, **given, **options)  # type: ignore[arg-type]


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
