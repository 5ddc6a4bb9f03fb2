"""The task detect: the things in a picture, with their boxes. B pictures, M boxes at most."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from anyformer.data import boxes as data
from anyformer.data.batches import Batch
from anyformer.data.corpus import weights
from anyformer.data.labels import IGNORE
from anyformer.data.order import shuffled
from anyformer.generate.detecting import answers
from anyformer.media.boxes import converted, pixels, shares
from anyformer.media.picture import picture
from anyformer.train.average_precision import Boxed, average_precision
from anyformer.train.options import TrainOptions
from anyformer.train.set_prediction import SetPrediction
from anyformer.train.tasks.base import Task
from anyformer.train.tasks.splits import Split, Subset, one_in_ten
from anyformer.train.tasks.tables import listed

UNIT = "(1 - average precision)"


class BoxData:
    """Pictures with boxes; one of each ten is held out."""

    implied: ClassVar[dict[str, Any]] = {}
    longest = 0  # no tokens

    def __init__(self, kind: str, options: TrainOptions):
        if options.order == "packed":
            raise ValueError(
                f"order=packed is for text, and {kind} reads each picture once in an epoch; leave order out"
            )
        if options.fields:
            raise ValueError("fields rename columns of tables; COCO's and VOC's files have names of their own")
        sources = list(weights(options.data))
        if len(sources) > 1:
            raise ValueError(f"{kind} reads one set of pictures, got {len(sources)}: {', '.join(sources)}; join them")
        self.source, self.options = sources[0], options
        self.read = data.read(self.source)

    @property
    def classes(self) -> int:
        """Their number."""
        return len(self.read.names)

    def words(self) -> tuple[str, ...]:
        """No text."""
        return ()

    def task(self, model: Any, context: int | None) -> Task:
        """The task for a model.

        Raises:
            ValueError: for a model with other classes, fewer queries than a picture has boxes, or frozen norms without
                statistics.
        """
        return on_boxes(self.read, self.source, model, one_in_ten, self.options.seed)


def on_boxes(read: data.BoxSet, source: str, model: Any, split: Split, seed: int) -> BoxTask:
    """The task detect on pictures with boxes.

    Args:
        read: the pictures. source: their name. split: how to hold some of them out.

    Raises:
        ValueError: for a model with other classes, fewer queries than a picture has boxes, or frozen norms without
            statistics; for held-out pictures without a box.
    """
    names, pictures = read.names, read.pictures
    _fits(read, model)
    model.origin = {**(model.origin or {}), "classes": list(names)}
    learn, out = split(source, len(pictures))
    rows = BoxRows(pictures, learn, seed, model.processor)
    held_out = [pictures[i] for i in out.of(np.arange(out.size)).tolist()]
    if not any(len(one.boxes) for one in held_out):
        raise ValueError(f"{source}: no held-out picture has a box; {out.size} are held out; give more")

    def measured(batch: int) -> Iterator[Batch]:
        for first in range(0, len(held_out), batch):
            yield rows.batch(held_out[first : first + batch])

    count = sum(len(one.boxes) for one in pictures)
    summary = f"{learn.size:,} pictures, {out.size:,} held out, {count:,} boxes; {listed(names)}"
    facts = {"task": "detect", "examples": _digest(read), "classes": list(names), "held_out": [out.size]}
    return BoxTask(
        "detect", rows, measured, SetPrediction(), None, UNIT, summary, facts, read.notes, size=learn.size,
        pictures=tuple(held_out), learned=tuple(pictures[i] for i in learn.of(np.arange(learn.size)).tolist()),
    )  # fmt: skip


def _fits(read: data.BoxSet, model: Any) -> None:
    """Raises ValueError for a model that these pictures do not fit."""
    for path, part in model.named_modules():
        if getattr(part, "empty", False):
            raise ValueError(
                f"{path} is a frozen norm without statistics, which in a new model norms nothing: load published "
                "weights, or use norms that learn: --overrides.norm group"
            )
    head = model.heads["classes"].proj.out_features - 1 if "classes" in getattr(model, "heads", {}) else None
    if head != len(read.names):
        raise ValueError(f"the data has {len(read.names)} classes, and the model's head {head}: they must be equal")
    known = (model.origin or {}).get("classes")
    if known and list(known) != list(read.names):
        raise ValueError(f"the model's classes are {', '.join(known)}; the data's {', '.join(read.names)}")
    most, queries = max(len(one.boxes) for one in read.pictures), len(model.queries.weight)
    if most > queries:
        raise ValueError(
            f"a picture has {most} boxes, and the model {queries} queries, one for each: --overrides.queries {most}"
        )


def _digest(read: data.BoxSet) -> str:
    """Equal for equal names, sizes and boxes."""
    digest = hashlib.sha256(repr(read.names).encode())
    for one in read.pictures:
        digest.update(f"{one.path.name} {one.height} {one.width} {one.path.stat().st_size}".encode())
        digest.update(one.boxes.numpy().tobytes() + one.classes.numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class BoxRows:
    """Pictures by number, each once in an epoch, see `data.order.Rows`."""

    pictures: tuple[data.Annotated, ...]
    places: Subset
    seed: int
    processor: Any

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        items = self.places.of(shuffled(first, count, self.places.size, self.seed)[1])
        return self.batch([self.pictures[i] for i in items.tolist()])

    def batch(self, pictures: list[data.Annotated]) -> Batch:
        """The model's inputs, and labels (B, M, 5): class, centre x and y, width and height as shares."""
        inputs = self.processor([opened(one) for one in pictures])
        most = max(1, *(len(one.boxes) for one in pictures))
        labels = torch.full((len(pictures), most, 5), float(IGNORE))
        for row, one in zip(labels, pictures, strict=True):
            row[: len(one.boxes), 0] = one.classes.float()
            row[: len(one.boxes), 1:] = shares(converted(one.boxes, "corners", "centre"), one.height, one.width)
        return {**inputs, "labels": labels}


