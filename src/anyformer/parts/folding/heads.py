"""Heads of folding models, and what their scores mean.

B batch, L residues, D width of residues, C width of pairs, N bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from anyformer.core.flow import Companion, Flow
from anyformer.core.slots import Head
from anyformer.parts.folding.attention import closed, lecun
from anyformer.parts.folding.front import CELLS, Grown
from anyformer.parts.folding.structure import Folded
from anyformer.parts.norms import LayerNorm

FARTHEST_ERROR = 31.0  # angstrom: the last edge of the bins of errors


@dataclass(frozen=True)
class Pairs(Companion):
    """The pairs behind the last block, (B, L, L, C)."""

    left_by: ClassVar[str] = "a Folder"
    per_position: ClassVar[bool] = True
    stream: Tensor


class PairBins(Head):
    """A score for each bin of each pair of residues: of a distance (`symmetric`), or of an error.

    Args:
        width: C.
        bins: N.
        symmetric: the mean of (i, j) and (j, i).

    Shape: pairs in the flow -> (B, L, L, N).
    """

    def __init__(self, dim: int, width: int, bins: int = 64, symmetric: bool = False):
        super().__init__()
        self.proj, self.symmetric = nn.Linear(width, bins), symmetric

    def reset_parameters(self) -> None:
        closed(self.proj)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        y = self.proj(flow.get(Pairs, "PairBins").stream)
        return (y + y.transpose(1, 2)) / 2 if self.symmetric else y


class ResidueBins(Head):
    """A score for each bin of the lDDT of each residue, or of each type of atom (algorithm 29).

    Args:
        width: of residues in the structure module.
        hidden: of two layers.
        types: 37 types of atoms, as ESMFold, or 1.
        bins: N.
        relu: behind each hidden layer; ESMFold has none.

    Shape: states in the flow -> (B, L, types, N).
    """

    def __init__(self, dim: int, width: int, hidden: int = 128, types: int = 37, bins: int = 50, relu: bool = False):
        super().__init__()
        if min(hidden, types) < 1:
            raise ValueError(f"ResidueBins: hidden and types must be at least 1, got {hidden} and {types}")
        self.types, self.relu = types, relu
        self.norm, self.first, self.second = LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, hidden)
        self.proj = nn.Linear(hidden, types * bins)

    def reset_parameters(self) -> None:
        lecun(self.first, 2.0)
        lecun(self.second, 2.0)
        closed(self.proj)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        y = self.norm(flow.get(Folded, "ResidueBins").states)
        for layer in (self.first, self.second):
            y = torch.relu(layer(y)) if self.relu else layer(y)
        return self.proj(y).unflatten(-1, (self.types, -1))


def lddt_of(scores: Tensor) -> Tensor:
    """The expected lDDT, 0 to 1, of scores of bins: (..., N) -> (...)."""
    count = scores.shape[-1]
    middle = (torch.arange(count, device=scores.device) + 0.5) / count
    return scores.float().softmax(-1) @ middle


def error_bins(count: int, device: torch.device) -> Tensor:
    """The middle of each bin of errors, (N,), in angstrom; the last bin is open."""
    edges = torch.linspace(0, FARTHEST_ERROR, count - 1, device=device)
    step = edges[1] - edges[0]
    return torch.cat((edges + step / 2, edges[-1:] + 1.5 * step))


def aligned_errors(scores: Tensor) -> Tensor:
    """PAE, the expected error of residue j in the frame of i, in angstrom: (..., L, L, N) -> (..., L, L)."""
    return scores.float().softmax(-1) @ error_bins(scores.shape[-1], scores.device)


def ptm_of(scores: Tensor, keep: Tensor | None = None) -> Tensor:
    """pTM, the expected TM score of each protein over its own residues (Jumper et al., 2021; supplement 1.9.7).

    Args:
        scores: (B, L, L, N). keep: (B, L) real residues; None: all.

    Returns:
        (B,); 0 for a protein without residues.
    """
    B, L = scores.shape[:2]
    real = torch.ones(B, L, dtype=torch.bool, device=scores.device) if keep is None else keep
    count = real.sum(1)  # (B,)
    scale = 1.24 * (count.clamp(min=19) - 15).float() ** (1 / 3) - 1.8
    middle = error_bins(scores.shape[-1], scores.device)
    fits = 1 / (1 + (middle[None] / scale[:, None]).square())  # (B, N)
    each = torch.einsum("bijn,bn->bij", scores.float().softmax(-1), fits).masked_fill(~real[:, None], 0.0)
    mean = each.sum(-1) / count.clamp(min=1)[:, None]  # (B, L)
    return mean.masked_fill(~real, 0.0).amax(1)


class MaskedCells(Head):
    """A score for each kind of cell at every place of an alignment (supplement 1.9.9). Shape: all rows in the flow ->
    (B, L, S, 23), the protein itself first."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, CELLS)

    def reset_parameters(self) -> None:
        closed(self.proj)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.proj(flow.get(Grown, "MaskedCells").stream.transpose(1, 2))
