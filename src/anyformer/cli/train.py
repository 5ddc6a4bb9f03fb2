"""train a model on text, from nothing or from a checkpoint."""

from __future__ import annotations

from typing import Any

from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer train --model llama --data book.txt --out runs/book --overrides.depth 6"
CALL = "anyformer.train:train"


def options(parser: Parser) -> None:
    """The options of the verb are those of the Python call, `anyformer.train.train`."""
    parser.add_function(CALL)
    parser.accept_former("anyformer.train.renamed")


def run(args: Any) -> None:
    """Does it; prints what `train` prints."""
    from anyformer.train import train

    train(**pick(args, CALL))
