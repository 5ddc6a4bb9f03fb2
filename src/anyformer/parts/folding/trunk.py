"""What surrounds the blocks of a folding model: places of pairs, and what a pass leaves for the next one.

B batch, L residues, D width of residues, C width of pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anyformer.core.flow import Flow
from anyformer.core.part import Part
from anyformer.parts.embeddings import Table
from anyformer.parts.folding.attention import PairPart, real_pairs
from anyformer.parts.norms import LayerNorm

BINS, NEAREST, FARTHEST = 15, 3.375, 21.375  # of distances between CB, in angstrom


class RelativePositions(Part):
    """A vector for the distance of two residues along the chain, cut at `far` in both directions (algorithm 4). Padding
    has one of its own.

    Args:
        far: residues; a distance beyond counts as this one.

    Shape: positions in the flow -> (B, L, L, C).
    """

    def __init__(self, dim: int, far: int = 32):
        super().__init__()
        if far < 1:
            raise ValueError(f"RelativePositions: far must be at least 1, got {far}")
        self.far, self.table = far, Table(2 * far + 2, dim)

    def forward(self, flow: Flow, count: int) -> Tensor:
        places = flow.positions if flow.positions.ndim == 2 else flow.positions[None]  # (1 or B, L)
        number = (places[:, None] - places[:, :, None]).clamp(-self.far, self.far) + self.far + 1
        real = real_pairs(flow, count)
        return self.table(number if real is None else number.masked_fill(~real, 0))


class Recycling(PairPart):
    """Results of the last pass that the next one reads: normed residues and pairs, and the distances of its structure
    (algorithm 32). They carry no gradient. The first pass reads zeros.

    Shape: residues (B, L, D), pairs (B, L, L, C), atoms (B, L, 14, 3) -> (B, L, D), (B, L, L, C).
    """

    def __init__(self, dim: int, pair_dim: int):
        super().__init__()
        self.norm, self.norm_pair = LayerNorm(dim), LayerNorm(pair_dim)
        self.distances = Table(BINS, pair_dim)

    def forward(self, x: Tensor, z: Tensor, atoms: Tensor | None) -> tuple[Tensor, Tensor]:
        number = torch.zeros(z.shape[:3], dtype=torch.long, device=z.device) if atoms is None else bins(atoms)
        return self.norm(x.detach()), self.norm_pair(z.detach()) + self.distances(number)


def virtual_beta(atoms: Tensor) -> Tensor:
    """CB of every residue, glycine included, from N, CA and C: (..., 14 or 3, 3) -> (..., 3)."""
    n, ca, c = atoms[..., :3, :].unbind(-2)
    b, c = ca - n, c - ca
    return -0.58273431 * torch.linalg.cross(b, c) + 0.56802827 * b - 0.54067466 * c + ca


def bins(atoms: Tensor, least: float = NEAREST, most: float = FARTHEST, count: int = BINS) -> Tensor:
    """The number of the bin of each distance between CB, (B, L, L)."""
    edges = torch.linspace(least, most, count - 1, device=atoms.device, dtype=atoms.dtype).square()
    place = virtual_beta(atoms)
    apart = (place[..., None, :, :] - place[..., :, None, :]).square().sum(-1)
    return (apart[..., None] > edges).sum(-1)
