"""How good each part is: `python -m benchmarks.quality` trains every row and writes docs/attention.md.

A row is a small model that differs from the others of its group by one part, or a probe. Each run is a process's own
and leaves a file in benchmarks/results/quality/, so a command that was stopped goes on where it was, and two runs go at
once, a thread each. First every row runs once; then those whose figure lies within `NEAR` of the first row's of their
group, or that decide a claim which the noise hides, with two more seeds.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import time

from benchmarks import machine
from benchmarks.quality_results import NEAR, SEEDS, Found, Run, bits, file, results, setup
from benchmarks.report import replace


def main() -> None:
    """Runs what is missing, then writes the report."""
    parser = argparse.ArgumentParser("python -m benchmarks.quality", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "report"), default="all", help="report: nothing is trained")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each")
    parser.add_argument(
        "--only", default="", help="groups whose name contains this: mixers, positions, probe: recall …"
    )
    arguments = parser.parse_args()
    if arguments.what == "all":
        for more in (False, True):
            train([run for run in planned(more) if arguments.only in run[0] and not known(run)], arguments.jobs)
    from benchmarks import quality_report

    quality_report.write()


def planned(more: bool) -> list[Run]:
    """Every row once; with `more`, the other seeds of rows that are near, or of claims that the noise hides."""
    from benchmarks.quality_claims import undecided
    from benchmarks.quality_models import GROUPS
    from benchmarks.quality_probes import NAMES, TASKS

    first = [(group, name, SEEDS[0]) for group, rows in GROUPS.items() for name in rows]
    first.sort(key=lambda run: not GROUPS[run[0]][run[1]].scalings)  # it is the twin of the others, not they of it
    first += [(f"probe: {task}", name, SEEDS[0]) for name in NAMES for task in TASKS]
    if not more:
        return first
    finished = results()
    hidden = undecided(finished)
    near = [
        (group, name)
        for group, rows in GROUPS.items()
        for name in rows
        if (group, name) in hidden or abs(bits(finished, group, name) - bits(finished, group, next(iter(rows)))) < NEAR
    ]
    return [(group, name, seed) for seed in SEEDS[1:] for group, name in near]


def train(runs: list[Run], jobs: int) -> None:
    """Runs them, some at a time, each in a new process."""
    if not runs:
        return
    print(f"{len(runs)} runs, {jobs} at a time", flush=True)
    began, context = time.perf_counter(), multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        waiting = {pool.submit(one, run): run for run in runs}
        for count, done in enumerate(concurrent.futures.as_completed(waiting), 1):
            minutes = (time.perf_counter() - began) / 60
            print(
                f"  {count}/{len(runs)}, {minutes:.0f} min: {', '.join(map(str, waiting[done]))}: {done.result()}",
                flush=True,
            )


def one(run: Run) -> str:
    """One run in this process; what it found, in short."""
    import torch

    from benchmarks import quality_probes, quality_text

    torch.set_num_threads(1)
    group, name, seed = run
    if group.startswith("probe: "):
        result = quality_probes.one(group.removeprefix("probe: "), name, seed)
        summary = f"{result['right']:.1%} right after {result['steps']} steps"
    else:
        result = twin(run) or quality_text.one(group, name, seed)
        summary = f"{result['bits']['1']:.3f} bits a byte"
    path = file(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps({"machine": machine.facts(1), **result, "group": group, "name": name}, indent=1) + "\n")
    return f"{summary}, {result['seconds']:.0f} s"


def twin(run: Run) -> Found | None:
    """The result of the same model in another group, which need not be trained again."""
    from benchmarks.quality_models import GROUPS, fitted

    v = GROUPS[run[0]][run[1]]
    recipe = repr(fitted(v))
    for (group, _), runs in results().items():
        for result in runs:
            if (
                group in GROUPS
                and (result["recipe"], result["seed"]) == (recipe, run[2])
                and {*v.scalings} <= {*result["scaled"]}
            ):
                return result
    return None


def known(run: Run) -> bool:
    """Is there a result of this run, of the size that runs have now?"""
    return file(run).exists() and json.loads(file(run).read_text())["setup"] == setup(run[0])


if __name__ == "__main__":
    main()
