"""The edge tool measured: its table against files that it has not seen, its search against simpler ones at equal time.

    python -m benchmarks.edge forms [--doc docs/edge.md]
    python -m benchmarks.edge table [--doc docs/edge.md]
    python -m benchmarks.edge run --out runs/clothes [--doc docs/edge.md]
    python -m benchmarks.edge peers --task rows.jsonl --metric pearson --seconds 120 [--doc docs/edge.md]
    python -m benchmarks.edge search --task rows.jsonl --seconds 300 --teacher minilm [--doc docs/edge.md]

forms: bytes and time of one model with its matrices in float32, 8 and 4 bits.
table: 20 drawn architectures, exported and run in fresh processes; predicted time, and operations alone, scaled to fit.
run: what `anyformer edge` found in a folder, and which choices mattered, by path; of running text also models of bytes
without a network (`benchmarks.edge_bytes`).
peers: one model in the small forms of several tools (`benchmarks.edge_peers`).
search: the whole tool; the largest uniform model of the page that fits, trained alone; drawn models that fit, trained
alone for a share of the time each, of which the best on the rows that choose counts. Rows, time, budget are the same;
time is what the thread has computed, so a busy machine changes nothing but how long it takes. A killed call goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

from anyformer.cli import edge
from anyformer.compress import few
from anyformer.core import pages
from anyformer.edge import artefact, finish, learn
from anyformer.edge.count import count
from anyformer.edge.design import SPEC, Design
from anyformer.edge.device import Table
from anyformer.edge.running import Running
from anyformer.edge.shared import GROUP
from anyformer.edge.space import Choice, key, space
from anyformer.edge.targets import Onnx
from anyformer.edge.task import BITS, read, said
from anyformer.edge.wish import Wish
from anyformer.hub.formats.guard import atomic_write, read_json
from benchmarks import edge_bytes, edge_peers, report

UNSEEN, TRIED = 20, 4  # architectures of the table; models that a random search trains
TOKENS, VOCAB = 64, 2048


def table() -> str:
    """Predicted against measured milliseconds of architectures that the table was not made of."""
    from scipy.stats import kendalltau

    made = space(pages.recipe("bert", "mini", task="classify", classes=1), TOKENS)
    known = Table(made, Onnx())
    known.fill(print)
    noise, seen, rows = random.Random(7), set[str](), list[tuple[float, float, int]]()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        while len(rows) < UNSEEN:
            choice = {**made.drawn(noise), "vocab": VOCAB}
            if key(choice) in seen:
                continue
            seen.add(key(choice))
            model = pages.build(made.recipe(choice), seed=0).eval()
            artefact.write(model, file)
            real = min(r[0] for r in artefact.measured(file, artefact.example(model, TOKENS), 1))
            rows.append((real, known.milliseconds(choice), count(made.recipe(choice), tokens=TOKENS).forward))
            print(f"{real:.3f} ms, table {rows[-1][1]:.3f} ms, {rows[-1][2] / 1e6:.1f} million operations", flush=True)
    real, foreseen, flops = (list(column) for column in zip(*rows, strict=True))
    pace = median(r / f for r, f in zip(real, flops, strict=True))  # the best single price of an operation
    lines = ["| | median error | largest error | Kendall's τ |", "|---|---|---|---|"]
    for name, guess in (("the table", foreseen), ("operations alone", [f * pace for f in flops])):
        errors = [abs(g / r - 1) for g, r in zip(guess, real, strict=True)]
        tau = float(kendalltau(guess, real).statistic)
        lines.append(f"| {name} | {median(errors):.1%} | {max(errors):.1%} | {tau:.3f} |")
    about = (
        f"{UNSEEN} drawn architectures of {min(real):.2f} to {max(real):.2f} ms for {TOKENS} tokens, the least median"
    )
    return "\n".join([*lines, "", f"{about} of three fresh processes; {known.key}."])


def forms() -> str:
    """Bytes, milliseconds and largest difference from the model of one architecture in each form."""
    made = space(pages.recipe("bert", "mini", task="classify", classes=1), TOKENS)
    choice = made.end(True, random.Random(0))
    choice = made.full({**choice, "pool": "additive", **{n: "own" for n in choice if n.startswith("mixer.")}})
    ids = torch.randint(0, VOCAB, (3, 33), generator=torch.Generator().manual_seed(0))
    lines = ["| | bytes | 64 tokens | differs from the model by |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for bits, whole in ((32, False), (8, False), (8, True), (4, False), (4, True)):
            model, file = pages.build(made.recipe(choice), seed=0).eval(), Path(folder) / "model.onnx"
            if bits < 32:
                few.quantise(model, few.Work("rtn", GROUP, few.plan(model, bits, GROUP)))
            artefact.write(model, file, whole=whole)
            real = min(r[0] for r in artefact.measured(file, artefact.example(model, TOKENS), 1))
            off = artefact.difference(
                artefact.opened(file), model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
            )
            name = "float32" if bits == 32 else f"{bits} bits{', int8 products' if whole else ''}"
            lines.append(f"| {name} | {file.stat().st_size:,} | {real:.2f} ms | {off:.0e} |")
    return "\n".join([*lines, "", f"{key(choice)}; {Onnx().conditions()}."])


def run(out: Path) -> str:
    """The report of a run, and by path the best metric of the search for each value."""
    done = read_json(out / finish.REPORT)
    lines = [
        "```",
        edge.report(done, str(out)),
        "```",
        "",
        "| path | best with shared weights, and number of models |",
        "|---|---|",
    ]
    for path, values in done["mattered"].items():
        best = sorted(values.items(), key=lambda v: said(done["wish"]["metric"], -v[1][0]))
        lines.append(f"| {path} | {', '.join(f'{v} {metric:.4f} ({n})' for v, (metric, n) in best)} |")
    if done["wish"]["metric"] == BITS:
        spec = read_json(out / SPEC)
        task = read(spec["task"], BITS, Running(spec["tokens"]), spec["seed"])
        lines += ["", edge_bytes.table(task, done["chosen"]["real_size"], done["value"])]
    return "\n".join(lines)


def alone(design: Design, choice: Choice, seconds: float, seed: int) -> tuple[float, float]:
    """A model trained alone and stored as an artefact is: its metric on the rows that choose, and on the others."""
    model: Any = pages.build(design.space.recipe(choice), seed=seed)
    if design.vectors is not None:
        with torch.no_grad():
            first = design.vectors[: choice["vocab"], : choice["dim"]]  # of texts
            model.get_parameter("embed.tokens.weight")[: len(first)] = first
    vocab = choice.get("vocab")
    best = learn.fit(model, design.task, vocab, seconds, seed=seed, say=lambda _: None)
    small, _ = finish.stored(model, design.task, choice, 0)
    test = design.task.parts["test"]
    return best, said(
        design.wish.metric, design.task.measure(design.task.answers(learn.logits_of(small), test, vocab), test)
    )


def ways(wish: Wish, teacher: Any, folder: Path) -> dict[str, Callable[[], float]]:
    """The metric of each way on the rows that are looked at once; all have the same time, rows and budget."""
    design = Design(wish, folder, teacher)

    def tool() -> float:
        return float(finish.finish(design, *design.run())["value"])

    def first() -> None:  # the token vectors of the tool's models
        if teacher is not None:
            design.vectors = design.first()

    def uniform() -> float:
        first()
        return alone(design, design.plain()[0].choice, design.seconds, wish.seed)[1]

    def drawn() -> float:
        first()
        noise, some = random.Random(wish.seed), list[Choice]()
        while len(some) < TRIED:
            choice = design.space.drawn(noise)
            some += [choice] if not design.point(choice).over(wish) else []
        return max(alone(design, c, design.seconds / TRIED, wish.seed) for c in some)[1]

    return {"the tool": tool, "uniform shrinking": uniform, "random search": drawn}


def search(wish: Wish, teacher: Any, seeds: list[int], out: Path) -> str:
    """The metric of each way, for each seed; what an earlier call of the same command has measured is not run again."""
    found: dict[str, list[float]] = {}
    for seed in seeds:
        file = out / f"seed{seed}.json"
        done = read_json(file) if file.exists() else {}
        for name, way in ways(replace(wish, seed=seed), teacher, out / f"seed{seed}").items():
            if name not in done:
                done[name] = way()
                atomic_write(file, json.dumps(done).encode())
                print(seed, done, flush=True)
            found.setdefault(name, []).append(done[name])
    lines = [f"| | {wish.metric} | each seed | ahead of it |", "|---|---|---|---|"]
    for name, values in found.items():
        lines.append(f"| {name} | {about(values)} | {', '.join(f'{v:.4f}' for v in values)} |")
        apart = [said(wish.metric, a - b) for a, b in zip(found["the tool"], values, strict=True)]
        lines[-1] += f" {about(apart)} |" if any(apart) else " |"
    note = f"{wish.hours * 3600:.0f} s of computing each, seeds {', '.join(map(str, seeds))}; products: {wish.products}"
    lines += ["", f"{note}; ± is a standard error, of the last column that of the differences by seed."]
    return "\n".join([*lines, f"{Onnx().conditions()}."])


def about(values: list[float]) -> str:
    """The mean, and its standard error."""
    return f"{mean(values):.4f}" + (f" ± {stdev(values) / len(values) ** 0.5:.4f}" if len(values) > 1 else "")


def main() -> None:
    """Runs one of these, prints its table, and writes it between its marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("forms", "table", "run", "peers", "search"))
    parser.add_argument("--task", default="rows.jsonl")
    parser.add_argument("--metric", default="pearson")
    parser.add_argument("--size", type=float, default=3e6)
    parser.add_argument("--latency", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teacher")
    parser.add_argument("--products", default="float32", choices=Onnx.kinds)
    parser.add_argument("--out", type=Path, default=Path("runs/edge-bench"))
    parser.add_argument("--doc", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "run":
        text = run(args.out)
    elif args.what == "peers":
        text = edge_peers.table(args.task, args.metric, args.seconds, args.seeds[0])
    elif args.what != "search":
        text = {"forms": forms, "table": table}[args.what]()
    else:
        from anyformer.cli import models

        teacher = None if args.teacher is None else models.load(args.teacher, text=False)
        wish = Wish(
            args.task, args.metric, int(args.size), args.latency, hours=args.seconds / 3600, teacher=args.teacher,
            products=args.products,
        )  # fmt: skip
        text = search(wish, teacher, args.seeds, args.out)
    print(text)
    if args.doc is not None:
        mark = args.out.name if args.what == "run" else args.what
        begin, end = f"<!-- edge {mark}: begin -->", f"<!-- edge {mark}: end -->"
        if not report.fill(args.doc, begin, end, f"\n{text}\n"):
            raise SystemExit(f"{args.doc} has no {begin} … {end}")


if __name__ == "__main__":
    main()
