"""Graphs: their front-end, and the bias of attention by distance and edge.

B graphs, N nodes, P = 1 + N positions of the stream, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from anyformer.core import checks
from anyformer.core.flow import Companion, Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.core.part import drop
from anyformer.parts.attention.masks import View
from anyformer.parts.attention.scores import Bias, Call, Score
from anyformer.parts.embeddings import Table

DOUBLINGS = 10  # paths of up to 2^10 edges connect two nodes


@dataclass(frozen=True)
class Pairs(Companion):
    """What lies between two positions: their distance, by its number in `GraphBias`, and the kind of their edge."""

    left_by: ClassVar[str] = "Nodes"
    per_position: ClassVar[bool] = True
    far: Tensor  # (B, P, P)
    edges: Tensor  # (B, P, P)


class Nodes(FrontEnd):
    """A graph as a set of nodes, after a virtual one that is connected to all (Ying et al., 2021; arXiv:2106.05234).

    ```
    x = node[kind] + degree[number of neighbours];   first the virtual node, a learned vector
    ```
    Nodes have no order and no positions: distances and edges, which attention reads from `Pairs`, are all that a node
    knows of the others. Distances are those of the shortest paths, whatever the direction of an edge.

    Args:
        kinds: of nodes. `edges`: kinds of edges, 1 to that; 0 is no edge.
        far: distances from this one on are one.
        degrees: numbers of neighbours from this one on are one.
        dropout: at the end.

    Shape: (B, N) and (B, N, N) -> (B, 1 + N, D).
    """

    main, mask = "nodes", "attention_mask"

    def __init__(self, dim: int, kinds: int, edges: int = 1, far: int = 5, degrees: int = 8, dropout: float = 0.0):
        super().__init__()
        if min(kinds, edges, far) < 1 or degrees < 0:
            raise ValueError(
                f"Nodes: kinds={kinds}, edges={edges} and far={far} must be at least 1, degrees={degrees} at least 0"
            )
        self.node_kinds, self.edges, self.far, self.degrees, self.dropout = kinds, edges, far, degrees, dropout
        self.node, self.degree = Table(kinds, dim), Table(degrees + 1, dim)
        self.virtual = nn.Parameter(torch.empty(1, 1, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.virtual, std=0.02)

    def inputs(self) -> dict[str, Input]:
        return {
            "nodes": Input(("nodes",), ("nodes",), ids=True),
            "edges": Input(("nodes", "others"), ("nodes", "others"), ids=True),
        }

    def units(self, inputs: Inputs) -> int:
        """The number of nodes."""
        return self.length(inputs) - 1

    def length(self, inputs: Inputs) -> int:
        nodes, edges = inputs["nodes"], inputs["edges"]
        if nodes.ndim != 2:
            raise ValueError(f"nodes must be (graphs, nodes), got {tuple(nodes.shape)}")
        wanted = (*nodes.shape, nodes.shape[1])
        if tuple(edges.shape) != wanted:
            raise ValueError(f"edges must be {tuple(wanted)}, the kind of each edge, got {tuple(edges.shape)}")
        return 1 + nodes.shape[1]

    def keep(self, mask: Tensor, inputs: Inputs) -> Tensor:
        return torch.cat((torch.ones_like(mask[:, :1]), mask), 1)

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        count = size[0]
        kinds = torch.randint(1, self.edges + 1, (rows, count, count), generator=noise)
        there = torch.rand(rows, count, count, generator=noise) < 1.2 / max(1, count)
        upper = (kinds * there).triu(1)
        nodes = torch.randint(0, self.node_kinds, (rows, count), generator=noise)
        return {"nodes": nodes, "edges": upper + upper.mT}

    def sizes(self) -> list[tuple[int, ...]]:
        return [(9,)]

    def check_ids(self, inputs: Inputs) -> None:
        nodes = inputs["nodes"]
        bad = nodes[(nodes < 0) | (nodes >= self.node_kinds)]
        if len(bad):
            raise ValueError(f"nodes holds the kind {int(bad[0])}, and kinds go from 0 to {self.node_kinds - 1}")

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        nodes, edges = inputs["nodes"], inputs["edges"]
        keep = flow.keep_now(1 + nodes.shape[1])
        if keep is not None:  # no edge of a node that is padding counts
            real = keep[:, 1:]
            edges = edges.masked_fill(~(real[:, :, None] & real[:, None]), 0)
            nodes = nodes.masked_fill(~real, 0)
        if checks.readable(edges) and bool(((edges < 0) | (edges > self.edges)).any()):
            raise ValueError(
                f"edges holds {int(edges.max())}; expected 0 for no edge, and kinds from 1 to {self.edges}"
            )
        edges = edges * ~torch.eye(edges.shape[1], dtype=torch.bool, device=edges.device)  # a node and itself: none
        linked = (edges > 0) | (edges > 0).mT
        flow.put(Pairs(self._framed(self.distances(linked), self.far + 2), self._framed(edges, 0)))
        x = self.node(nodes) + self.degree(linked.sum(-1).clamp(max=self.degrees))
        return drop(self, torch.cat((self.virtual.expand(nodes.shape[0], -1, -1), x), 1))

    def distances(self, linked: Tensor) -> Tensor:
        """The numbers of distances: 0 … far - 1 of so many edges, far of more, far + 1 where no path leads."""
        near = linked.float() + torch.eye(linked.shape[1], device=linked.device)  # (B, N, N)
        number = torch.full_like(linked, self.far + 1, dtype=torch.long)
        reach = near
        for _ in range(DOUBLINGS):
            reach = ((reach @ reach) > 0).float()
        number = number.masked_fill(reach > 0, self.far)
        within = torch.eye(linked.shape[1], device=linked.device).expand_as(near)
        seen = [within]
        for _ in range(1, self.far):
            seen.append(((seen[-1] @ near) > 0).float())
        for steps in range(self.far - 1, -1, -1):
            number = number.masked_fill(seen[steps] > 0, steps)
        return number

    def _framed(self, pairs: Tensor, value: int) -> Tensor:
        """The pairs of all positions, with this value at the virtual node: (B, N, N) -> (B, P, P)."""
        return nn.functional.pad(pairs, (1, 0, 1, 0), value=value)


class GraphBias(Score):
    """A learned number for each head and distance, and for each head and kind of edge, added to the scores. They are 0
    at first.

    Args:
        edges, far: as those of `Nodes`. Distances have far + 3 numbers: two are for nodes that no path connects, and
            for the virtual node.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, edges: int = 1, far: int = 5):
        super().__init__()
        self.distance = nn.Parameter(torch.zeros(far + 3, heads))
        self.edge = nn.Parameter(torch.zeros(edges + 1, heads))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.distance)
        nn.init.zeros_(self.edge)

    def bias(self, call: Call) -> Bias:
        pairs = call.flow.get(Pairs, "GraphBias")

        def of_view(view: View) -> Tensor:
            part = slice(view.query, view.query + view.count), slice(view.key, view.key + view.keys)
            far, edges = (t[:, part[0], part[1]] for t in (pairs.far, pairs.edges))  # (B, T, S)
            return (self.distance[far] + self.edge[edges]).permute(0, 3, 1, 2)

        return of_view
