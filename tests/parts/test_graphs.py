"""Graphormer by its properties: the order of nodes and edges, a graph alone and in a batch, distances, odd graphs."""

from __future__ import annotations

import pytest
import torch

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.hub.processors import GraphProcessor
from anyformer.media.graphs import Graph, graph_of, of_networkx, of_smiles
from anyformer.parts.graphs import Nodes, Pairs

KINDS, EDGES = tuple("abcdefghijk"), ("one", "two", "three")
PROCESSOR = GraphProcessor(KINDS, EDGES)


@pytest.fixture(scope="module")
def model():
    made = af.build("graphormer", "tiny", seed=0).eval()
    with torch.no_grad():
        noise = torch.Generator().manual_seed(0)
        for p in made.parameters():
            p.normal_(0, 0.3, generator=noise)
    return made


def drawn(seed: int, count: int = 7, share: float = 0.3) -> Graph:
    import networkx as nx

    graph = nx.gnp_random_graph(count, share, seed=seed)
    noise = torch.Generator().manual_seed(seed)
    pick = lambda names: names[int(torch.randint(len(names), (1,), generator=noise))]  # noqa: E731
    nx.set_node_attributes(graph, {i: pick(KINDS) for i in graph}, "kind")
    nx.set_edge_attributes(graph, {e: pick(EDGES) for e in graph.edges}, "kind")
    return of_networkx(graph)


def said(model, graphs):
    with torch.no_grad():
        return model(**PROCESSOR(graphs))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_another_order_of_nodes_and_edges_changes_their_order_alone(model, seed):
    graph = drawn(seed)
    order = torch.randperm(len(graph.nodes), generator=torch.Generator().manual_seed(9)).tolist()
    place = {old: new for new, old in enumerate(order)}
    edges = [(place[b], place[a], kind) for a, b, kind in reversed(graph.edges)]
    other = Graph(tuple(graph.nodes[i] for i in order), tuple(edges))
    one, two = said(model, [graph]), said(model, [other])
    torch.testing.assert_close(two.logits, one.logits)
    torch.testing.assert_close(two.hidden[:, 1:], one.hidden[:, 1:][:, order])


def test_a_graph_is_the_same_alone_and_beside_larger_ones(model):
    graphs = [drawn(0), Graph(("a",), ()), drawn(1, 12), Graph(("a", "b"), ()), drawn(2, 3)]
    together = said(model, graphs).logits
    for i, graph in enumerate(graphs):
        torch.testing.assert_close(said(model, [graph]).logits[0], together[i])


def test_edges_and_their_kinds_count(model):
    base = Graph(("a", "b", "c"), ((0, 1, "one"),))
    for other in (
        Graph(base.nodes, ()),
        Graph(base.nodes, ((0, 1, "two"),)),
        Graph(base.nodes, ((0, 2, "one"),)),
        Graph(("a", "b", "d"), base.edges),
    ):
        assert not torch.allclose(said(model, [base]).logits, said(model, [other]).logits)


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_distances_are_those_of_a_search(seed):
    import networkx as nx

    front, graph = Nodes.of(kinds=11, edges=3, far=3).build(8), drawn(seed, 10, 0.15)
    inputs = PROCESSOR([graph])
    flow = Flow(torch.arange(11))
    front({n: inputs[n] for n in ("nodes", "edges")}, flow)
    far = flow.get(Pairs, "a test").far[0]
    known = nx.Graph()
    known.add_nodes_from(range(10))
    known.add_edges_from(edge[:2] for edge in graph.edges)
    lengths = dict(nx.all_pairs_shortest_path_length(known))
    for i in range(10):
        for j in range(10):
            assert int(far[1 + i, 1 + j]) == min(lengths[i].get(j, 4), 3 if j in lengths[i] else 4)
    assert bool((far[0] == 5).all()) and bool((far[:, 0] == 5).all())  # the virtual node


def test_an_edge_counts_in_both_directions_and_a_loop_not_at_all(model):
    nodes = torch.tensor([[0, 1, 2]])
    edges = torch.zeros(1, 3, 3, dtype=torch.long)
    edges[0, 0, 1] = edges[0, 1, 0] = 1
    looped = edges.clone()
    looped[0, 2, 2] = 2
    with torch.no_grad():
        assert torch.equal(model(nodes=nodes, edges=edges).logits, model(nodes=nodes, edges=looped).logits)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"nodes": torch.tensor([[0, 11]]), "edges": torch.zeros(1, 2, 2, dtype=torch.long)}, "kind 11, and kinds go"),
        ({"nodes": torch.tensor([[0, 1]]), "edges": torch.full((1, 2, 2), 4)}, "edges holds 4"),
        ({"nodes": torch.tensor([[0, 1]]), "edges": torch.zeros(1, 2, 3, dtype=torch.long)}, "edges must be .1, 2, 2"),
        ({"nodes": torch.tensor([[0, 1]])}, "reads edges"),
    ],
)  # fmt: skip
def test_inputs_of_another_form_are_refused_by_name(model, inputs, said):
    with pytest.raises(ValueError, match=said):
        model(**inputs)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"nodes": ["a"], "edges": [[0, 1]]}, "the edge 0 - 1 leads to nowhere: nodes go from 0 to 0"),
        ({"nodes": ["a", "b"], "edges": [[-1, 1]]}, "leads to nowhere"),
        ({"nodes": ["a", "b"], "edges": [[1, 1]]}, "from a node to itself"),
        ({"nodes": ["a", "b"], "edges": [[0, 1], [1, 0]]}, "comes twice"),
        ({"nodes": ["a", "b"], "edges": [[0, 1.0]]}, "expected .node, node. or"),
        ({"nodes": [], "edges": []}, "at least one"),
        ({"nodes": True}, "at least one"),
        ({"nodes": 2000}, "at most 1024"),
        ({"nodes": 2, "edges": "none"}, "edges are 'none'"),
    ],
)
def test_rows_that_are_no_graph_are_refused(row, said):
    with pytest.raises(ValueError, match=said):
        graph_of(row)


def test_a_kind_that_training_had_not_is_named():
    import networkx as nx

    with pytest.raises(ValueError, match="no node of the kind 'z'"):
        PROCESSOR([Graph(("z",), ())])
    with pytest.raises(ValueError, match="no edge of the kind 'four'"):
        PROCESSOR([Graph(("a", "b"), ((0, 1, "four"),))])
    with pytest.raises(ValueError, match="no nodes"):
        of_networkx(nx.Graph())


def test_molecules_need_rdkit_and_are_read_with_it():
    pytest.importorskip("rdkit", reason="RDKit is not installed")
    graph = of_smiles("C[N+](=O)[O-]")
    assert sorted(graph.nodes) == ["CH3", "N+1", "O", "O-1"] and len(graph.edges) == 3
    with pytest.raises(ValueError, match="is no molecule"):
        of_smiles("C1CC")
