"""The loss of folding, and how near two structures are.

B batch, L residues, A = 14 L atoms, N layers. Everything is float32, whatever the model computes in; lengths are in
angstrom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.parts.folding import residues
from anyformer.parts.folding.frames import Frames, from_quaternion, superposed
from anyformer.parts.folding.heads import FARTHEST_ERROR
from anyformer.parts.folding.torsions import backbone, renamed, torsions
from anyformer.parts.folding.trunk import bins
from anyformer.skeletons.base import Output
from anyformer.train.objectives import IGNORE

CA = 1
NEAR, FAR = 2.3125, 21.6875  # of the bins of distances that are learned
WIDTH = 2 + 3 * residues.SLOTS  # numbers of a residue in the labels; those behind are cells of an alignment
SEEN = 15.0  # pairs nearer than this count in lDDT
STEPS = (0.5, 1.0, 2.0, 4.0)  # of an error in lDDT
Known = tuple[Tensor, Tensor, Tensor]


def unpacked(labels: Tensor) -> Known:
    """Residues (B, L), atoms (B, L, 14, 3) with 0 where unknown, and which are known (B, L, 14), of labels (B, L, 44):
    the number of the residue, -100 at padding, 14 places, NaN where an atom is unknown, and 1 if FAPE is clamped."""
    chain = labels[..., 0].nan_to_num(residues.UNKNOWN)
    chain = torch.where(chain == IGNORE, residues.UNKNOWN, chain).long()
    places = labels[..., 1 : WIDTH - 1].float().unflatten(-1, (residues.SLOTS, 3))
    there = places.isfinite().all(-1) & (labels[..., 0] != IGNORE)[..., None]
    there = there & residues.EXISTS.to(labels.device)[chain]
    return chain, places.masked_fill(~there[..., None], 0.0), there


def fape(
    frames: Frames, points: Tensor, true_frames: Frames, true_points: Tensor, keep: Tensor, there: Tensor,
    clamp: Tensor | float = 10.0,
) -> Tensor:  # fmt: skip
    """Frame aligned point error (Jumper et al., 2021; algorithm 28): mean over frames and points of
    min(|T_i^-1 x_j - T*_i^-1 x*_j|, clamp) / 10, a number for each protein.

    A common motion of the whole changes nothing; a mirror image is not 0. Without a known frame or point it is 0.

    Args:
        frames: (B, L). points: (B, A, 3). keep: (B, L) and there: (B, A), True = known.
        clamp: in angstrom; (B,) for each protein its own, infinite for none.
    """
    mine = frames[:, :, None].inverse_apply(points[:, None].float())  # (B, L, A, 3)
    wanted = true_frames[:, :, None].inverse_apply(true_points[:, None].float())
    apart = torch.sqrt((mine - wanted).square().sum(-1) + 1e-4)
    most = torch.as_tensor(clamp, device=points.device).reshape(-1, 1, 1)
    pairs = keep[:, :, None] & there[:, None]
    total = torch.minimum(apart, most).masked_fill(~pairs, 0.0).sum((1, 2))
    return total / pairs.sum((1, 2)).clamp(min=1) / 10.0


@dataclass(frozen=True)
class Folding:
    """The loss of AlphaFold 2 of each protein, its mean over proteins (Jumper et al., 2021; supplement 1.9).

    ```
    fape        (mean over layers of the backbone's + that of all atoms, last layer) / 2
    torsion     |angle - known one|^2, of the nearer of two names, + 0.02 ||raw| - 1|
    distogram, lddt, errors    cross-entropy of the bins of distances, of lDDT, of aligned errors
    cells       cross-entropy of the hidden cells of an alignment
    ```
    Frames are those of the backbone. FAPE is clamped at 10 angstrom in proteins whose labels say so.

    Labels (B, L, 44), see `unpacked`, and behind them the cells of an alignment that were hidden, -100 elsewhere. A
    residue without N, CA and C has no frame and counts nowhere.
    """

    torsion: float = 0.5
    distogram: float = 0.3
    lddt: float = 0.01
    errors: float = 0.1
    cells: float = 2.0
    gaps: ClassVar[bool] = True  # labels hold NaN where an atom is unknown

    def counted(self, labels: Tensor) -> Tensor:
        """The number of proteins."""
        return torch.tensor(len(labels), device=labels.device)

    def __call__(self, output: Output, labels: Tensor, count: float | Tensor) -> Tensor:
        with torch.autocast(labels.device.type, enabled=False):
            parts = self.each(output, labels)
            return torch.stack(list(parts.values())).sum() / count

    def each(self, output: Output, labels: Tensor) -> dict[str, Tensor]:
        """The parts of the loss, each summed over proteins and weighted."""
        chain, places, there = unpacked(labels)
        predicted = output.beside["positions"].float()
        places, there = renamed(places, there, chain, predicted.detach())
        keep = there[..., :3].all(-1)  # (B, L)
        clamp = torch.where(labels[:, 0, WIDTH - 1] > 0, 10.0, float("inf"))
        true, frames = backbone(places), output.beside["frames"].float()
        layers = [_frames(frames[:, :, n]) for n in range(frames.shape[2])]
        ca = torch.stack([fape(f, f.origin, true, true.origin, keep, keep, clamp) for f in layers]).mean(0)
        atoms = (x.flatten(1, 2) for x in (predicted, places, there))
        mine, wanted, known = atoms
        every = fape(layers[-1], mine, true, wanted, keep, known, clamp)
        parts = {"fape": (ca + every).sum() / 2}
        parts["torsion"] = self.torsion * self._torsion(output, chain, places, there).sum()
        scores, pairs = output.heads, keep[:, :, None] & keep[:, None]
        if "distogram" in scores:
            number = bins(places, NEAR, FAR, scores["distogram"].shape[-1])
            parts["distogram"] = self.distogram * _surprise(scores["distogram"], number, pairs).sum()
        if "lddt" in scores:
            parts["lddt"] = self.lddt * self._confidence(scores["lddt"], predicted, places, keep).sum()
        if "ptm" in scores:
            with torch.no_grad():
                apart = layers[-1][:, :, None].inverse_apply(layers[-1].origin[:, None])
                off = (apart - true[:, :, None].inverse_apply(true.origin[:, None])).norm(dim=-1)
            count = scores["ptm"].shape[-1]
            number = (off / FARTHEST_ERROR * (count - 2)).long().clamp(max=count - 1)
            parts["errors"] = self.errors * _surprise(scores["ptm"], number, pairs).sum()
        if "cells" in scores and labels.shape[-1] > WIDTH:
            hidden = labels[..., WIDTH:]
            mine = scores["cells"][:, :, 1:]  # behind the protein itself
            parts["cells"] = self.cells * _surprise(mine, hidden.clamp(min=0).long(), hidden >= 0).sum()
        return parts

    def _torsion(self, output: Output, chain: Tensor, places: Tensor, there: Tensor) -> Tensor:
        wanted, known = torsions(places, there, chain)
        mine, raw = output.beside["angles"].float(), output.beside["raw_angles"].float()  # (B, L, N, 7, 2)
        other = torch.where(residues.TURNS.to(chain.device)[chain][..., None], -wanted, wanted)
        off = torch.minimum(*((mine - w[:, :, None]).square().sum(-1) for w in (wanted, other)))  # (B, L, N, 7)
        count = known.sum((1, 2)).clamp(min=1)
        angle = off.mean(2).masked_fill(~known, 0.0).sum((1, 2)) / count
        length = torch.sqrt(raw.square().sum(-1) + 1e-8)
        real = there.any(-1)
        norm = (length - 1).abs().mean((2, 3)).masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)
        return angle + 0.02 * norm

    def _confidence(self, scores: Tensor, predicted: Tensor, places: Tensor, keep: Tensor) -> Tensor:
        with torch.no_grad():
            kept, pairs = lddt(predicted[:, :, CA], places[:, :, CA], keep)
            share = kept / pairs.clamp(min=1)
        column = residues.TYPES.index("CA") if scores.shape[2] > 1 else 0
        number = (share * scores.shape[-1]).long().clamp(max=scores.shape[-1] - 1)
        return _surprise(scores[:, :, column], number, keep & (pairs > 0))


def _frames(seven: Tensor) -> Frames:
    return Frames(from_quaternion(seven[..., :4]), seven[..., 4:])


def _surprise(scores: Tensor, number: Tensor, keep: Tensor) -> Tensor:
    """The mean cross-entropy of each protein over the entries that count, (B,)."""
    each = F.cross_entropy(scores.float().flatten(0, -2), number.flatten(), reduction="none").view(number.shape)
    axes = tuple(range(1, number.ndim))
    return each.masked_fill(~keep, 0.0).sum(axes) / keep.sum(axes).clamp(min=1)


def lddt(mine: Tensor, true: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of kept distances and of all distances for each residue: (B, L, 3) -> (B, L) twice.

    lDDT is the first over the second (Mariani et al., 2013): a distance below 15 angstrom to another residue is kept to
    a quarter for each of the steps 0.5, 1, 2 and 4 angstrom that its error does not reach.
    """
    near = torch.cdist(true.float(), true.float())
    off = (torch.cdist(mine.float(), mine.float()) - near).abs()
    pairs = keep[:, :, None] & keep[:, None] & (near < SEEN)
    pairs = pairs & ~torch.eye(true.shape[1], dtype=torch.bool, device=true.device)
    share = torch.stack([off < step for step in STEPS]).float().mean(0)
    return share.masked_fill(~pairs, 0.0).sum(-1), pairs.sum(-1)


def rmsd(mine: Tensor, true: Tensor, keep: Tensor) -> Tensor:
    """The root of the mean squared distance of points after superposition: (L, 3) twice, (L,) -> a number."""
    apart = superposed(mine.float(), true.float(), keep) - true.float()
    return apart[keep].square().sum(-1).mean().sqrt()
