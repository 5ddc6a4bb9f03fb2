"""Structures of proteins: `fold`.

L residues.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.media.proteins import Sequence, pdb_text, read_alignment, read_sequences, sequence
from anyformer.parts.folding.front import GAP, Stem
from anyformer.parts.folding.heads import aligned_errors, lddt_of, ptm_of
from anyformer.parts.folding.residues import LETTERS, TYPES

JUMP = 512  # along the chain, between two chains: no model has seen such a distance
LINKER = 25  # glycines between two chains, for a language model that reads one
MOST = 1024  # residues
CA = TYPES.index("CA")


@dataclass(frozen=True, eq=False)
class Fold:
    """The structure of one protein.

    Attributes:
        name: of the sequence.
        chains: the letters of each chain.
        positions: (L, 14, 3) in angstrom, atoms in the order of `residues.ATOMS`; 0 where a residue has none.
        plddt: (L,) confidence of each residue, 0 to 100.
        ptm: confidence of the whole, 0 to 1.
        pae: (L, L) expected error of a residue where another one's frame is right, in angstrom.
    """

    name: str
    chains: tuple[str, ...]
    positions: np.ndarray
    plddt: np.ndarray
    ptm: float
    pae: np.ndarray

    def pdb(self) -> str:
        """The PDB file; pLDDT stands in the column of B factors. X has no atoms."""
        ends = np.cumsum([len(chain) for chain in self.chains])[:-1]
        parts = zip(self.chains, np.split(self.positions, ends), np.split(self.plddt, ends), strict=True)
        remarks = [f"{self.name}: mean pLDDT {self.plddt.mean():.1f}, pTM {self.ptm:.3f}"]
        return pdb_text(list(parts), remarks)


@torch.no_grad()
def fold(
    model: Any,
    data: str | Path | Several[str | Sequence],
    recycles: int | None = None,
    msa: str | Path | None = None,
    rows: int = 128,
    batch: int = 1,
    most: int = MOST,
    lines: int | None = None,
) -> list[Fold]:
    """Folds proteins.

    Two chains of one protein (`MKT:GAV`) are one sequence with a jump of 512 residues between them; a model with a
    language model reads 25 glycines there, which the result leaves out (Lin et al., 2022).

    Args:
        model: a folding model (ESMFold, AlphaFold 2).
        data: a FASTA file, a PDB file whose sequence counts, or sequences of letters.
        recycles: passes after the first one; None: as the model was trained.
        msa: an alignment of one protein, .a3m or .sto, for a model that reads one; its first row is the protein.
        rows: of the alignment that are read, the first ones.
        batch: proteins at once; the result is the same.
        most: the longest protein. Pairs take memory with the square of the length, and time with its cube.
        lines: rows of pairs that attention takes at a time: fewer need less memory; None: as the model says.

    Raises:
        ValueError: for another model, no protein, one that is too long or no protein, an alignment of another protein,
            or one that the model does not read.
    """
    if not folds(model):
        raise ValueError(f"fold needs a folding model (esmfold, alphafold2); this is a {type(model).__name__}")
    proteins = (
        read_sequences(data) if isinstance(data, str | Path) else [_sequence(d, i) for i, d in enumerate(data, 1)]
    )
    if not proteins:
        raise ValueError("no protein to fold: give at least one sequence")
    if batch < 1 or most < 1 or rows < 1:
        raise ValueError(f"batch={batch}, most={most} and rows={rows} must be at least 1")
    for protein in proteins:
        if len(protein) > most:
            raise ValueError(
                f"{protein.name} has {len(protein):,} residues, and at most {most:,} are folded, since memory grows "
                f"with the square of the length; most={len(protein)} (--most) allows it"
            )
    aligned = None if msa is None else alignment(model, proteins, msa, rows)
    before = model.training, model.lines
    model.eval()
    model.lines = before[1] if lines is None else lines
    made: list[Fold] = []
    try:
        for start in range(0, len(proteins), batch):
            made += _folded(model, proteins[start : start + batch], recycles, aligned)
    finally:
        model.train(before[0])
        model.lines = before[1]
    return made


def folds(model: Any) -> bool:
    """True of a model that gives structures of proteins."""
    return "beside.pair" in getattr(model, "pairs", ())


def _sequence(given: str | Sequence, number: int) -> Sequence:
    return given if isinstance(given, Sequence) else sequence(given, f"protein{number}")


def alignment(model: Any, proteins: list[Sequence], path: str | Path, rows: int) -> Tensor:
    """The rows of an alignment behind the first, (1, L, S), for the one protein that it belongs to.

    Raises:
        ValueError: if the model reads none, or it belongs to another protein.
    """
    if "msa" not in model.inputs():
        raise ValueError(
            "this model folds a sequence without an alignment (its front-end is "
            f"{type(model.embed).__name__}); leave msa out, or take one that reads it, such as alphafold2"
        )
    if len(proteins) != 1:
        raise ValueError(f"an alignment belongs to one protein, and there are {len(proteins)}; fold them one by one")
    first, *others = read_alignment(path)
    own = "".join(proteins[0].chains)
    if first != own:
        raise ValueError(
            f"{path}: the first row, {first[:20]}… of {len(first)} residues, is not {proteins[0].name}, {own[:20]}… of "
            f"{len(own)}; the first row of an alignment is the protein itself"
        )
    cells = [[GAP if c == "-" else LETTERS.index(c) for c in row] for row in others[: rows - 1]]
    return torch.tensor(cells, dtype=torch.long).reshape(len(cells), len(own)).T[None]


def batch_of(model: Any, proteins: list[Sequence], msa: Tensor | None) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The inputs of some proteins, padded on the right, and which residues of each are its own."""
    linker = LINKER if isinstance(model.embed, Stem) else 0
    ids, places, own = [], [], []
    for protein in proteins:
        letters, place, mine = "", [], []
        for number, chain in enumerate(protein.chains):
            last = number == len(protein.chains) - 1
            piece = chain + ("" if last else "G" * linker)
            place += [len(letters) + i + JUMP * number for i in range(len(piece))]
            mine += [i < len(chain) for i in range(len(piece))]
            letters += piece
        ids.append(torch.tensor([LETTERS.index(letter) for letter in letters]))
        places.append(torch.tensor(place))
        own.append(torch.tensor(mine))
    longest = max(map(len, ids))
    padded = lambda rows: torch.stack([torch.nn.functional.pad(r, (0, longest - len(r))) for r in rows])  # noqa: E731
    inputs = {"input_ids": padded(ids), "position_ids": padded(places)}
    if len({len(row) for row in ids}) > 1:
        inputs["attention_mask"] = padded([torch.ones_like(row) for row in ids])
    if msa is not None and msa.shape[2]:
        inputs["msa"] = msa
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in inputs.items()}, own


def _folded(model: Any, proteins: list[Sequence], recycles: int | None, msa: Tensor | None) -> list[Fold]:
    inputs, own = batch_of(model, proteins, msa)
    return folded(model(**inputs, recycles=recycles), proteins, own)


def folded(out: Any, proteins: list[Sequence], own: list[Tensor]) -> list[Fold]:
    """The structures of an output, whose rows are these proteins."""
    made = []
    for row, (protein, mine) in enumerate(zip(proteins, own, strict=True)):
        keep = torch.zeros(out.hidden.shape[1], dtype=torch.bool, device=out.hidden.device)
        keep[: len(mine)] = mine.to(keep.device)
        errors, scores = out.heads["ptm"][row][keep][:, keep], lddt_of(out.heads["lddt"][row][keep])
        made.append(
            Fold(
                protein.name,
                protein.chains,
                out.beside["positions"][row][keep].float().cpu().numpy(),
                (100 * scores[:, CA if scores.shape[1] > 1 else 0]).cpu().numpy(),
                float(ptm_of(errors[None])),
                aligned_errors(errors).cpu().numpy(),
            )
        )
    return made
