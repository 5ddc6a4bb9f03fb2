"""make a direction of two kinds of texts, which leads what a model writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer steer smollm2 --toward glad.txt --away sad.txt"


def steer(
    model: str,
    *,
    toward: str,
    away: str,
    out: str = "direction.safetensors",
    at: str | None = None,
    by: Literal["mean", "probe"] = "mean",
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Writes a direction, and prints how well each block tells unseen texts apart. `anyformer generate MODEL … --steer
    FILE:2` adds it to the stream.

    Args:
        model: a directory, the folder of a run, a hub id, or real weights by name.
        toward: a file of texts, one a line, of the kind that the model shall write.
        away: a file of texts of the other kind; best in pairs that differ in one thing.
        out: the file to write, .safetensors.
        at: the path of a block, blocks.15; by default the one that tells unseen texts best.
        by: mean, the difference of the means of both kinds; probe, the direction of a linear probe that tells them
            apart.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.explain.steering import contrast

    loaded = models.load(model, task=task, ignore=ignore)
    made = contrast(loaded, _lines(toward), _lines(away), at, by)
    direction = made.direction
    direction.save(out)
    rows = [("place", "right order of unseen pairs")]
    rows += [
        (path, f"{share:.1%}" + (" <- chosen" if path == direction.at else "")) for path, share in made.told.items()
    ]
    print(plain.table(rows))
    print(f"{direction.at}: {made.length:.3g} long, the stream there {made.stream:.3g}")
    print(out)


def _lines(file: str) -> list[str]:
    return [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(steer)


def run(args: object) -> None:
    """Does it."""
    steer(**pick(args, steer))