def opened(one: data.Annotated) -> Any:
    """The upright picture.

    Raises:
        ValueError: if it has another size than its boxes' list says.
    """
    image = picture(one.path)
    if (image.height, image.width) != (one.height, one.width):
        turned = "; it is turned by its EXIF orientation, and boxes are read in the upright picture" if (
            (image.width, image.height) == (one.height, one.width)
        ) else ""  # fmt: skip
        raise ValueError(
            f"{one.path} has {image.width} x {image.height} pixels, and the list of its boxes says {one.width} x "
            f"{one.height}{turned}"
        )
    return image


@dataclass(frozen=True, eq=False)
class BoxTask(Task):
    """The task detect, measured by average precision over all held-out pictures.

    Attributes:
        pictures: held out, in the order of the batches. learned: the others.
    """

    pictures: tuple[data.Annotated, ...] = field(default=())
    learned: tuple[data.Annotated, ...] = field(default=())

    @torch.no_grad()
    def measure(self, model: Any, batch: int) -> float:
        """1 - average precision, so that lower is better."""
        device, found = next(model.parameters()).device, list[Boxed]()
        for arrays in self.held_out(batch):
            inputs = {name: value.to(device) for name, value in arrays.items() if name != "labels"}
            for scores, classes, boxes in answers(model(**inputs)):
                one = self.pictures[len(found)]
                corners = pixels(boxes, one.height, one.width).cpu().numpy()
                found.append(Boxed(corners, classes.cpu().numpy(), scores.cpu().numpy()))
        return 1 - average_precision(found, [true(one) for one in self.pictures]).ap

    def baseline(self, batch: int) -> float:
        """The same of one guess for all pictures: the mean box, as shares, of the commonest class."""
        common = int(torch.cat([one.classes for one in self.learned]).bincount().argmax())
        boxes = torch.cat([shares(one.boxes, one.height, one.width)[one.classes == common] for one in self.learned])
        guess = boxes.mean(0, keepdim=True)
        found = [Boxed(pixels(guess, one.height, one.width).numpy(), np.array([common]), np.ones(1))
                 for one in self.pictures]  # fmt: skip
        return 1 - average_precision(found, [true(one) for one in self.pictures]).ap


def true(one: data.Annotated) -> Boxed:
    """The boxes of a picture, for `average_precision`."""
    return Boxed(one.boxes.numpy(), one.classes.numpy())


def first_picture(source: str | Path) -> str:
    """The file of the first picture."""
    return str(data.read(source).pictures[0].path)
