"""label the words of a text, with a model that was fine-tuned to tag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick
from anyformer.cli.texts import texts_of

EXAMPLE = 'anyformer tag runs/names "Ada Lovelace lived in London ."'


def tag(
    model: str,
    text: list[str],
    *,
    batch: int = 32,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints the words of each text with the likeliest label of each and its probability.

    Args:
        model: a directory, the folder of a run, a hub id, or real weights by name; it has a head for each token.
        text: texts, whose words are what spaces separate; the name of a .txt file, or - for standard input: a text in
            each line.
        batch: texts at once.
        json: as JSON, with the probabilities of all labels.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate import tag as tags

    texts = texts_of(text)
    tagged = tags(models.load(model, task=task, ignore=ignore), texts, batch)
    if json:
        rows = zip(texts, tagged, strict=True)
        print(plain.dump([{"text": t, "words": [{"word": w, "labels": p} for w, p in words]} for t, words in rows]))
        return
    tables = []
    for words in tagged:
        best = ((word, *next(iter(labels.items()))) for word, labels in words)
        tables.append(plain.table(((word, label, f"{p:.1%}") for word, label, p in best), right=(2,)))
    print("\n\n".join(tables))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(tag)


def run(args: Any) -> None:
    """Does it."""
    tag(**pick(args, tag))
