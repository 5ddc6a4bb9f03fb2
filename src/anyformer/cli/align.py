"""teach a model which answers are better: dpo, ipo, simpo, kto."""

from __future__ import annotations

from typing import Any, Literal

from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer align dpo smollm2 --data preferences.jsonl --out runs/polite"
CALL = "anyformer.train:align"
OURS = ("loss", "model", "task")


def align(loss: Literal["dpo", "ipo", "simpo", "kto"], model: str) -> None:
    """Trains a model on preferences.

    Args:
        loss: dpo, ipo or simpo learn from pairs of answers; kto from answers that are good or bad.
        model: real weights by name (smollm2 …), a model directory, a .gguf file, or a hub id, of a decoder of text.
    """


def options(parser: Parser) -> None:
    """The options of the verb: the loss and the model, and those of the Python call, `anyformer.train.align`."""
    parser.add_function(align)
    parser.add_function(CALL, skip=OURS)


def run(args: Any) -> None:
    """Does it; prints what `align` prints."""
    from anyformer.train import align

    align(loss=args.loss, model=args.model, **pick(args, CALL, OURS))
