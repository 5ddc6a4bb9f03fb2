"""AlphaFold 2 (Jumper et al., 2021: "Highly accurate protein structure prediction with AlphaFold").

The atoms of a protein from its residues and an alignment with related proteins.

Differs from ESMFold by: rows of an alignment in place of a language model; attention along rows and along columns;
pairs read the mean of outer products of columns.

```
alignment ── cells + target ── m ── (+) rows ── (+) columns ── (+) MLP ──┬── … x N ── first row ── structure ── atoms
                                       ^ bias                  outer product mean                       │
residues, places ───────────── z ──────┴────────────────────────────────(+)── triangles ── …         distances
                               └──────────────────────── the pass before ───────────────────────────────┘
```
Of the paper's parts this page lacks templates, the stack of extra rows, and the features of an alignment beside its
cells (profiles of clusters, deletions): it reads the rows that it is given.
"""

from dataclasses import dataclass, field

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.weights import Hub
from anyformer.models._folding import Structure, structure, tops, updates
from anyformer.parts.folding.blocks import ColumnAttention, EvoformerBlock, OuterProductMean, RowAttention
from anyformer.parts.folding.front import Alignment, PairSum
from anyformer.parts.folding.heads import MaskedCells
from anyformer.skeletons.folder import Folder


@dataclass(frozen=True)
class AlphaFold2:
    dim: int = 256
    pair_dim: int = 128
    depth: int = 48
    heads: int = 8
    head_dim: int = 32
    pair_head_dim: int = 32
    outer: int = 32  # width of the outer product
    far: int = 32  # residues along the chain; farther is one distance
    passes: int = 4
    lines: int | None = 128  # rows of pairs at a time; the numbers are the same
    confidence: int = 128  # hidden width
    dropout: float = 0.15  # of whole columns of the alignment
    pair_dropout: float = 0.25  # of whole rows and columns of pairs
    structure: Structure = field(default_factory=lambda: Structure(pair_width=None))


def alphafold2(c: AlphaFold2) -> Recipe:
    block = EvoformerBlock.of(
        rows=RowAttention.of(heads=c.heads, head_dim=c.head_dim),
        columns=ColumnAttention.of(heads=c.heads, head_dim=c.head_dim),
        outer=OuterProductMean.of(hidden=c.outer),
        pairs=updates(c.pair_dim, c.pair_head_dim, c.pair_dropout),
        dropout=c.dropout,
    )
    scores = tops(c.pair_dim, c.structure.width, c.confidence, relu=True, each=False)
    return Folder.of(
        c.dim,
        c.pair_dim,
        Alignment.of(),
        [block] * c.depth,
        structure(c.structure),
        {"cells": MaskedCells.of(), **scores},
        far=c.far,
        first=PairSum.of(),
        passes=c.passes,
        lines=c.lines,
    )


SIZES = {
    "tiny": AlphaFold2(
        dim=24,
        pair_dim=12,
        depth=2,
        heads=3,
        head_dim=5,
        pair_head_dim=4,
        outer=3,
        far=5,
        passes=2,
        lines=4,
        confidence=12,
        dropout=0.0,
        pair_dropout=0.0,
        structure=Structure(
            width=16,
            pair_width=None,
            layers=2,
            scale=2,
            heads=3,
            head_dim=5,
            queries=2,
            points=3,
            hidden=9,
            eps=0.1,
            dropout=0.0,
        ),
    ),
    "mini": AlphaFold2(
        dim=96,
        pair_dim=32,
        depth=4,
        heads=4,
        head_dim=24,
        pair_head_dim=16,
        outer=12,
        passes=2,
        confidence=64,
        dropout=0.0,
        pair_dropout=0.0,
        structure=Structure(width=128, pair_width=None, layers=4, heads=4, dropout=0.0),
    ),
    "base": AlphaFold2(),
}
PARAMETERS = {"tiny": 38_519, "mini": 1_129_093, "base": 90_078_709}
CASES = {
    "deep": {
        "depth": 3,
        "passes": 3,
        "lines": None,
        "structure.layers": 3,
        "structure.transitions": 2,
        "structure.depth": 1,
        "structure.scale": 3,
        "structure.pair_width": 10,
    },
    "odd": {
        "dim": 20,
        "heads": 2,
        "head_dim": 7,
        "pair_dim": 14,
        "pair_head_dim": 7,
        "outer": 5,
        "far": 3,
        "confidence": 9,
        "structure.width": 21,
        "structure.heads": 2,
        "structure.head_dim": 7,
        "structure.queries": 3,
        "structure.points": 2,
        "structure.hidden": 8,
        "structure.eps": 0.05,
    },
}
ORACLE = (
    "transformers lacks it; its pair updates, structure module and recycling are those of the page esmfold, compared "
    "there with transformers, and its blocks are compared with openfold3's (tests/parts/test_openfold.py); the rest is "
    "held by properties: another order of the rows changes nothing, no motion of a structure changes the loss"
)
HUBS: tuple[Hub, ...] = ()
