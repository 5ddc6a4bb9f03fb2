"""fold proteins: sequences to atoms, with the confidence of each residue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer fold runs/folder protein.fasta --out protein.pdb --errors protein.json"


def fold(
    model: str,
    data: str,
    *,
    out: str | None = None,
    errors: str | None = None,
    msa: str | None = None,
    rows: int = 128,
    recycles: int | None = None,
    batch: int = 1,
    most: int = 1024,
    lines: int | None = None,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints the confidence of each protein, pLDDT and pTM, and writes its atoms.

    Args:
        model: a directory, the folder of a run, or a hub id, of a folding model.
        data: a FASTA file, where `:` parts chains; or a PDB file, whose sequence is folded anew.
        out: write the atoms to this .pdb file; of several proteins, to a folder, each under its name. The column of B
            factors holds pLDDT.
        errors: write the expected errors of pairs (PAE), in angstrom, to this .json or .npz file.
        msa: an alignment of the protein, .a3m or .sto, for a model that reads one.
        rows: of the alignment that are read.
        recycles: passes after the first one; by default as the model was trained.
        batch: proteins at once.
        most: residues of the longest protein.
        lines: rows of pairs at a time; fewer need less memory.
        json: print as JSON.
        task: read another class of the same files.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate.folding import fold as folded
    from anyformer.media.proteins import read_sequences

    if errors is not None and Path(errors).suffix not in (".json", ".npz"):
        raise ValueError(f"--errors is a .json or .npz file; got {errors!r}")
    proteins = read_sequences(data)
    if out is not None and len(proteins) > 1 and Path(out).suffix:
        raise ValueError(f"{data} holds {len(proteins)} proteins; --out is a folder for several, got {out!r}")
    loaded = models.load(model, text=False, task=task, ignore=ignore)
    folds = folded(loaded, proteins, recycles, msa, rows, batch, most, lines)
    if out is not None:
        _written(folds, Path(out))
    if errors is not None:
        _errors(folds, Path(errors))
    shown = [{"name": f.name, "residues": len(f.plddt), "plddt": float(f.plddt.mean()), "ptm": f.ptm} for f in folds]
    if json:
        print(plain.dump(shown))
        return
    lines_ = [(f["name"], f["residues"], f"{f['plddt']:.1f}", f"{f['ptm']:.3f}") for f in shown]
    print(plain.table([("name", "residues", "pLDDT", "pTM"), *lines_], right=(1, 2, 3)))


def _written(folds: list[Any], out: Path) -> None:
    if len(folds) == 1 and out.suffix:
        out.write_text(folds[0].pdb(), encoding="ascii", errors="replace")
        return
    out.mkdir(parents=True, exist_ok=True)
    for one in folds:
        name = "".join(c if c.isalnum() or c in "._-" else "_" for c in one.name).lstrip(".")
        (out / f"{name or 'protein'}.pdb").write_text(one.pdb(), encoding="ascii", errors="replace")


def _errors(folds: list[Any], path: Path) -> None:
    if path.suffix == ".npz":
        import numpy as np

        with open(path, "wb") as file:
            np.savez(file, **{f.name: f.pae for f in folds})
        return
    rows = {f.name: [[round(float(v), 2) for v in row] for row in f.pae] for f in folds}
    path.write_text(plain.dump(rows), encoding="utf-8")


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(fold)


def run(args: Any) -> None:
    """Does it."""
    fold(**pick(args, fold))
