"""Contestants in processes of their own, measured in turns.

Each contestant lives in a fresh process: no library sees the allocator, the thread pool or the imports of another, and
a peer may have an environment of its own. All processes stay alive for the whole run; only one works at a time, and
the order rotates from round to round, so that whatever else the machine does falls on everybody alike. What is
compared are the times of the same round.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROCESS = contextlib.ExitStack()  # of a contestant, open until its process ends
THREADS = int(os.environ.get("BENCH_THREADS", "2"))


class Missing(Exception):
    """A contestant that is not installed here, or weights that cannot be had; the message says what to do."""


class Died(Exception):
    """A contestant whose process ended; the message is the end of what it said."""


def python_of(env: str) -> str:
    """The interpreter of an environment: "" is this one, others are `.venv-NAME`, or `$BENCH_NAME_PYTHON`.

    Raises:
        Missing: if there is none.
    """
    if not env:
        return sys.executable
    interpreter = os.environ.get(f"BENCH_{env.upper()}_PYTHON") or str(ROOT / f".venv-{env}" / "bin" / "python")
    if not Path(interpreter).exists():
        raise Missing(f"no .venv-{env}: `make bench` makes it (or set BENCH_{env.upper()}_PYTHON)")
    return interpreter


class Worker:
    """One contestant in its own process: `ask(**request)` calls the function that its module's `build` made.

    The process runs `python -m benchmarks.worker MODULE NAME`, of this checkout or of the one at `root`, and talks in
    lines of JSON.
    """

    def __init__(self, module: str, name: str, env: str = "", root: Path = ROOT):
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by `close`)
        paths = [str(root), *([] if env else [str(root / "src"), os.environ.get("PYTHONPATH", "")])]
        variables = {
            **os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(THREADS),
            "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [python_of(env), "-m", "benchmarks.worker", module, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=root, env=variables,
        )  # fmt: skip
        self.facts = self._answer()  # what `build` says about itself, once it is ready

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead: `_answer` says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait(60)
            self._errors.seek(0)
            errors = self._errors.read()[-2000:].strip()
            self.close()
            raise Died(f"its process ended with code {code}: {errors}")
        answer = json.loads(line)
        if "missing" in answer:
            self.close()
            raise Missing(answer["missing"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait(60)


@dataclass(frozen=True)
class Contestant:
    """A row of the table: its name, the environment it lives in, whom it is compared with, and of which checkout it is.

    Its key is the name that its module's `build` takes; what follows an @ tells checkouts apart.
    """

    name: str
    env: str = ""
    against: str = ""  # the contestant of ours that this peer is measured against
    root: Path = ROOT

    def worker(self, module: str, key: str) -> Worker:
        """Its process."""
        return Worker(module, key.partition("@")[0], self.env, self.root)


def started(module: str, contestants: Mapping[str, Contestant], notes: list[str]) -> dict[str, Worker]:
    """A worker for each contestant that is installed; why a peer is missing goes to `notes`.

    Raises:
        Missing, Died: if it is no peer, without which there is nothing to compare.
    """
    workers = {}
    for key, contestant in contestants.items():
        try:
            workers[key] = contestant.worker(module, key)
            print(f"  ready: {contestant.name}", flush=True)
        except (Missing, Died) as error:
            _leave(contestant, error, notes)
    return workers


def _leave(contestant: Contestant, error: Exception, notes: list[str]) -> None:
    """A peer that cannot take part is a note; anybody else is an error."""
    if not contestant.against:
        raise error
    why = " ".join(str(error).split())[-300:]
    notes.append(f"{contestant.name} was not measured: {why}.")
    print(f"  missing: {contestant.name}: {why}", flush=True)


def turns(names: list[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, name): everybody once a round, each round begun by another and every second one backwards."""
    for r in range(rounds):
        order = names[r % len(names) :] + names[: r % len(names)]
        for name in order if r % 2 == 0 else reversed(order):
            yield r, name


Answers = dict[str, list[dict[str, Any]]]  # of each contestant, one a round


def compete(
    workers: dict[str, Worker],
    contestants: Mapping[str, Contestant],
    rounds: int,
    request: dict[str, Any],
    notes: list[str],
) -> Answers:
    """The answers of each contestant, round by round; a request carries the number of its round. A peer that dies
    leaves the contest, and `workers`."""
    answers = _play(contestants, list(workers), rounds, lambda r, name: workers[name].ask(**request, round=r), notes)
    for name in set(workers) - set(answers):
        del workers[name]
    return answers


def afresh(
    module: str, contestants: Mapping[str, Contestant], rounds: int, request: dict[str, Any], notes: list[str]
) -> Answers:
    """As `compete`, but with a new process for every turn; an answer includes the facts of `build`."""

    def turn(number: int, name: str) -> dict[str, Any]:
        worker = contestants[name].worker(module, name)
        answer = worker.facts | worker.ask(**request, round=number)
        worker.close()
        return answer

    return _play(contestants, list(contestants), rounds, turn, notes)


def _play(
    contestants: Mapping[str, Contestant],
    names: list[str],
    rounds: int,
    turn: Callable[[int, str], dict[str, Any]],
    notes: list[str],
) -> Answers:
    answers: Answers = {name: [] for name in names}
    for r, name in turns(names, rounds):
        if name not in answers:
            continue
        print(f"\r  round {r + 1}/{rounds}", end="", flush=True)
        try:
            answers[name].append(turn(r, name))
        except (Missing, Died) as error:
            _leave(contestants[name], error, notes)
            del answers[name]
    print()
    return answers


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median and the quartiles below and above it."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def ratio(peer: list[float], ours: list[float]) -> tuple[float, float, float]:
    """How many times as long the peer takes: median and quartiles of the ratios within each round."""
    return spread([p / o for p, o in zip(peer, ours, strict=True)])
