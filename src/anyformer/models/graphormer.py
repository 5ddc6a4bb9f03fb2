"""Graphormer (Ying et al., 2021; arXiv:2106.05234). An encoder of graphs: molecules, networks.

Differs from BERT by: nodes without order in place of tokens; a number for the distance and for the edge between two
nodes, added to their scores, in place of positions; a virtual node, connected to all, whose vector stands for the
graph; norms before the branches.

```
virtual ─────────────────────┐
node[kind] + degree[number] ─┴──┬─ norm ─ attention + bias[distance] + bias[edge] ─(+)─┬─ norm ─ MLP ─(+)── … ── norm
                                └──────────────────────────────────────────────────┘  └──────────────┘          │
                                                                          values or classes ── W ── virtual node ─┘
```
Of the paper's parts this page has all but the mean of the edges along a path: an edge counts between its own nodes.
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.weights import Hub
from anyformer.parts import MLP, Attention, Block, Classifier, First, LayerNorm
from anyformer.parts.graphs import GraphBias, Nodes
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class Graphormer:
    dim: int = 768
    depth: int = 12
    heads: int = 32
    hidden: int = 768
    kinds: int = 128  # of nodes
    edges: int = 8  # kinds
    far: int = 5  # distances from this one on are one
    degrees: int = 8  # numbers of neighbours from this one on are one
    outputs: int = 1  # values of a graph, or its classes
    act: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1


def graphormer(c: Graphormer) -> Recipe:
    norm = LayerNorm.of()
    bias = GraphBias.of(edges=c.edges, far=c.far)
    mixer = Attention.of(heads=c.heads, scores=[bias], dropout=c.attention_dropout)
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden, act=c.act), norm=norm, dropout=c.dropout)
    embed = Nodes.of(kinds=c.kinds, edges=c.edges, far=c.far, degrees=c.degrees, dropout=c.dropout)
    heads = {"graph": Classifier.of(classes=c.outputs)}
    return Encoder.of(c.dim, embed, [block] * c.depth, norm=norm, pool=First.of(), heads=heads)


SIZES = {
    "tiny": Graphormer(
        dim=32,
        depth=2,
        heads=4,
        hidden=48,
        kinds=11,
        edges=3,
        far=3,
        degrees=3,
        outputs=3,
        dropout=0.0,
        attention_dropout=0.0,
    ),
    "mini": Graphormer(dim=64, depth=4, heads=4, hidden=128, dropout=0.0, attention_dropout=0.0),
    "slim": Graphormer(dim=80, heads=8, hidden=80),
    "base": Graphormer(),
}
PARAMETERS = {"tiny": 15_763, "mini": 143_185, "slim": 483_313, "base": 42_674_305}
CASES = {
    "value": {"outputs": 1, "edges": 1, "far": 1, "degrees": 0, "kinds": 40},
    "odd": {"dim": 30, "heads": 3, "hidden": 50, "depth": 1, "far": 6, "act": "relu", "kinds": 5},
}
ORACLE = (
    "nobody publishes it in a form that installs here; its numbers are held by properties: another order of the nodes "
    "changes nothing but their order, a graph is the same alone and in a batch, distances are those of a search "
    "through the graph, and without edges it is a set (tests/parts/test_graphs.py)"
)
HUBS: tuple[Hub, ...] = ()
