"""Scaling laws on known surfaces, on published runs, and on a ladder trained here: the tables of docs/scaling.md.

    python -m benchmarks.scaling surfaces --out runs/surfaces.json
    python -m benchmarks.scaling ladder --file runs/ladder/runs.jsonl --out runs/ladder.json
    python -m benchmarks.scaling published --file svg_extracted_data.csv --out runs/published.json
    python -m benchmarks.scaling plans --out runs/plans.json
    python -m benchmarks.scaling show runs/surfaces.json runs/ladder.json runs/plans.json --doc docs/scaling.md

svg_extracted_data.csv has the runs that Besiroglu et al. read off a figure of Hoffmann et al.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.scale import Runs, draw, planning, read, study, surface
from anyformer.scale.approaches import parabolas
from anyformer.scale.approaches import surface as third
from anyformer.scale.gpus import GPUS
from anyformer.scale.laws import FIELDS, PUBLISHED, Law
from anyformer.scale.plan import Assumptions, defaults, energy
from anyformer.scale.shape import usual
from benchmarks import machine

ASYMMETRIES = ((0.34, 0.28), (0.35, 0.37), (0.2, 0.6), (0.6, 0.2), (0.5, 0.5), (0.3, 0.9))
SIZES, LENGTHS = np.geomspace(5e7, 1.6e10, 7), np.geomspace(1e9, 3e11, 7)
NOISE, DRAWS, RESAMPLES = 0.01, 200, 50
EPOCH = {"params": "Model Size", "flops": "Training FLOP"}
WORST = 5  # runs of the highest losses, which Besiroglu et al. leave out


def law_of(alpha: float, beta: float) -> Law:
    """A law whose two terms are equal in the middle of the grid."""
    return Law(1.8, 0.4 * 1e9**alpha, 0.4 * 2e10**beta, alpha, beta)


def planted(law: Law, noise: float = 0.0, seed: int = 0) -> Runs:
    """Runs of a grid of sizes and lengths whose losses are those of a law, times noise."""
    n, d = (axis.ravel() for axis in np.meshgrid(SIZES, LENGTHS))
    drawn = np.exp(noise * np.random.default_rng(seed).standard_normal(n.size))
    return Runs(n, d, law.loss(n, d) * drawn)


def surfaces(draws: int = DRAWS, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Exponents without noise, the bias of approach 2, and how often 90 % intervals hold the planted numbers."""
    exact = []
    for alpha, beta in ASYMMETRIES:
        law = law_of(alpha, beta)
        found = surface.fit(planted(law))
        middles, exponent = biased(law, 0.0), biased(law, 0.1)
        exact.append({
            "alpha": alpha, "beta": beta, "agreeing": found.agreeing,
            "off": max(abs(found.law.alpha - alpha), abs(found.law.beta - beta)),
            "factor": float(np.exp(middles[0])), "exponent": exponent[1],
        })  # fmt: skip
    law = PUBLISHED["besiroglu"]
    held = {name: 0 for name in (*FIELDS, "a", "loss of 70b and 1.4t")}
    for seed in range(draws):
        runs = planted(law, NOISE, seed)
        fitted = surface.bootstrap(runs, surface.fit(runs).law, resamples, seed)
        for name in held:
            low, high = fitted.interval(lambda each, name=name: _asked(each, name)) or (np.nan, np.nan)
            held[name] += low <= _asked(law, name) <= high
    return {"exact": exact, "coverage": {k: n / draws for k, n in held.items()}, "draws": draws, "resamples": resamples}


def biased(law: Law, drift: float) -> tuple[float, float]:
    """By how much approach 2 is off: the logarithm of its best size at 1e20, and its exponent. The middle of the sizes
    moves away from the best one by `drift` for each factor of e in computation."""
    flops, around = np.geomspace(1e18, 1e22, 9), np.linspace(-1.5, 1.5, 7)
    sizes = np.concatenate([law.optimal(c)[0] * np.exp(around + drift * np.log(c / 1e20)) for c in flops])
    tokens = np.repeat(flops, len(around)) / 6 / sizes
    found, true = parabolas(Runs(sizes, tokens, law.loss(sizes, tokens))), third(law)
    return float(np.log(found.optimal(1e20)[0] / true.optimal(1e20)[0])), found.a - true.a


def _asked(law: Law, name: str) -> float:
    return float(law.loss(70e9, 1.4e12)) if "loss" in name else float(getattr(law, name))


def ladder(file: Path, plot: Path | None) -> dict[str, Any]:
    """The study of a ladder."""
    found = study(read(file))
    if plot:
        draw(found, plot)
    return {"ladder": {"text": str(found), "rows": [json.loads(line) for line in file.read_text().splitlines()]}}


def published(file: Path) -> dict[str, Any]:
    """The study of published runs, and the objective of published laws on them."""
    runs = read(file, EPOCH, WORST)
    others = {name: surface.objective(runs, law) for name, law in PUBLISHED.items()}
    return {"epoch": {"text": str(study(runs)), "objective": others}}


