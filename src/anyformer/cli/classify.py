"""name the class of pictures or texts; with two towers (CLIP), among any labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick
from anyformer.cli.texts import items_of

EXAMPLE = 'anyformer classify runs/reviews "A fine film." "A waste of time."'


def classify(
    model: str,
    item: list[str],
    *,
    labels: list[str] | None = None,
    template: str = "{}",
    top: int = 5,
    batch: int = 32,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints the likeliest classes of each item with their probabilities.

    Args:
        model: a directory, the folder of a run, a hub id, or real weights by name.
        item: texts; the name of a .txt file, or - for standard input: a text in each line; a .jsonl, .csv or .parquet
            file: the text of each row. For a model of pictures their files, or - for one on standard input.
        labels: the classes to choose from, for a model of two towers; several words, or one with commas.
        template: around each label, e.g. "a photo of a {}.".
        top: classes that are printed.
        batch: items at once.
        json: all classes, as JSON.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate import classify as classes

    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    if labels is not None and len(labels) == 1:
        labels = [label.strip() for label in labels[0].split(",")]
    loaded = models.load(model, text=False, task=task, ignore=ignore)
    names, items = items_of(loaded, item)
    ranked = classes(loaded, items, labels, template, batch)
    if json:
        print(plain.dump([{"item": name, "classes": shares} for name, shares in zip(names, ranked, strict=True)]))
        return
    for name, shares in zip(names, ranked, strict=True):
        print(name)
        print(plain.table((f"{share:.1%}", label) for label, share in list(shares.items())[:top]))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(classify)


def run(args: Any) -> None:
    """Does it."""
    classify(**pick(args, classify))
