"""fine-tune a published model on your examples, in full or by adapters."""

from __future__ import annotations

from typing import Any

from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer finetune --model minilm --data reviews.csv --method lora --out runs/reviews"
CALL = "anyformer.train:finetune"


def options(parser: Parser) -> None:
    """The options of the verb are those of the Python call, `anyformer.train.finetune`."""
    parser.add_function(CALL)
    parser.accept_former("anyformer.train.renamed")


def run(args: Any) -> None:
    """Does it; prints what `finetune` prints."""
    from anyformer.train import finetune

    finetune(**pick(args, CALL))
