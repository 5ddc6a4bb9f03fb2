"""Does Graphormer learn the polar surface of molecules that have another skeleton than those that it saw? In minutes.

    python examples/molecules.py --out runs/molecules --into docs/molecules.md    # prints the table, writes it there

The data are the first 4,999 molecules of the NCI set with their topological polar surface area, from the Debian package
rdkit-data (BSD-3-clause); RDKit reads them. Molecules of one skeleton (Murcko's: rings and what connects them) are on
one side: the rarest skeletons, a fifth of all molecules, are the test part.

- mean: of the training part;
- atoms and bonds: ridge regression on how many there are of each kind;
- set: the same network without any edge: a set of atoms, which know their hydrogens and charge;
- graphormer: size mini.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch

from anyformer.data import debian
from anyformer.generate import judge
from anyformer.media.graphs import Graph, graph_of, of_smiles
from anyformer.train import train

BEGIN, END = "<!-- table -->", "<!-- end -->"
FILE = "usr/share/RDKit/Data/NCI/first_5k.tpsa.csv"


def molecules() -> list[tuple[str, float]]:
    """SMILES and polar surface, in square angstrom, of all that can be read."""
    path = debian.fetch("rdkit-data", FILE.replace(".", "[.]"), 13, "BSD-3-clause") / FILE
    rows = csv.reader(line for line in path.open(encoding="utf-8") if not line.startswith("#"))
    found = []
    for smiles, area, *_ in rows:
        try:
            of_smiles(smiles)
            found.append((smiles, float(area)))
        except ValueError:
            continue
    return found


def skeleton(smiles: str) -> str:
    """The rings of a molecule and what connects them, as SMILES; "" without rings."""
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    return MurckoScaffoldSmiles(smiles)


def split(every: list[tuple[str, float]]) -> tuple[list[int], list[int]]:
    """Numbers of the molecules to learn from, and of the test part: the rarest skeletons, a fifth."""
    own = [skeleton(smiles) for smiles, _ in every]
    counts = Counter(own)
    order = sorted(range(len(every)), key=lambda i: (-counts[own[i]], own[i]))
    cut = int(0.8 * len(order))
    while own[order[cut]] == own[order[cut - 1]]:
        cut += 1
    return order[:cut], order[cut:]


def counted(graphs: list[Graph], kinds: list[str]) -> np.ndarray:
    """How many nodes and edges of each kind, and one."""
    rows = [Counter([*graph.nodes, *(kind for *_, kind in graph.edges)]) for graph in graphs]
    return np.array([[row[kind] for kind in kinds] + [1] for row in rows], float)


def learned(label: str, seed: int, before: Path, after: Path, args: argparse.Namespace) -> float:
    """The mean absolute error of one model in the test part."""
    torch.set_num_threads(1)
    model = train(
        "graphormer", data=before.with_stem(f"{before.stem}-{label}"), steps=args.steps, batch=args.batch, lr=args.lr,
        seed=seed, out=args.out / f"{label}-{seed}", eval_every=0, save_every=0, quiet=True, memory=100.0,
    ).model  # fmt: skip
    rows = [json.loads(line) for line in after.with_stem(f"{after.stem}-{label}").read_text().splitlines()]
    found: Any = judge(model, [graph_of(row) for row in rows])
    error = float(np.abs(np.array(found) - [row["label"] for row in rows]).mean())
    print(f"{label}, seed {seed}: {error:.2f}", flush=True)
    return error


def written(path: Path, graphs: list[Graph], areas: list[float]) -> None:
    """The rows of a part, with and without edges."""
    for label in ("graphormer", "set"):
        rows = (
            {"nodes": g.nodes, "edges": g.edges if label != "set" else [], "label": a}
            for g, a in zip(graphs, areas, strict=True)
        )
        path.with_stem(f"{path.stem}-{label}").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/molecules"))
    parser.add_argument("--into", type=Path, help=f"a text whose table, between {BEGIN} and {END}, is written anew")
    parser.add_argument("--lr", type=float, default=1e-3)
    for name, value in {"steps": 1000, "batch": 32, "seeds": 2, "processes": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    every = molecules()
    learn, test = split(every)
    graphs, areas = [of_smiles(smiles) for smiles, _ in every], [area for _, area in every]
    known = {kind for i in learn for kind in (*graphs[i].nodes, *(e[2] for e in graphs[i].edges))}
    fits = lambda g: known.issuperset(g.nodes) and known.issuperset(e[2] for e in g.edges)  # noqa: E731
    strange = [i for i in test if not fits(graphs[i])]
    test = [i for i in test if fits(graphs[i])]
    before, after = args.out / "before.jsonl", args.out / "after.jsonl"
    for path, part in ((before, learn), (after, test)):
        written(path, [graphs[i] for i in part], [areas[i] for i in part])
    y, truth = (np.array([areas[i] for i in part]) for part in (learn, test))
    kinds = sorted(known)
    x, asked = (counted([graphs[i] for i in part], kinds) for part in (learn, test))
    weight = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
    rows = [("mean", f"{np.abs(truth - y.mean()).mean():.2f}")]
    rows.append(("atoms and bonds", f"{np.abs(truth - asked @ weight).mean():.2f}"))
    jobs = [(label, seed) for label in ("set", "graphormer") for seed in range(args.seeds)]
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        errors = list(pool.map(partial(learned, before=before, after=after, args=args), *zip(*jobs, strict=True)))
    for label in ("set", "graphormer"):
        own = [error for (name, _), error in zip(jobs, errors, strict=True) if name == label]
        rows.append((label, f"{statistics.fmean(own):.2f} ± {statistics.pstdev(own):.2f}"))
    lines = [
        f"{len(learn):,} molecules to learn from, {len(test):,} of other skeletons to test on; {len(strange)} with an "
        "atom or a bond that training has not are left out.",
        "", "| | mean absolute error, square angstrom |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows),
    ]  # fmt: skip
    print("\n".join(lines))
    if args.into is not None:
        documents.put(args.into, BEGIN, END, "\n".join(lines))


if __name__ == "__main__":
    main()
