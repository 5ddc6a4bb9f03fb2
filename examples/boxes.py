"""DETR from scratch on emoji, beside connected components with the nearest mean picture.

    python examples/boxes.py --out runs/boxes

Noto's emoji (Debian's fonts-noto-color-emoji, 10 MB, OFL-1.1, fetched by apt once) of ten kinds lie on canvases of 64 x
64 pixels, one to five on each, in sizes of 14 to 28 pixels, some of them over one another. The canvases are written as
a data set in COCO's form, on which `anyformer train` works as on any other; the scores are counted on 500 canvases of
another seed. The baseline knows that a canvas has one colour, which DETR is not told.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch
from PIL import Image

import anyformer as af
from anyformer.data.captions import emoji
from anyformer.generate.detecting import Found, drawn
from anyformer.media.boxes import iou
from anyformer.train import train
from anyformer.train.average_precision import Boxed, Precision, average_precision

KINDS = (
    "cat face", "dog face", "frog face", "pig face", "automobile", "soccer ball", "banana", "tulip", "house building",
    "umbrella with rain drops",
)  # fmt: skip
SIDE, MOST, SMALLEST, LARGEST = 64, 5, 14, 28
COVERED = 0.3  # of an emoji's area, at most, by one other
VECTOR = 16  # pixels of the side of a mean picture
BEGIN, END = "<!-- boxes: begin -->", "<!-- boxes: end -->"


def glyphs() -> list[Any]:
    """The emoji, without the white around them."""
    named = {one.text: one.image for one in emoji()}
    made = []
    for kind in KINDS:
        pixels = np.asarray(named[kind])
        rows, columns = np.nonzero((pixels != 255).any(2))
        made.append(named[kind].crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)))
    return made


def canvases(count: int, seed: int, out: Path, drawings: Sequence[Any]) -> Path:
    """A data set in COCO's form."""
    noise, images, annotations = np.random.default_rng(seed), list[Any](), list[Any]()
    (out / "images").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        canvas = Image.new("RGB", (SIDE, SIDE), tuple(noise.integers(160, 256, 3).tolist()))
        placed: list[tuple[int, int, int, int]] = []
        for _ in range(int(noise.integers(1, MOST + 1))):
            kind, side = int(noise.integers(len(drawings))), int(noise.integers(SMALLEST, LARGEST + 1))
            glyph = drawings[kind]
            scale = side / max(glyph.size)
            width, height = (max(4, round(n * scale)) for n in glyph.size)
            left, top = (int(noise.integers(0, SIDE - n + 1)) for n in (width, height))
            if any(covered((left, top, width, height), other) > COVERED for other in placed):
                continue
            small = glyph.resize((width, height), Image.Resampling.BICUBIC)
            opaque = Image.fromarray(((np.asarray(small) < 250).any(2) * 255).astype(np.uint8))
            canvas.paste(small, (left, top), opaque)
            placed.append((left, top, width, height))
            annotations.append({"id": len(annotations), "image_id": number, "category_id": kind, "iscrowd": 0,
                                "bbox": [left, top, width, height], "area": width * height})  # fmt: skip
        canvas.save(out / "images" / f"{number:05}.png")
        images.append({"id": number, "file_name": f"{number:05}.png", "height": SIDE, "width": SIDE})
    categories = [{"id": i, "name": kind} for i, kind in enumerate(KINDS)]
    file = out / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def covered(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of the smaller box inside the other one."""
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(0, wide) * max(0, high) / min(one[2] * one[3], other[2] * other[3])


class Components:
    """Connected pixels of another colour than the canvas, each named after the nearest mean picture of a kind."""

    def __init__(self, file: Path):
        content = json.loads(file.read_text())
        sums = np.zeros((len(KINDS), VECTOR, VECTOR, 3))
        counts = np.zeros(len(KINDS))
        for one in content["annotations"]:
            image = Image.open(file.parent / "images" / f"{one['image_id']:05}.png")
            left, top, width, height = one["bbox"]
            sums[one["category_id"]] += vector(image.crop((left, top, left + width, top + height)))
            counts[one["category_id"]] += 1
        self.means = sums / counts[:, None, None, None]

    def __call__(self, image: Any) -> list[Found]:
        """The components of at least nine pixels; surer, the nearer."""
        from scipy import ndimage

        pixels = np.asarray(image).astype(int)
        colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        different = (abs(pixels - colours[counts.argmax()]) > 8).any(2)
        found = []
        for rows, columns in ndimage.find_objects(ndimage.label(different, np.ones((3, 3)))[0]):
            box = columns.start, rows.start, columns.stop, rows.stop
            if different[rows, columns].sum() >= 9:
                far = np.square(self.means - vector(image.crop(box))).mean((1, 2, 3))
                found.append(Found(KINDS[int(far.argmin())], float(np.exp(-far.min())), box))
        return found


def vector(image: Any) -> np.ndarray:
    """A picture of one size, from 0 to 1."""
    return np.asarray(image.resize((VECTOR, VECTOR))) / 255


def precision(found: Sequence[Sequence[Found]], file: Path) -> Precision:
    """Average precision over a data set."""
    content = json.loads(file.read_text())
    names = [kind["name"] for kind in content["categories"]]
    truth: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
    for one in content["annotations"]:
        truth[one["image_id"]].append(one)
    mine = [boxed([f.box for f in own], [names.index(f.name) for f in own], [f.score for f in own]) for own in found]
    real = []
    for own in truth.values():
        corners = [(x, y, x + w, y + h) for x, y, w, h in (one["bbox"] for one in own)]
        real.append(boxed(corners, [one["category_id"] for one in own]))
    return average_precision(mine, real)


def without_seconds(found: Sequence[Found]) -> list[Found]:
    """Without boxes that overlap a surer one of their kind by half."""
    kept: list[Found] = []
    for one in found:
        near = [other for other in kept if other.name == one.name]
        if not near or float(iou(torch.tensor([one.box]), torch.tensor([other.box for other in near])).max()) < 0.5:
            kept.append(one)
    return kept


def boxed(boxes: Any, classes: Any, scores: Any = None) -> Boxed:
    """Lists as arrays."""
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Boxed(corners, np.array(classes, int), None if scores is None else np.array(scores, float))


def main() -> None:
    """Prints a table, writes it between the marks of a document, and draws some results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/boxes"))
    parser.add_argument("--canvases", type=int, default=3000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="a document with the marks of the table")
    o = parser.parse_args()
    if o.table is not None and (not o.table.is_file() or BEGIN not in o.table.read_text()):
        parser.error(f"--table {o.table}: there is no document with the line {BEGIN}")
    drawings = glyphs()
    learn, test = (
        canvases(n, seed, o.out / name, drawings)
        for name, n, seed in (("learn", o.canvases, o.seed), ("test", o.test, o.seed + 1000))
    )
    began, worked = time.perf_counter(), time.process_time()
    done = train("detr", data=str(learn), steps=o.steps, batch=o.batch, lr=o.lr, seed=o.seed, out=str(o.out / "run"),
                 eval_every=max(1, o.steps // 4), warmup=min(200, o.steps // 10), save_every=o.steps)  # fmt: skip
    minutes, processor = (time.perf_counter() - began) / 60, (time.process_time() - worked) / 60
    images = [Image.open(file).convert("RGB") for file in sorted((o.out / "test" / "images").glob("*.png"))]
    found = af.detect(done.model, images, threshold=0.0, batch=50)
    components = Components(learn)
    rows = {"connected components, nearest mean": precision([components(image) for image in images], test)}
    count = sum(p.numel() for p in done.model.parameters())
    rows[f"DETR `mini`, {count:,} parameters"] = precision(found, test)
    rows["the same, without second boxes around one thing"] = precision([without_seconds(own) for own in found], test)
    lines = ["| detector | AP | AP50 | AP75 |", "|---|---|---|---|"]
    lines += [f"| {name} | {p.ap:.3f} | {p.ap50:.3f} | {p.ap75:.3f} |" for name, p in rows.items()]
    lines += ["", f"Seed {o.seed}: {o.canvases:,} canvases, {done.steps:,} steps of {o.batch} in {minutes:.0f} minutes "
              f"({processor:.0f} of the processor); scored on {o.test} other canvases."]  # fmt: skip
    for number in range(min(4, len(images))):
        large = images[number].resize((8 * SIDE, 8 * SIDE), Image.Resampling.NEAREST)
        sure = []
        for one in found[number]:
            left, top, right, bottom = (8 * side for side in one.box)
            sure += [Found(one.name, one.score, (left, top, right, bottom))] if one.score >= 0.5 else []
        drawn(large, sure, o.out / f"drawn-{number}.png")
    print("\n".join(lines))
    if o.table is not None:
        documents.put(o.table, BEGIN, END, "\n".join(lines))
    print(f"drawn: {o.out}/drawn-0.png …", file=sys.stderr)


if __name__ == "__main__":
    main()
