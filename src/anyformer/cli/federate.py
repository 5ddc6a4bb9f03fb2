"""fine-tune a model on the examples of clients, which stay with them."""

from __future__ import annotations

from typing import Any

from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer federate minilm --clients hospitals --rounds 10 --out runs/together"
CALL = "anyformer.federate:federate"


def options(parser: Parser) -> None:
    """The options of the verb are those of the Python call, `anyformer.federate.federate`."""
    parser.add_function(CALL)


def run(args: Any) -> None:
    """Does it; prints what `federate` prints."""
    from anyformer.federate import federate

    federate(**pick(args, CALL))
