"""draw the wiring and the masks of a model or an architecture"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyformer.cli import models
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer draw llama --out llama.svg"


def draw(
    model: str,
    *,
    size: str | None = None,
    out: str | None = None,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Draws each kind of block with its residual streams, the front-end and the heads, and who may see whom.

    Args:
        model: an architecture (no weights are made), a directory, a .gguf file, a hub id, or real weights by name.
        size: of an architecture, e.g. 7b; tiny by default.
        out: .svg, .png or .pdf; MODEL.svg by default.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from pathlib import Path

    from anyformer.explain.wiring import draw as write

    name = f"{model} {size}" if size else model
    print(write(models.shape(model, size, task, ignore).recipe, out or f"{Path(model).stem}.svg", name))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(draw)


def run(args: Any) -> None:
    """Does it."""
    draw(**pick(args, draw))
