"""Eight unlike clients learn together what is positive, beside pooled data and each alone; and what privacy costs.

    python examples/federated.py runs/federated --doc docs/federated.md    # writes the tables; runs that are there stay

Sentences of four sources that people rated (vaderSentiment 3.3.2, MIT; Hutto and Gilbert, 2014): films, products,
editorials, tweets. Two clients of each: one has mostly positive sentences, one mostly negative ones, of unlike numbers.
The model is BERT-tiny (2 layers of 128) with LoRA. A third of each client's sentences is held out.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import documents
import numpy as np
import torch
from data import fetch

import anyformer as af
from anyformer.federate import federate
from anyformer.federate.federate import listed
from anyformer.federate.options import FederateOptions
from anyformer.train import finetune
from anyformer.train.finetune import goal_of, kind_of, read_data

SOURCES = {"film": "movieReviewSnippets", "product": "amazonReviewSnippets", "editorial": "nytEditorialSnippets",
           "tweet": "tweets"}  # fmt: skip
SIZES = {"film": (600, 300), "product": (300, 150), "editorial": (150, 300), "tweet": (600, 150)}
MAJORITY = 0.8  # of the positive sentences of the first client of a source, of the negative ones of the second
ROUNDS, LR, HELD_OUT, SMALL = 5, 3e-3, 1 / 3, 6
SPLIT: dict[str, Any] = {"held_out": HELD_OUT, "context": 40}
COMMON: dict[str, Any] = {"batch": 32, "device": "cpu", "quiet": True, "resume": "auto", **SPLIT}
Right = dict[str, np.ndarray]  # by client, 1 for each sentence that was right, else 0
# of the runs with many clients; a client takes one step of SGD, as long as the clip allows
PRIVATE: dict[str, Any] = {"local_steps": 1, "batch": 4, "lr": 10.0, "optimizer": "sgd", "grad_clip": float("inf"),
                           "weight_decay": 0.0, "rank": 1, "schedule": "constant", "clip": 0.5, "sample": 0.2,
                           "processes": 2, "blind": True}  # fmt: skip

FEDERATED: dict[str, dict[str, Any]] = {
    "federated": {}, "federated, secure, a fifth drops": {"secure": True, "drop": 0.2},
    "federated, epsilon 8": {"epsilon": 8.0, "rank": 1},
}  # fmt: skip


def sentences() -> dict[str, list[tuple[str, str]]]:
    """(text, label) of each source, shuffled; those within 0.5 of neutral are left out."""
    inner, found = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", {}
    with (
        tarfile.open(fetch("vaderSentiment==3.3.2")) as outer,
        tarfile.open(fileobj=outer.extractfile(inner)) as archive,
    ):
        for name, file in SOURCES.items():
            content = archive.extractfile(f"hutto_ICWSM_2014/{file}_GroundTruth.txt")
            assert content is not None
            rows = [line.split("\t") for line in content.read().decode("utf-8", errors="replace").splitlines()]
            scored = [(row[2], float(row[1])) for row in rows if len(row) == 3]
            found[name] = [(t, "positive" if s > 0 else "negative") for t, s in scored if abs(s) >= 0.5]
            random.Random(0).shuffle(found[name])
    return found


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    """A client's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def unlike(folder: Path) -> Path:
    """The files of eight clients."""
    for name, rows in sentences().items():
        by = {label: [row for row in rows if row[1] == label] for label in ("positive", "negative")}
        for i, size in enumerate(SIZES[name]):
            many, few = ("positive", "negative") if i == 0 else ("negative", "positive")
            part = [by[many].pop() for _ in range(round(size * MAJORITY))]
            part += [by[few].pop() for _ in range(size - len(part))]
            random.Random(1).shuffle(part)
            write(folder / f"{name}-{'ab'[i]}.csv", part)
    return folder


def many(folder: Path, count: int) -> Path:
    """The files of many small clients of one source each."""
    parts = [rows[i : i + SMALL] for rows in sentences().values() for i in range(0, len(rows) - SMALL + 1, SMALL)]
    random.Random(2).shuffle(parts)
    for i, part in enumerate(parts[:count]):
        write(folder / f"{i:04d}.csv", part)
    write(folder.parent / "test.csv", [row for part in parts[count : count + 300] for row in part])
    return folder


def right(model: Any, files: dict[str, Path], seed: int) -> Right:
    """Of each sentence that a client holds out, whether the model is right, by client."""
    found = {}
    for name, path in files.items():
        o = FederateOptions("bert-tiny", clients=path.parent, seed=seed, **SPLIT).of(path)
        task, _, context, columns = kind_of(model, data := read_data(o), o, least=1)
        goal = goal_of(model, task, ("negative", "positive"), context, columns, data, o)
        batches = [(batch.pop("labels"), batch) for batch in goal.held_out(64)]
        with torch.no_grad():
            said = [model(**inputs).logits.argmax(-1) == labels for labels, inputs in batches]
        found[name] = torch.cat(said).double().numpy()
    return found


def learned(folder: Path, make: Callable[[], Any]) -> Any:
    """The model of a run, which is made if it is not there."""
    if not (folder / "model").exists():
        make()
    return af.load(folder / "model").eval()


