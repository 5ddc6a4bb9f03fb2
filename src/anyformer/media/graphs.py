"""Graphs from rows: edge lists, molecules as SMILES, graphs of networkx. N nodes.

```
{"nodes": ["C", "C", "O"], "edges": [[0, 1, "single"], [1, 2, "single"]], "label": 1.5}      by number, from 0
{"nodes": 3, "edges": [[0, 1], [1, 2]]}                                                       all of one kind
{"smiles": "CCO", "label": 1.5}                                                               needs RDKit
```
An edge has no direction. Nodes without edges, and parts without a path between them, are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PLAIN = "-"  # the kind of nodes and edges that have none
MOST = 1024  # nodes: paths are followed that far


@dataclass(frozen=True)
class Graph:
    """A graph.

    Args:
        nodes: the kind of each node. edges: (node, node, kind), each once.
    """

    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int, str], ...]


def graph_of(row: Mapping[str, Any]) -> Graph:
    """The graph of a row.

    Raises:
        ValueError: for a row that is none: an edge to a node that there is not, an edge from a node to itself, one
            that comes twice, no nodes.
        ImportError: for SMILES without RDKit.
    """
    if "smiles" in row:
        return of_smiles(str(row["smiles"]))
    nodes, edges = row["nodes"], row.get("edges", [])
    nodes = [PLAIN] * nodes if isinstance(nodes, int) and not isinstance(nodes, bool) else nodes
    if not isinstance(nodes, list | tuple) or not nodes:
        raise ValueError(f"nodes are {nodes!r:.60}; expected a list of kinds, or how many there are, at least one")
    if not isinstance(edges, list | tuple):
        raise ValueError(f"edges are {edges!r:.60}; expected a list of [node, node] or [node, node, kind]")
    return checked([str(kind) for kind in nodes], [_edge(edge) for edge in edges])


def _edge(edge: Any) -> tuple[int, int, str]:
    whole = isinstance(edge, list | tuple) and len(edge) in (2, 3) and all(type(end) is int for end in edge[:2])
    if not whole:
        raise ValueError(f"an edge is {edge!r:.60}; expected [node, node] or [node, node, kind], with numbers of nodes")
    return edge[0], edge[1], str(edge[2]) if len(edge) == 3 else PLAIN


def checked(nodes: Sequence[str], edges: Sequence[tuple[int, int, str]]) -> Graph:
    """A graph, if it is one."""
    if len(nodes) > MOST:
        raise ValueError(f"the graph has {len(nodes)} nodes; at most {MOST} are read")
    seen = set()
    for one, other, _ in edges:
        for end in (one, other):
            if not 0 <= end < len(nodes):
                raise ValueError(f"the edge {one} - {other} leads to nowhere: nodes go from 0 to {len(nodes) - 1}")
        if one == other:
            raise ValueError(f"the edge {one} - {other} leads from a node to itself")
        if frozenset((one, other)) in seen:
            raise ValueError(f"the edge {one} - {other} comes twice")
        seen.add(frozenset((one, other)))
    return Graph(tuple(nodes), tuple(edges))


def of_smiles(text: str) -> Graph:
    """A molecule without its hydrogens: atoms by symbol, charge and number of hydrogens, bonds by kind.

    Raises:
        ValueError: for text that is no molecule. ImportError: without RDKit.
    """
    try:
        from rdkit import Chem, rdBase
    except ImportError:
        raise ImportError(
            "molecules as SMILES need RDKit: pip install 'anyformer[molecules]'; or give nodes and edges"
        ) from None
    rdBase.DisableLog("rdApp.*")
    molecule = Chem.MolFromSmiles(text)
    if molecule is None or not molecule.GetNumAtoms():
        raise ValueError(f"{text!r:.60} is no molecule in SMILES")
    nodes = []
    for atom in molecule.GetAtoms():
        charge, hydrogens = atom.GetFormalCharge(), atom.GetTotalNumHs()
        aromatic = atom.GetSymbol().lower() if atom.GetIsAromatic() else atom.GetSymbol()
        nodes.append(aromatic + (f"H{hydrogens}" if hydrogens else "") + (f"{charge:+d}" if charge else ""))
    bonds = [
        (b.GetBeginAtomIdx(), b.GetEndAtomIdx(), str(b.GetBondType()).lower() + (" ring" if b.IsInRing() else ""))
        for b in molecule.GetBonds()
    ]
    return checked(nodes, bonds)


def of_networkx(graph: Any, node: str = "kind", edge: str = "kind") -> Graph:
    """A graph of networkx; the kinds are the attributes of these names, where a node or an edge has them."""
    numbers = {name: i for i, name in enumerate(graph.nodes)}
    nodes = [str(data.get(node, PLAIN)) for _, data in graph.nodes(data=True)]
    if not nodes:
        raise ValueError("the graph has no nodes")
    edges = [(numbers[a], numbers[b], str(data.get(edge, PLAIN))) for a, b, data in graph.edges(data=True)]
    return checked(nodes, edges)
