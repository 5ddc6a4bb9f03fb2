"""find the things in pictures: their classes and boxes, drawn on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer detect street.jpg --model facebook/detr-resnet-50 --out drawn.png"


def detect(
    image: list[str],
    *,
    model: str = "facebook/detr-resnet-50",
    threshold: float = 0.5,
    out: str | None = None,
    batch: int = 8,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints the class, the score and the box of each thing in each picture, in pixels of the upright original.

    Args:
        image: files of pictures.
        model: a directory, the folder of a run, or a hub id.
        threshold: the least score of a thing, from 0 to 1.
        out: a file for the picture with its boxes; for several pictures a folder.
        batch: pictures at once.
        json: print them as JSON.
        task: read another class of the same files.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate.detecting import detect as things
    from anyformer.generate.detecting import drawn

    loaded = models.load(model, text=False, task=task, ignore=ignore)
    found = things(loaded, image, threshold, batch)
    if json:
        print(
            plain.dump([{"image": n, "found": [asdict(f) for f in own]} for n, own in zip(image, found, strict=True)])
        )
    for name, own in zip(image, found, strict=True):
        if not json:
            print(f"{name}: {len(own)} found" if own else f"{name}: nothing above {threshold:g}")
        if own and not json:
            print(plain.table((f"{f.score:.2f}", f.name, *(f"{side:.0f}" for side in f.box)) for f in own))
        if out is not None:
            if len(image) > 1:
                Path(out).mkdir(parents=True, exist_ok=True)
            drawn(name, own, out if len(image) == 1 else Path(out) / f"{Path(name).stem}.png")


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(detect)


def run(args: Any) -> None:
    """Does it."""
    detect(**pick(args, detect))
