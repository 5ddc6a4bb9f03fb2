"""make pictures of a class or a text, out of noise or by codes; or a picture again, of its codes (dVAE)."""

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
    guidance: float = 2.0,
    seed: int = 0,
    rank: str | None = None,
    candidates: int | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    eta: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Writes pictures, and prints the names of their files.

    Args:
        model: a directory, of a model that `anyformer train --task paint` or `--task draw` made.
        what: a class by its name or number, or a text, as the model learned; for a dVAE the file of a picture.
        out: a file; several pictures are numbered: boot-1.png, boot-2.png.
        count: pictures.
        guidance: 1 takes the model as it is; more gives less variety, closer to what is asked for; 0 is of anything.
        seed: of the noise, or of the draws.
        rank: a directory or a hub id, of a CLIP: of the candidates, those that are the most similar to the text are
            kept, the best first.
        candidates: pictures that are made for `rank`; 16 by default.
        steps: of the sampler, 50 by default; like sampler and eta for models that begin with noise.
        sampler: euler, ddim or ddpm; by default that of the model.
        eta: of ddim: the share of new noise in each step; 0 by default.
        temperature: for models that write codes, as top_k and top_p: 0 takes the likeliest; 1 by default.
        top_k: codes that can be drawn in a cell.
        top_p: of these, the likeliest until their probabilities reach it.
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
    made = pictures(
        loaded,
        what,
        guidance=guidance,
        seed=seed,
        count=count,
        candidates=candidates,
        rank=None if rank is None else models.load(rank, ignore=ignore),
        steps=steps,
        sampler=sampler,
        eta=eta,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    path = Path(out)
    for number, picture in enumerate(made, 1):
        print(write(picture, path if count == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(paint)


def run(args: Any) -> None:
    """Does it."""
    paint(**pick(args, paint))
