"""answer questions about the objects of pictures, row by row (LXMERT)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer answer runs/lxmert questions.jsonl --most 4"


def answer(
    model: str,
    rows: str,
    *,
    most: int = 16,
    top: int = 1,
    batch: int = 32,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints the likeliest answers to the question of each row.

    Args:
        model: a directory, the folder of a run, or a hub id.
        rows: a .jsonl or .parquet file; each row has `question`, `features` (a list of numbers for each object) and
            `boxes` (left, upper, right and lower share of the picture).
        most: rows that are answered, the first ones.
        top: answers that are printed.
        batch: rows at once.
        json: all answers with their probabilities, as JSON.
        task: read another class of the same files.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.data.records import find, records
    from anyformer.generate import answer as answers

    if most < 1 or top < 1:
        raise ValueError(f"most and top must be at least 1, got {most} and {top}")
    loaded = models.load(model, task=task, ignore=ignore)
    given = list(itertools.islice(records(find(rows), {}), most))
    ranked = answers(loaded, given, batch)
    if json:
        pairs = zip(given, ranked, strict=True)
        print(plain.dump([{"question": row["question"], "answers": shares} for row, shares in pairs]))
        return
    for row, shares in zip(given, ranked, strict=True):
        print(row["question"])
        print(plain.table((f"{share:.1%}", label) for label, share in list(shares.items())[:top]))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(answer)


def run(args: Any) -> None:
    """Does it."""
    answer(**pick(args, answer))
