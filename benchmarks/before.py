"""This checkout beside an older one: `python -m benchmarks.before PATH train_step decode load`.

Each measures what its own benchmark of that name does, in the same environment, in turns, beside the peers that are
installed; PATH is another checkout, as `git worktree add PATH COMMIT` makes it.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contest import ROOT, Contestant, Worker, afresh, compete, ratio, spread, started
from benchmarks.report import row, times, verdict

REQUESTS = {"train_step": {"steps": 1}, "decode": {}}  # of those whose processes stay; `load` wants new ones
BOUNDS = ("peak", "machine")  # no contestants: what the machine can do
TIMES: dict[str, Callable[[dict[str, Any]], dict[str, float]]] = {  # seconds, from an answer
    "train_step": lambda answer: {"a step": answer["seconds"][0]},
    "decode": lambda answer: {"prefill": answer["prefill"], "decoding": answer["decode"]},
    "load": lambda answer: {"load": answer["load"]},
}


def both(name: str, old: Path) -> dict[str, Contestant]:
    """The contestants of a benchmark, each of ours twice; the older one is measured against the newer one."""
    contestants = {}
    for key, contestant in importlib.import_module(f"benchmarks.{name}").CONTESTANTS.items():
        if key not in BOUNDS:
            contestants[key] = contestant
            if not contestant.against:
                earlier = replace(contestant, name=f"{contestant.name}, before", against=key, root=old)
                contestants[f"{key}@before"] = earlier
    return contestants


def measured(name: str, old: Path, rounds: int, notes: list[str]) -> list[str]:
    """The rows of a table: seconds of each contestant, how many times as long as ours, and what follows from it."""
    contestants = both(name, old)
    if name != "train_step":
        for root in (old, ROOT):
            Worker("weights", "smollm2", root=root).close()
    if (request := REQUESTS.get(name)) is not None:
        workers = started(name, contestants, notes)
        compete(workers, contestants, 3 if name == "train_step" else 1, request, notes)  # warm-up, as there
        answers = compete(workers, contestants, rounds, request, notes)
        for worker in workers.values():
            worker.close()
    else:
        answers = afresh(name, contestants, rounds, {}, notes)
    seconds = {key: [TIMES[name](a) for a in series] for key, series in answers.items()}
    table = []
    for key, series in seconds.items():
        against = contestants[key].against
        for kind in series[0]:
            taken = [f[kind] for f in series]
            r = ratio(taken, [f[kind] for f in seconds[against]]) if against else None
            beside = (times(r), verdict(r, len(taken))) if r else ("", "")
            table.append(row(f"{contestants[key].name}: {kind}", times(spread(taken), 3), *beside))
    return table


def main() -> None:
    """Prints a table for each of the named benchmarks."""
    parser = argparse.ArgumentParser("python -m benchmarks.before", description=__doc__)
    parser.add_argument("path", type=Path, help="the older checkout")
    parser.add_argument("names", nargs="+", choices=TIMES, metavar="name", help=f"of {', '.join(TIMES)}")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(machine.facts())
    for name in arguments.names:
        notes: list[str] = []
        lines = measured(name, arguments.path.resolve(), arguments.rounds, notes)
        print(row("", "s, median (quartiles)", "time / that of now", "verdict"), *lines, *notes, sep="\n")


if __name__ == "__main__":
    main()
