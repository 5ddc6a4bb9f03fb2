"""Torsion angles and the other naming of the atoms of known structures. B batch, L residues."""

from __future__ import annotations

import torch
from torch import Tensor

from anyformer.parts.folding import residues
from anyformer.parts.folding.frames import Frames, from_atoms

PSI, O = 3, 3  # its group, and the slot of the atom that shows it


def _shown() -> Tensor:
    """(21, 8) the slot of the atom that shows the angle of a group; -1 where none does."""
    slots = torch.full((len(residues.LETTERS), residues.GROUPS), -1, device="cpu")
    for kind, names in enumerate(residues.ATOMS[: residues.UNKNOWN]):
        slots[kind, PSI] = O
        for number, chi in enumerate(residues.CHI[kind]):
            slots[kind, residues.FIRST_CHI + number] = names.index(chi[3])
    return slots


SHOWN = _shown()


def backbone(positions: Tensor) -> Frames:
    """The frames of N, CA and C: (..., 14, 3) -> (...)."""
    return from_atoms(positions[..., 0, :], positions[..., 1, :], positions[..., 2, :])


def torsions(positions: Tensor, there: Tensor, chain: Tensor) -> tuple[Tensor, Tensor]:
    """The sine and cosine of psi and chi of known atoms, (B, L, 7, 2), and which of them are known, (B, L, 7).

    Args:
        positions: (B, L, 14, 3). there: (B, L, 14), True = known. chain: (B, L).
    """
    B, L = chain.shape
    angles, known = positions.new_zeros(B, L, residues.ANGLES, 2), torch.zeros_like(there[..., : residues.ANGLES])
    rotation, origin = (t.to(chain.device)[chain].to(positions.dtype) for t in residues.FRAMES)
    slots = SHOWN.to(chain.device)[chain]  # (B, L, 8)
    first = backbone(positions)
    whole, carrier, carried = there[..., :3].all(-1), first, there[..., :3].all(-1)
    for group in range(PSI, residues.GROUPS):
        begin = group in (PSI, residues.FIRST_CHI)
        carrier, carried = (first, whole) if begin else (carrier, carried)
        base = carrier.compose(Frames(rotation[:, :, group], origin[:, :, group]))
        slot = slots[:, :, group].clamp(min=0)[..., None]
        atom = positions.gather(2, slot[..., None].expand(-1, -1, -1, 3))[:, :, 0]
        carried = carried & (slots[:, :, group] >= 0) & there.gather(2, slot)[..., 0]
        _, y, z = base.inverse_apply(atom).unbind(-1)
        length = torch.sqrt((y.square() + z.square()).clamp(min=1e-8))
        sine, cosine = z / length, y / length
        angles[:, :, group - 1] = torch.stack((sine, cosine), -1)
        known[:, :, group - 1] = carried
        zero, one = torch.zeros_like(sine), torch.ones_like(sine)
        rows = ((one, zero, zero), (zero, cosine, -sine), (zero, sine, cosine))
        turn = torch.stack([torch.stack(row, -1) for row in rows], -2)
        carrier = Frames(base.rotation @ turn, base.origin)
    return angles, known


def renamed(positions: Tensor, there: Tensor, chain: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """Known atoms and their mask under the naming that is nearer to a prediction: the two oxygens of D have names that
    nobody can tell apart (algorithm 26, seen from the residue's own frame).

    Args:
        positions, predicted: (B, L, 14, 3). there: (B, L, 14). chain: (B, L).
    """
    slot = residues.SWAPPED.to(chain.device)[chain]  # (B, L, 14)
    other, others = positions.gather(2, slot[..., None].expand_as(positions)), there.gather(2, slot)
    mine = backbone(predicted)[..., None].inverse_apply(predicted.float())
    true = backbone(positions)[..., None]

    def off(places: Tensor, known: Tensor) -> Tensor:
        apart = (true.inverse_apply(places.float()) - mine).square().sum(-1)
        return apart.masked_fill(~known, 0.0).sum(-1)

    better = off(other, others) < off(positions, there)
    return torch.where(better[..., None, None], other, positions), torch.where(better[..., None], others, there)
