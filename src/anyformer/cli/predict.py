"""predict the value or the class of graphs: edge lists, molecules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer predict runs/tpsa molecules.jsonl"


def predict(
    model: str,
    data: str,
    *,
    batch: int = 32,
    fields: dict[str, str] | None = None,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints the value of each graph, or its likeliest class with its share.

    Args:
        model: a directory, or the folder of a run, of a model that `anyformer train` made of graphs.
        data: rows with `nodes` and `edges`, or with `smiles`: JSONL, CSV or Parquet.
        batch: graphs at once.
        fields: columns that have other names: --fields.smiles SMILES.
        json: all values or classes, as JSON.
        task: read another class of the same files.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.data.records import records
    from anyformer.generate.judging import judge
    from anyformer.media.graphs import graph_of

    loaded = models.load(model, text=False, task=task, ignore=ignore)
    graphs = []
    for number, row in enumerate(records(data, fields), 1):
        if not {"smiles", "nodes"} & row.keys():
            raise ValueError(f"{data}, row {number} has neither nodes nor smiles; it has {', '.join(row)}")
        try:
            graphs.append(graph_of(row))
        except ValueError as error:
            raise ValueError(f"{data}, row {number}: {error}") from None
    found: Any = judge(loaded, graphs, batch)
    if json:
        print(plain.dump(found))
        return
    for one in found:
        print(f"{one:g}" if isinstance(one, float) else "{} {:.1%}".format(*next(iter(one.items()))))


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(predict)


def run(args: Any) -> None:
    """Does it."""
    predict(**pick(args, predict))
