"""show a picture as a model sees it, after all steps of its processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer show runs/clothes boot.png --out seen.png"


def show(
    model: str,
    image: str,
    *,
    out: str = "seen.png",
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Writes the picture that the model sees, brought back to bytes, and prints sizes, range and steps.

    Args:
        model: a directory, the folder of a run, or a hub id, of a model of pictures.
        image: the file of a picture.
        out: the file that is written.
        json: print sizes, range and steps as JSON.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate.showing import show as shown
    from anyformer.media.picture import write

    seen = shown(models.load(model, text=False, task=task, ignore=ignore), Path(image))
    path = write(seen.pixels, Path(out))
    if json:
        facts = {name: value for name, value in vars(seen).items() if name != "pixels"}
        print(plain.dump({"file": str(path), **facts}))
        return
    high, wide = seen.given
    rows = [
        ("picture", f"{wide} x {high}, of which {seen.kept:.0%} is seen"),
        ("seen", f"{seen.seen[1]} x {seen.seen[0]}, {path}"),
        ("numbers", f"{seen.least:.3f} to {seen.most:.3f}, mean {', '.join(f'{v:.3f}' for v in seen.mean)}"),
        *(("", step) if i else ("steps", step) for i, step in enumerate(seen.steps)),
    ]
    print(plain.table(rows, indent=0))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(show)


def run(args: Any) -> None:
    """Does it."""
    show(**pick(args, show))
