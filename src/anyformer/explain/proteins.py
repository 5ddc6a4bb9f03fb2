"""A protein as one call of a folding model, its confidence as a target, and maps of its pairs of residues.

L residues.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.explain.target import Contrast, Target
from anyformer.generate.folding import CA, alignment, batch_of, folded
from anyformer.media.proteins import read_sequences, sequence
from anyformer.parts.folding.heads import lddt_of
from anyformer.parts.folding.residues import UNKNOWN
from anyformer.skeletons.base import Output

ROWS = 128  # of an alignment that are read, as in `fold`
SIDE = 512  # residues on the side of a map; more are shown in cells, by their mean

__all__ = ["UNKNOWN", "protein"]


def protein(
    model: Any, item: str, target: Target, msa: str | None
) -> tuple[dict[str, Tensor], list[str], Target, Callable[[Output], list[dict[str, Any]]]]:
    """The call of one protein, the names of its residues, its confidence, and the maps of an output.

    Args:
        item: a FASTA or PDB file with one protein, or its letters. msa: an alignment, of a model that reads one.
        target: None: the mean confidence of all residues; or the number of one, from 1.

    Raises:
        ValueError: for several proteins, a target that is no residue, an alignment of another protein.
    """
    proteins = read_sequences(item) if Path(item).is_file() else [sequence(item)]
    if len(proteins) != 1:
        raise ValueError(f"{item} holds {len(proteins)} proteins; explain one, from a file or as letters")
    inputs, own = batch_of(model, proteins, None if msa is None else alignment(model, proteins, msa, ROWS))
    letters = "".join(proteins[0].chains)
    names = iter(f"{letter}{i}" for i, letter in enumerate(letters, 1))
    labels = [next(names) if mine else "linker" for mine in own[0].tolist()]
    places = own[0].nonzero()[:, 0]
    name = "confidence (pLDDT) of the protein"
    if target is not None:
        text = "" if callable(target) or isinstance(target, Contrast) else str(target)
        if not (text.isdecimal() and 1 <= int(text) <= len(letters)):
            raise ValueError(f"of a protein the target is the number of a residue, 1 to {len(letters)}; got {target!r}")
        places, name = places[int(text) - 1 : int(text)], f"confidence (pLDDT) of {letters[int(text) - 1]}{text}"

    def confidence(out: Output) -> Tensor:
        scores = lddt_of(out.heads["lddt"])  # (B, L, atoms or 1)
        return 100 * scores[:, places, CA if scores.shape[2] > 1 else 0].mean(1)

    def pairs(out: Output) -> list[dict[str, Any]]:
        (fold,) = folded(out, proteins, own)
        atoms = fold.positions[:, CA]
        far = np.linalg.norm(atoms[:, None] - atoms[None], axis=-1)
        short = [label for label, mine in zip(labels, own[0].tolist(), strict=True) if mine]
        return [pair_map("distance of residues as folded", "Å", far, short),
                pair_map("expected error of a residue (below) where the frame of another (left) is right", "Å",
                         fold.pae, short)]  # fmt: skip

    confidence.__name__ = name
    return inputs, labels, confidence, pairs


def pair_map(name: str, unit: str, values: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """A map (L, L) for a page: whole numbers from 0 to 255 between its lowest and highest value, compressed."""
    cell = -(-len(values) // SIDE)
    whole = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    small = torch.nn.functional.avg_pool2d(whole[None], cell, cell, ceil_mode=True)[0]
    low, high = float(small.min()), float(small.max())
    numbers = ((small - low) / max(high - low, 1e-9) * 255).round().to(torch.uint8).numpy()
    data = base64.b64encode(zlib.compress(numbers.tobytes(), 6)).decode()
    return {"name": name, "unit": unit, "low": low, "high": high, "side": len(small), "cell": cell,
            "labels": labels[::cell], "data": data}  # fmt: skip
