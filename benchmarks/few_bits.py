"""The matrices of a model's blocks in 4 and 3 bits, by our methods and by the packages hqq and auto-round.

    python -m benchmarks.few_bits minilm [--bits 4 3] [--doc docs/compress.md]

One model, one run, one text: its first half calibrates, the second compares (`compress.held`). Everybody rounds the
same matrices, in groups of 32 with a scale and a zero. Of the packages, the numbers that they chose are put in our
model, so what is compared is numbers, not files (`benchmarks.rounders`). A package that is not there is a row with the
reason.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from anyformer.cli import models
from anyformer.compress import compare, few
from anyformer.compress.held import Held, inputs_of
from anyformer.core.machine import conditions, processor
from benchmarks import report, rounders

GROUP = 32  # inputs that share a scale


def matrices(model: Any, bits: int) -> list[few.Entry]:
    """The matrices of the blocks, which everybody rounds."""
    return [e for e in few.plan(model, bits, GROUP) if e.bits == bits and e.path.startswith("blocks.")]


def ours(model: Any, method: Any, held: Held, bits: int, whole: bool = False) -> Any:
    """A copy, rounded by one of our methods."""
    made = copy.deepcopy(model)
    few.quantise(made, few.Work(method, GROUP, matrices(made, bits), whole), held.calibrate)
    return made


def of_package(model: Any, held: Held | None, bits: int) -> Any:
    """A copy with the numbers of a package: of auto-round, which reads the half that calibrates, or of hqq."""
    made = copy.deepcopy(model)
    if held is not None:
        rows = [row[None] for batch in held.calibrate for row in batch["input_ids"]]
        learned = rounders.auto_round(model, rows, bits, GROUP)
    for entry in matrices(made, bits):
        weight = made.get_submodule(entry.path).weight
        found = rounders.hqq(weight, bits, GROUP) if held is None else learned[entry.path]
        with torch.no_grad():
            weight.copy_(found.weight)
    return made


def table(source: str, every: list[int]) -> str:
    """Divergence from the model, cosine or the share of the same first choices, and seconds of the rounding."""
    model = models.load(source)
    held = inputs_of(model)
    lines = ["| | " + " | ".join(f"KLD in {bits} bits | | seconds" for bits in every) + " |"]
    lines.append("|---" + "|---|---|---" * len(every) + "|")
    names: dict[str, Callable[[int], Any]] = {m: partial(ours, model, m, held) for m in get_args(few.Method)}
    for method in ("gptq", "signround"):
        names[f"{method}, whole zeros"] = partial(ours, model, method, held, whole=True)
    names["the package hqq"] = partial(of_package, model, None)
    names["the package auto-round, whole zeros"] = partial(of_package, model, held)
    found: compare.Distance
    for name, way in names.items():
        cells = list[str]()
        for bits in every:
            began = time.perf_counter()
            try:
                made = way(bits)
            except ImportError as error:
                cells += [f"not run: {error}", "", ""]
                continue
            seconds = time.perf_counter() - began
            found = compare.distance(model, made.eval(), held)
            second = f"{found.top:.1%}" if found.cosine is None else f"{found.cosine:.4f}"
            cells += [f"{found.kld:.5f}", second, f"{seconds:.0f}"]
            print(name, bits, found, f"{seconds:.0f} s", flush=True)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    packages = ", ".join(f"{name} {version(name)}" for name in ("hqq", "auto-round"))
    about = f"{source}: {len(matrices(model, every[0]))} matrices in groups of {GROUP}; {found.places:,} {found.what}"
    second = "the same first choice" if found.cosine is None else "cosine of the vectors"
    note = f"{about}. Beside the divergence: {second}. {packages}; {processor()}, {conditions()}."
    return "\n".join([*lines, "", note])


def version(name: str) -> str:
    """The version of a package, or that it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def main() -> None:
    """Prints the table, and writes it between its marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--bits", type=int, nargs="+", choices=(3, 4, 8), default=[4, 3])
    parser.add_argument("--doc", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = table(args.model, args.bits)
    print(text)
    if args.doc is not None:
        begin, end = "<!-- few bits: begin -->", "<!-- few bits: end -->"
        if not report.fill(args.doc, begin, end, f"\n{text}\n"):
            raise SystemExit(f"{args.doc} has no {begin} … {end}")


if __name__ == "__main__":
    main()
