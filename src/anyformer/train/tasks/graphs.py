"""The task graphs: the value or the class of a graph. B graphs of a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from anyformer.data.batches import Batch
from anyformer.data.mixing import picked, shares
from anyformer.data.order import shuffled
from anyformer.hub.processors.graphs import GraphProcessor
from anyformer.media.graphs import Graph, graph_of
from anyformer.train import objectives
from anyformer.train.options import FinetuneOptions, TrainOptions
from anyformer.train.tasks import tables
from anyformer.train.tasks.base import Task
from anyformer.train.tasks.splits import Subset, one_in_ten

UNIT = "squared error, in variances of the labels"


class GraphData:
    """Graphs with a label; one of each ten is held out. Labels are numbers, or, if any is text, classes."""

    classes = 0  # decided in `implied`
    longest = 0  # no tokens

    def __init__(self, kind: str, options: TrainOptions | FinetuneOptions):
        self.options, self.tables = options, tables.read(options.data, options.fields)
        self.graphs: list[list[Graph]] = []
        self.labels: list[list[Any]] = []
        for table in self.tables:
            columns = ("smiles", "label") if "smiles" in table.columns() else ("nodes", "edges", "label")
            graphs, labels = [], []
            for number, row in enumerate(table.rows(columns), 1):
                try:
                    graphs.append(graph_of(row))
                    labels.append(_label(row["label"]))
                except ValueError as error:
                    raise ValueError(f"{table.source.name}, row {number}: {error}") from None
            self.graphs.append(graphs)
            self.labels.append(labels)
        self.splits = [one_in_ten(t.source.name, len(g)) for t, g in zip(self.tables, self.graphs, strict=True)]
        self.made = self._processor()

    def words(self) -> tuple[str, ...]:
        """No text."""
        return ()

    def _processor(self) -> GraphProcessor:
        """The kinds of all graphs; mean and deviation of the training labels."""
        every = [graph for graphs in self.graphs for graph in graphs]
        nodes = tuple(sorted({kind for graph in every for kind in graph.nodes}))
        edges = tuple(sorted({kind for graph in every for *_, kind in graph.edges}))
        labels = [label for own in self.labels for label in own]
        if any(isinstance(label, str) for label in labels):
            classes = tuple(sorted(map(str, dict.fromkeys(labels))))
            if len(classes) < 2:
                raise ValueError(f"the graphs have one class only, {classes[0]!r}; classification needs two")
            return GraphProcessor(nodes, edges, classes)
        learn = np.concatenate([
            np.array(own, np.float64)[part.of(np.arange(part.size))]
            for own, (part, _) in zip(self.labels, self.splits, strict=True)
        ])  # fmt: skip
        return GraphProcessor(nodes, edges, (), float(learn.mean()), float(learn.std()) or 1.0)

    @property
    def implied(self) -> dict[str, Any]:
        """The hyperparameters that the graphs decide."""
        outputs = len(self.made.classes) or 1
        return {"kinds": len(self.made.nodes), "edges": max(1, len(self.made.edges)), "outputs": outputs}

    def task(self, model: Any, context: int | None) -> Task:
        """The task for a model, which gets the processor of these graphs, if it has none.

        Raises:
            ValueError: for a model of other kinds or classes.
        """
        if model.processor is None:
            model.processor = self.made
        processor: GraphProcessor = model.processor
        if bool(processor.classes) != bool(self.made.classes):
            kinds = ["values", "classes"]
            now, was = (kinds[bool(p.classes)] for p in (self.made, processor))
            raise ValueError(f"the labels are {now}, and the model has {was}")
        front, outputs = model.embed, model.heads["graph"].proj.out_features
        if front.node_kinds < len(processor.nodes) or front.edges < len(processor.edges):
            raise ValueError(
                f"the graphs have {len(processor.nodes)} kinds of nodes and {len(processor.edges)} of edges, and the "
                f"model {front.node_kinds} and {front.edges}"
            )
        if outputs != (len(processor.classes) or 1):
            raise ValueError(f"the labels need {len(processor.classes) or 1} outputs, and the model has {outputs}")
        values = [[self._value(processor, label) for label in own] for own in self.labels]
        learn, out = ([pair[late] for pair in self.splits] for late in (0, 1))
        weights = tuple(table.weight for table in self.tables)
        rows = GraphRows(self.graphs, values, learn, weights, self.options.seed, processor)

        def held_out(batch: int) -> Iterator[Batch]:
            for source, part in enumerate(out):
                chosen = part.of(np.arange(part.size)).tolist()
                for first in range(0, len(chosen), batch):
                    yield rows.batch([(source, i) for i in chosen[first : first + batch]])

        value = not processor.classes
        objective = objectives.regression if value else objectives.classification
        size = sum(part.size for part in learn)
        summary = f"{size:,} graphs, {sum(part.size for part in out):,} held out; {processor}"
        digest = hashlib.sha256(repr((self.graphs, self.labels)).encode()).hexdigest()[:16]
        facts = {"task": "graphs", "examples": digest, "shares": shares(weights).tolist()}
        loss = objective if value else None
        return Task(
            "graphs", rows, held_out, objective, loss, UNIT if value else "error rate", summary, facts, size=size
        )

    @staticmethod
    def _value(processor: GraphProcessor, label: Any) -> Any:
        if not processor.classes:
            return (label - processor.mean) / processor.std
        if str(label) not in processor.classes:
            raise ValueError(f"the label {label!r} is none of the model's classes: {', '.join(processor.classes)}")
        return processor.classes.index(str(label))


def _label(value: Any) -> Any:
    """A finite number, or text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        if isinstance(value, str) and value.strip():
            return value
        raise ValueError(f"the label is {value!r:.40}; expected a number, or the name of a class") from None
    if not np.isfinite(number):
        raise ValueError(f"the label is {number}; expected a finite number")
    return number


@dataclass(frozen=True, eq=False)
class GraphRows:
    """Graphs of one or several sources by number, each once in an epoch, see `data.order.Rows`."""

    graphs: Sequence[Sequence[Graph]]
    values: Sequence[Sequence[Any]]
    parts: Sequence[Subset]
    weights: tuple[float, ...]
    seed: int
    processor: GraphProcessor

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        chosen: dict[int, tuple[int, int]] = {}
        for source, (before, places) in enumerate(picked(self.weights, self.seed, first, count)):
            part = self.parts[source]
            items = part.of(shuffled(before, len(places), part.size, self.seed)[1]).tolist()
            chosen |= dict(zip(places.tolist(), ((source, i) for i in items), strict=True))
        return self.batch([chosen[i] for i in range(count)])

    def batch(self, items: Sequence[tuple[int, int]]) -> Batch:
        """Inputs of the model; labels are (B,) classes, or (B, 1) values in deviations from the mean."""
        inputs = self.processor([self.graphs[source][i] for source, i in items])
        found = [self.values[source][i] for source, i in items]
        labels = torch.tensor(found) if self.processor.classes else torch.tensor(found, dtype=torch.float32)[:, None]
        return {**inputs, "labels": labels}