def eight(out: Path, seeds: int, rounds: int) -> Iterator[str]:
    """The first table, after each seed: accuracy of each client's held-out sentences."""
    files = listed(unlike(out / "clients"))
    rows: dict[str, list[Right]] = {}
    runs: list[tuple[str, Path]] = []
    size = {str(path): float(len(path.read_text().splitlines()) - 1) for path in files.values()}
    for seed in range(seeds):
        mine: dict[str, Any] = {"seed": seed, "lr": LR, **COMMON}

        def tuned(name: str, data: Any, seed: int = seed, mine: dict[str, Any] = mine) -> Right:
            where = out / f"{name}-{seed}"
            model = learned(where, lambda: finetune("bert-tiny", data, epochs=rounds, out=where, **mine))
            return right(model, files, seed)

        rows.setdefault("pooled", []).append(tuned("pooled", size))
        alone = {name: tuned(name, path) for name, path in files.items()}
        rows.setdefault("each alone, its own", []).append({name: alone[name][name] for name in files})
        every = {name: np.mean([found[name] for found in alone.values()], 0) for name in files}
        rows.setdefault("each alone, those of all", []).append(every)
        for name, more in FEDERATED.items():
            where = out / f"{re.sub('[^a-z0-9]+', '-', name)}-{seed}"
            options = {"clients": out / "clients", "rounds": rounds, "out": where, "processes": 2, **mine, **more}
            model = learned(where, lambda options=options: federate("bert-tiny", **options))  # type: ignore[misc]
            rows.setdefault(name, []).append(right(model, files, seed))
            runs += [(name, where)] * (seed == 0)
        yield table(rows, list(files), runs)


def table(rows: dict[str, list[Right]], names: list[str], runs: list[tuple[str, Path]]) -> str:
    """The first table as Markdown."""
    lines = [f"| | all | {' | '.join(names)} |", f"|{'---|' * (2 + len(names))}"]
    for name, found in rows.items():
        parts = [f"{mean(float(one[n].mean()) for one in found):.1%}" for n in names]
        lines.append(f"| {name} | {interval([joined(one) for one in found])} | {' | '.join(parts)} |")
    gap = [joined(p) - joined(f) for p, f in zip(rows["pooled"], rows["federated"], strict=True)]
    lines += ["", f"Pooled minus federated, sentence by sentence: {interval(gap)}; {len(gap)} seed(s).", ""]
    return "\n".join([*lines, *(told(name, where) for name, where in runs)])


def joined(one: Right) -> np.ndarray:
    """All sentences of all clients."""
    return np.concatenate(list(one.values()))


def interval(found: list[np.ndarray]) -> str:
    """The mean over sentences and seeds, and 1.96 standard errors over the sentences of one seed."""
    values = np.concatenate(found)
    return f"{100 * values.mean():.1f} ± {196 * values.std() / len(found[0]) ** 0.5:.1f} %"


def told(name: str, where: Path) -> str:
    """A line on the numbers that travelled and the epsilon that was spent."""
    made = json.loads((where / "federated.json").read_text())
    row, client = made["rounds"][1:], next(iter(made["clients"].values()))
    dropped, aborted = sum(len(r["dropped"]) for r in row), sum(bool(r["aborted"]) for r in row)
    text = (
        f"- {name}: {client['numbers']:,} numbers travel; a round: {mean(r['up'] for r in row) / 1e6:.2f} MB up, "
        f"{mean(r['down'] for r in row) / 1e6:.2f} MB down; {dropped} answers were lost, {aborted} of {len(row)} "
        "rounds aborted"
    )
    share = [r["clipped"] for r in row if r["clipped"] is not None]
    return f"{text}; epsilon {row[-1]['epsilon']:.2f}, {mean(share):.0%} of updates clipped" if share else text


def small(out: Path, count: int, rounds: int) -> Iterator[str]:
    """The second table, after each row: many clients of few sentences, with and without privacy."""
    many(out / "many", count)
    lines = ["| clients | epsilon | noise x clip | accuracy |", "|---|---|---|---|"]
    for epsilon in (8.0, None, 2.0):
        where, options = out / f"many-{epsilon}", {**COMMON, **PRIVATE, "rounds": rounds, "epsilon": epsilon}
        options |= {"clients": out / "many", "out": where}
        model = learned(where, lambda options=options: federate("bert-tiny", **options))  # type: ignore[misc]
        made = json.loads((where / "federated.json").read_text())
        spent, noise = made["rounds"][-1]["epsilon"], re.findall(r"noise (\S+)", " ".join(made["assumptions"] or []))
        found = interval([joined(right(model, {"test": out / "test.csv"}, 0))])
        told_epsilon, told_noise = "none" if spent is None else f"{spent:.2f}", (noise or ["0"])[0]
        lines.append(f"| {count:,} of {SMALL} sentences | {told_epsilon} | {told_noise} | {found} |")
        yield "\n".join(lines)


def main() -> None:
    """Runs all, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--doc", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--private-rounds", type=int, default=20)
    parser.add_argument("--only", choices=["eight", "many"])
    o = parser.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    made = {} if o.only == "many" else {"eight": eight(o.out, o.seeds, o.rounds)}
    made |= {} if o.only == "eight" else {"many": small(o.out, o.many, o.private_rounds)}
    while made:  # in turn; what is there is written, however far a run comes
        for name, tables in list(made.items()):
            if (text := next(tables, None)) is None:
                del made[name]
                continue
            print(f"{text}\n", flush=True)
            if o.doc is not None:
                documents.put(o.doc, f"<!-- {name}: begin -->", f"<!-- {name}: end -->", text)


if __name__ == "__main__":
    main()
