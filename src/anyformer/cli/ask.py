"""ask a question about a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer.cli import models
from anyformer.cli.options import Parser, pick

EXAMPLE = 'anyformer ask llava-1.5-7b-hf photo.jpg "What is on the table?"'


def ask(
    model: str,
    image: str,
    question: str,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int | None = None,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints the answer as it is written.

    Args:
        model: a directory, the folder of a run, or a hub id, of a model that sees pictures in its text (LLaVA).
        image: the file of a picture.
        question: in quotes.
        max_new_tokens: the most tokens of the answer.
        temperature: 0 = always the likeliest token.
        seed: of the draws.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate import ask as answered

    loaded = models.load(model, task=task, ignore=ignore)
    for piece in answered(
        loaded, Path(image), question, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    ):
        print(piece, end="", flush=True)
    print()


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(ask)


def run(args: Any) -> None:
    """Does it."""
    ask(**pick(args, ask))
