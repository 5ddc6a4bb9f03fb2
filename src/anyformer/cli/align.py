"""teach a model which answers are better: dpo, ipo, simpo, kto; or to revise its own by principles: constitution."""

from __future__ import annotations

from typing import Any, Literal

from anyformer.cli.options import Parser, pick
from anyformer.cli.signatures import read

EXAMPLE = "anyformer align dpo smollm2 --data preferences.jsonl --out runs/polite"
CALL, OWN = "anyformer.train:align", "anyformer.train.constitution:constitution"
OURS = ("loss", "model", "task")


def align(loss: Literal["dpo", "ipo", "simpo", "kto", "constitution"], model: str) -> None:
    """Trains a model on preferences.

    Args:
        loss: dpo, ipo or simpo learn from pairs of answers; kto from answers that are good or bad; constitution makes
            pairs of the model's own answers by --principles.
        model: real weights by name (smollm2 …), a model directory, a .gguf file, or a hub id, of a decoder of text.
    """


def options(parser: Parser) -> None:
    """The options of the verb: the loss and the model, and those of the Python calls, `anyformer.train.align` and
    `anyformer.train.constitution.constitution`."""
    parser.add_function(align)
    parser.add_function(CALL, skip=OURS)
    parser.add_function(OWN, skip=(*OURS, *read(CALL).names))


def run(args: Any) -> None:
    """Does it; prints what the call prints."""
    if args.loss == "constitution":
        from anyformer.train.constitution import constitution

        constitution(model=args.model, **pick(args, OWN, OURS))
        return
    from anyformer.train import align

    for p in read(OWN).parameters:
        if p.name not in (*OURS, *read(CALL).names) and args[p.name] != p.default:
            raise ValueError(f"--{p.name.replace('_', '-')} is for constitution; {args.loss} learns from --data")
    align(loss=args.loss, model=args.model, **pick(args, CALL, OURS))