def plans() -> dict[str, Any]:
    """Published runs beside the formulas of a plan (what, ours, published, where), and the plan of one."""
    gpt, llama = usual(175e9, 2048)[1], usual(70e9, 4096)[1]
    a100 = GPUS["a100"]
    seconds = gpt.flops[1] * 300e9 / (1024 * 140e12)
    hours = llama.flops[0] * 2e12 / (a100.flops * 0.5) / 3600
    given = Assumptions(**defaults(a100, 300e9))
    whole = planning.plan("a LLaMA of about 175 B", gpt, 175e9, 300e9, 1024, a100, given)
    patterson, meta = energy(10_000, 330, 14.8, 1.10, 0.429), energy(1, 400, 1_720_320 / 24, 1.0, 0.4235)
    return {
        "plan": str(whole),
        "rows": [
            ("GPT-3: 6 N D of 175 B and 300 B tokens", 6 * 175e9 * 300e9, 3.14e23, "Brown et al., 2020"),
            ("GPT-3: MWh, 10,000 x 330 W, 14.8 days, PUE 1.10", patterson.kwh / 1e3, 1287, "Patterson et al., 2021"),
            ("GPT-3: t CO2, 0.429 kg a kWh", patterson.carbon / 1e3, 552, "the same"),
            ("GPT-3: days on 1024 A100 at 140 TFLOP/s, recomputed", seconds / 86400, 34, "Narayanan et al., 2021"),
            ("175 B: tokens at 20 a parameter", 20 * 175e9, 3.5e12, "Hoffmann et al., 2022 (rule)"),
            ("Llama 2 70B: A100 hours of 2 T tokens at half of the peak", hours, 1_720_320, "Touvron et al., 2023"),
            ("Llama 2 70B: t CO2 of 1,720,320 hours of 400 W", meta.carbon / 1e3, 291.42, "the same"),
        ]
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """The tables of results, as Markdown."""
    parts = []
    if "exact" in results:
        rows = [
            f"| {e['alpha']} | {e['beta']} | {e['off']:.1e} | {e['agreeing']} of {surface.STARTS} | "
            f"{e['factor']:.3f} | {e['exponent']:+.3f} |"
            for e in results["exact"]
        ]
        head = (
            "| alpha | beta | exponents of approach 3 off by | starts | best N of approach 2, centred: a factor of | "
        )
        parts.append("\n".join([head + "its exponent, drifting: off by |", "|---|---|---|---|---|---|", *rows]))
        rows = [f"| {name} | {share:.1%} |" for name, share in results["coverage"].items()]
        note = f"{results['draws']} surfaces with {NOISE:.0%} of noise, {results['resamples']} resamples each"
        parts.append("\n".join([f"| {note} | in the 90 % interval |", "|---|---|", *rows]))
    if "ladder" in results:
        rows = [
            f"| {r['params']:,} | {r['tokens']:,} | {r['loss']:.4f} | {r['seconds']:.0f} |"
            for r in results["ladder"]["rows"]
        ]
        total = sum(r["seconds"] for r in results["ladder"]["rows"])
        head = f"| parameters | tokens (bytes) | held-out loss, nats a byte | seconds, {total / 60:.0f} min in all |"
        parts.append("\n".join([head, "|---|---|---|---|", *rows]))
        parts.append(f"```text\n{results['ladder']['text']}\n```")
    if "epoch" in results:
        parts.append(f"```text\n{results['epoch']['text']}\n```")
        rows = [f"| {name} | {value:.6f} |" for name, value in results["epoch"]["objective"].items()]
        parts.append("\n".join(["| objective of the same 240 runs with the numbers of | |", "|---|---|", *rows]))
    if "rows" in results:
        rows = [f"| {w} | {o:.4g} | {p:.4g} | {o / p - 1:+.1%} | {s} |" for w, o, p, s in results["rows"]]
        parts.append("\n".join(["| | ours | published | | |", "|---|---|---|---|---|", *rows]))
        command = "anyformer plan --params 175b --tokens 300b --context 2048 --gpus 1024xa100"
        parts.append(f"`{command}`:\n\n```text\n{results['plan']}\n```")
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a part, or shows results."""
    parser = argparse.ArgumentParser("python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("what", choices=("surfaces", "ladder", "published", "plans", "show"))
    parser.add_argument("results", nargs="*", type=Path)
    for name in ("file", "plot", "out", "doc"):
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args(argv)
    if given.what == "show":
        for file in given.results:
            _show(file.stem, json.loads(file.read_text()), given.doc)
        return
    if given.what in ("ladder", "published") and given.file is None:
        parser.error(f"{given.what} needs --file, the runs")
    made = {
        "surfaces": surfaces, "plans": plans, "ladder": lambda: ladder(given.file, given.plot),
        "published": lambda: published(given.file),
    }[given.what]()  # fmt: skip
    made["machine"] = machine.facts(1)
    text = json.dumps(made, indent=1)
    print(text if given.out is None else table(made))
    if given.out is not None:
        given.out.write_text(text + "\n")


def _show(name: str, results: dict[str, Any], doc: Path | None) -> None:
    """Prints the tables, or writes them between the marks of a document."""
    if doc is None:
        print(table(results))
        return
    marks = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = doc.read_text().split(marks[0])
    doc.write_text(f"{before}{marks[0]}\n{table(results)}\n\n{results['machine']}\n{marks[1]}{rest.split(marks[1])[1]}")


if __name__ == "__main__":
    main()
