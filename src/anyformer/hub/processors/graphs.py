"""Graphs to a model's inputs, and its outputs to values or classes. B graphs, N nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anyformer.core.value import nearest
from anyformer.hub.processors.base import Origin, Processor
from anyformer.hub.processors.keys import CLASS
from anyformer.hub.tables.config import key, must, quiet
from anyformer.media.graphs import Graph

KIND = "GraphProcessor"

ENTRIES = (
    must("feature_extractor_type", KIND, absent=False),
    *(key(name, name) for name in ("nodes", "edges", "mean", "std")),
    key("classes", "classes", default=()),
    quiet("processor_class", why=CLASS),
)


@dataclass(frozen=True)
class GraphProcessor(Processor):
    """Graphs to `nodes`, `edges` and `attention_mask`.

    Args:
        nodes, edges: the kinds, by number; that of an edge is one more, since 0 is no edge.
        classes: their names, or none where the label is a number: mean + std * output.
        mean, std: of the labels of training.
        origin: the file that it was read from.
    """

    takes = ("nodes",)
    slot = "graph_processor"
    entries = ENTRIES

    nodes: tuple[str, ...]
    edges: tuple[str, ...]
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    origin: Origin = field(default=Origin(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.nodes or not self.std > 0:
            raise ValueError(
                f"nodes={self.nodes}, std={self.std}; expected at least one kind of nodes, and std above 0"
            )

    def __call__(self, media: Sequence[Graph]) -> dict[str, Tensor]:
        """Some graphs as a batch, padded on the right.

        Raises:
            ValueError: for a kind of node or edge that training had not.
        """
        rows, most = len(media), max(len(graph.nodes) for graph in media)
        nodes, mask = (torch.zeros(rows, most, dtype=torch.long) for _ in range(2))
        edges = torch.zeros(rows, most, most, dtype=torch.long)
        for row, graph in enumerate(media):
            count = len(graph.nodes)
            nodes[row, :count] = torch.tensor([self._number(self.nodes, "node", kind) for kind in graph.nodes])
            mask[row, :count] = 1
            for one, other, kind in graph.edges:
                edges[row, one, other] = edges[row, other, one] = 1 + self._number(self.edges, "edge", kind)
        return {"nodes": nodes, "edges": edges, "attention_mask": mask}

    def _number(self, known: tuple[str, ...], what: str, kind: str) -> int:
        if kind not in known:
            raise ValueError(f"training had no {what} of the kind {kind!r}{nearest(kind, known)}")
        return known.index(kind)

    def __str__(self) -> str:
        what = f"{len(self.classes)} classes" if self.classes else f"a value, {self.mean:g} ± {self.std:g}"
        return f"graphs of {len(self.nodes)} kinds of nodes and {len(self.edges)} of edges; {what}"
