"""ESMFold (Lin et al., 2022: "Evolutionary-scale prediction of atomic-level protein structure with a language model").

The atoms of a protein from its residues alone.

Differs from ESM-2 by: ESM-2 is its front-end, of which it reads all layers; blocks of two streams, residues and pairs,
whose attention is biased by pairs, and pairs by triangles; frames and atoms in space; passes that read the last one.
From AlphaFold 2 (Jumper et al., 2021) it differs by a language model in place of an alignment: blocks have one row.

```
residues ── ESM-2 ── mix of layers ── MLP ──(+)── x ── (+) attention ── (+) MLP ──┬── … x N ──┬── structure ── atoms
                                             │            ^ bias                  │           │       │
places ─────────────────────────────────────(+)── z ──────┴──────────────────────(+) triangles┘    distances
                                             └────────────────── the pass before ─────────────────────┘
```
"""

from dataclasses import dataclass, field

from anyformer.core.recipe import Recipe
from anyformer.hub.tables import esmfold as tables
from anyformer.hub.tables.weights import Hub
from anyformer.models._folding import Structure, structure, tops, updates
from anyformer.models.esm import Esm, esm
from anyformer.parts import Classifier
from anyformer.parts.folding.blocks import FoldingBlock, RowAttention
from anyformer.parts.folding.front import ALPHABET, CELLS, Stem
from anyformer.skeletons.folder import Folder


@dataclass(frozen=True)
class Language:
    dim: int = 2560
    depth: int = 36
    heads: int = 40
    hidden: int = 10240
    mask: int = 32  # id of the mask token
    dropped: bool = True  # masked tokens enter as 0
    entry_norm: bool = False  # a norm on the embeddings
    theta: float = 10000.0
    eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class Trunk:
    dim: int = 1024
    pair_dim: int = 128
    depth: int = 48
    head_dim: int = 32
    pair_head_dim: int = 32
    far: int = 32  # residues along the chain; farther is one distance
    passes: int = 4
    lines: int | None = 128  # rows of pairs at a time; the numbers are the same
    dropout: float = 0.0
    structure: Structure = field(default_factory=Structure)


@dataclass(frozen=True)
class Fold:
    table: bool = True  # residues have vectors beside those of the language model
    hidden: int = 128  # of the confidence
    trunk: Trunk = field(default_factory=Trunk)


@dataclass(frozen=True)
class Esmfold:
    stem: Language = field(default_factory=Language)
    fold: Fold = field(default_factory=Fold)


def esmfold(c: Esmfold) -> Recipe:
    t = c.fold.trunk
    if t.dim % t.head_dim:
        raise ValueError(f"ESMFold: dim={t.dim} is no whole number of heads of {t.head_dim}; change dim or head_dim")
    rows = RowAttention.of(heads=t.dim // t.head_dim, head_dim=t.head_dim)
    pairs = updates(t.pair_dim, t.pair_head_dim, 2 * t.dropout, t.dropout)
    block = FoldingBlock.of(rows=rows, pairs=pairs, dropout=t.dropout)
    stem = Stem.of(model=language(c.stem), table=c.fold.table)
    scores = tops(t.pair_dim, t.structure.width, c.fold.hidden, relu=False, each=True)
    heads = {"residues": Classifier.of(classes=CELLS, each=True), **scores}
    atoms = structure(t.structure)
    return Folder.of(
        t.dim, t.pair_dim, stem, [block] * t.depth, atoms, heads, far=t.far, passes=t.passes, lines=t.lines
    )


def language(c: Language) -> Recipe:
    plain = {name: getattr(c, name) for name in Language.__dataclass_fields__}
    return esm(Esm(**plain, vocab=len(ALPHABET), task="stem")).but(context=None)


_tiny = Esmfold(
    stem=Language(dim=32, depth=2, heads=4, hidden=48),
    fold=Fold(
        hidden=12,
        trunk=Trunk(
            dim=24,
            pair_dim=12,
            depth=2,
            head_dim=8,
            pair_head_dim=4,
            far=5,
            passes=2,
            lines=16,
            structure=Structure(
                width=16,
                pair_width=10,
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
    ),
)
SIZES = {
    "tiny": _tiny,
    "mini": Esmfold(
        stem=Language(dim=128, depth=4, heads=8, hidden=512),
        fold=Fold(
            hidden=64,
            trunk=Trunk(
                dim=128,
                pair_dim=32,
                depth=4,
                pair_head_dim=16,
                passes=2,
                structure=Structure(width=128, pair_width=32, layers=4, heads=4, dropout=0.0),
            ),
        ),
    ),
    "v1": Esmfold(),
}
PARAMETERS = {"tiny": 77_298, "mini": 2_261_682, "v1": 3_525_037_474}
CASES = {
    "plain": {
        "stem.dropped": False,
        "stem.entry_norm": True,
        "fold.table": False,
        "fold.trunk.depth": 1,
        "fold.trunk.structure.layers": 1,
    },
    "deep": {
        "fold.trunk.depth": 1,
        "fold.trunk.passes": 3,
        "fold.trunk.lines": None,
        "fold.trunk.structure.layers": 3,
        "fold.trunk.structure.transitions": 2,
        "fold.trunk.structure.depth": 1,
        "fold.trunk.structure.scale": 3,
        "fold.trunk.structure.eps": 0.05,
    },
    "odd": {
        "stem.dim": 36,
        "stem.heads": 3,
        "stem.theta": 1e3,
        "stem.eps": 1e-3,
        "stem.mask": 3,
        "fold.trunk.dim": 20,
        "fold.trunk.head_dim": 10,
        "fold.trunk.pair_dim": 14,
        "fold.trunk.pair_head_dim": 7,
        "fold.trunk.depth": 1,
        "fold.trunk.far": 3,
        "fold.trunk.lines": 4,
        "fold.trunk.structure.layers": 1,
        "fold.trunk.structure.width": 21,
        "fold.trunk.structure.heads": 2,
        "fold.trunk.structure.head_dim": 7,
        "fold.trunk.structure.queries": 3,
        "fold.trunk.structure.points": 2,
    },
}


HUBS = (
    Hub(
        "esm",
        tails={"gamma": "weight", "beta": "bias"},  # as transformers 5 writes them; published files have weight, bias
        weights=tables.weights,
        architectures={"EsmForProteinFolding": {}},
        ignore=tables.IGNORED,
        outputs=tables.OUTPUTS,
        config=tables.config(Language, Fold, Trunk, Structure),
    ),
)
