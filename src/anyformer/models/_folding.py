"""What ESMFold and AlphaFold 2 share: the structure module, the updates of pairs, the heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head
from anyformer.parts.folding.heads import PairBins, ResidueBins
from anyformer.parts.folding.structure import StructureModule
from anyformer.parts.folding.triangles import PairUpdates


@dataclass(frozen=True)
class Structure:
    width: int = 384
    pair_width: int | None = 128  # pairs are projected to it; None: they stay as they are
    layers: int = 8  # of the same weights
    transitions: int = 1
    scale: int = 10  # angstrom
    heads: int = 12
    head_dim: int = 16
    queries: int = 4  # points
    points: int = 8
    hidden: int = 128  # of the torsion angles
    depth: int = 2
    eps: float = 1e-8
    dropout: float = 0.1


def structure(c: Structure) -> Recipe[StructureModule]:
    """The structure module."""
    return StructureModule.of(**{f.name: getattr(c, f.name) for f in fields(c)})


def updates(c: int, head_dim: int, dropout: float, last_dropout: float = 0.0) -> Recipe[PairUpdates]:
    """The updates of pairs of width c; whole rows and columns are dropped at twice the rate of single numbers."""
    if c % head_dim:
        raise ValueError(f"pair_dim={c} is no whole number of heads of {head_dim}; change pair_dim or pair_head_dim")
    heads = c // head_dim
    return PairUpdates.of(heads=heads, head_dim=head_dim, dropout=dropout, last_dropout=last_dropout)


def tops(pair_dim: int, width: int, hidden: int, relu: bool, each: bool) -> Mapping[str, Recipe[Head]]:
    """The heads of distances, errors of pairs, and lDDT of residues or (`each`) of each type of their atoms."""
    lddt = ResidueBins.of(width=width, hidden=hidden, types=37 if each else 1, relu=relu)
    return {
        "distogram": PairBins.of(width=pair_dim, symmetric=True),
        "ptm": PairBins.of(width=pair_dim),
        "lddt": lddt,
    }
