"""check a model or an architecture against the contract, and print the table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick
from anyformer.core.listing import names

EXAMPLE = "anyformer verify bert-tiny"


def verify(
    model: str,
    *,
    slow: bool = False,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> bool:
    """Runs the checks of `anyformer.contract.verify` and prints what came of each.

    Of an architecture: every check over its tiny size and all its cases. Of a model: what can be checked on somebody's
    own weights, against `transformers` where that is installed and knows the model.

    Args:
        model: an architecture, a directory, a .gguf file, a hub id, or real weights by name.
        slow: also the checks that take more than ten seconds each.
        json: print the report as JSON.
        task: of a model: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.

    Returns:
        Whether everything that was run passed.
    """
    from anyformer import contract

    subject = model if model in names() else str(models.find(model))
    progress = _progress if sys.stderr.isatty() else None
    report = contract.verify(subject, slow=slow, progress=progress, task=task, ignore=ignore)
    if sys.stderr.isatty():
        _progress("")
    print(plain.dump(report.to_json()) if json else report.table())
    return report.ok


def _progress(what: str) -> None:
    """What runs now, on one line that is written over."""
    print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(verify)


def run(args: Any) -> int:
    """Does it; 1 if a check failed."""
    return 0 if verify(**pick(args, verify)) else 1
