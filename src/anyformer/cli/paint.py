"""make pictures of a class or a text, out of noise; or a picture again, of its codes (dVAE)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer.cli import models
from anyformer.cli.options import Parser, pick

EXAMPLE = 'anyformer paint runs/clothes "ankle boot" --out boot.png --guidance 3'


def paint(
    model: str,
    what: str,
    *,
    out: str = "picture.png",
    count: int = 1,
    steps: int = 50,
    guidance: float = 2.0,
    seed: int = 0,
    sampler: str | None = None,
    eta: float = 0.0,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Writes pictures, and prints the names of their files.

    Args:
        model: a directory, of a model that `anyformer train --task paint` made.
        what: a class by its name or number, or a text, as the model learned; for a dVAE the file of a picture.
        out: a file; several pictures are numbered: boot-1.png, boot-2.png.
        count: pictures.
        steps: of the sampler.
        guidance: 1 takes the model as it is; more gives less variety, closer to what is asked for; 0 is of anything.
        seed: of the noise.
        sampler: euler, ddim or ddpm; by default that of the model.
        eta: of ddim: the share of new noise in each step.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate import paint as pictures
    from anyformer.generate import repaint
    from anyformer.media.picture import write

    loaded = models.load(model, text=False, task=task, ignore=ignore)
    if hasattr(loaded, "coded"):
        print(write(repaint(loaded, [Path(what)])[0], Path(out)))
        return
    made = pictures(loaded, what, steps=steps, guidance=guidance, seed=seed, sampler=sampler, eta=eta, count=count)
    path = Path(out)
    for number, picture in enumerate(made, 1):
        print(write(picture, path if count == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(paint)


def run(args: Any) -> None:
    """Does it."""
    paint(**pick(args, paint))
