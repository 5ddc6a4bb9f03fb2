"""For all tests: where they put what they make, which worker runs which, and a table of what was left out."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

WIDTH = 180  # of a line in the table
LEFT_OUT = ": left out: "  # between what a test of the contract would have checked and the reason
omitted: set[tuple[str, str, str]] = set()  # (check, subject, why): what the contract has no case for
spent: dict[str, float] = {}  # seconds of processor time of each group of the contract, a page or a composition
memory = [(0, "")]  # the largest resident memory of a process that ran tests, in bytes, and the test that took it there
MOST = 10**9  # bytes that a worker or a child of it may hold
rises: dict[str, int] = {}  # a test -> bytes by which it raised the largest resident memory of its process
held = [0]  # the resident memory behind the last collection, in bytes
GROWTH = 50_000_000  # bytes that tests may leave until the next collection
FULL = 660_000_000  # bytes behind a group with which the child of a worker ends
full = [False]  # True when this process has come to that
ASKS = "asks a child"  # the name of the plugin of a process that has a child run its tests
groups = [0]  # that this process has run
HIDDEN = ("datasets", "deepspeed", "faiss", "hqq")  # which transformers imports where it finds them, and no oracle asks
SEVERAL = 20  # groups between two collections of all


# Each process that a test starts would compile the library, which takes a second, and each worker all tests
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
gc.set_threshold(
    50_000, 20, 20
)  # transformers alone holds a million objects: each walk over them took a tenth of the run


def pytest_configure(config: pytest.Config) -> None:
    """A worker has a child run its tests."""
    if hasattr(config, "workerinput") and sys.platform == "linux":
        from tests.child import Runner

        config.pluginmanager.register(Runner(prepare, lambda: full[0], noted, add), ASKS)


def found(name: str, package: str | None = None, find: Any = importlib.util.find_spec) -> Any:
    """The place of a module, as `importlib.util.find_spec` says it; the hidden ones can be imported all the same."""
    return None if name in HIDDEN else find(name, package)


importlib.util.find_spec = found


def prepare(session: pytest.Session) -> None:
    """Imports and computes for nearly every page of the contract, before a worker's children part."""
    if any("test_contract[" in item.nodeid for item in session.items):
        import torch._inductor.compile_fx  # noqa: F401

        from anyformer.contract.hyper import harvest
        from anyformer.contract.oracle import available

        harvest()
        if available():
            import transformers.modeling_utils  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def _own_token_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests tokenise does not stay in the user's cache; processes that tests start inherit it."""
    os.environ["ANYFORMER_TOKENS"] = str(tmp_path_factory.getbasetemp() / "tokens")


@pytest.fixture(autouse=True, scope="session")
def _seeds_without_traces() -> Iterator[None]:
    """Seeds of the processor alone where there is no other device: for each that there might be, PyTorch writes down
    the stack, which is deep under pytest; a case of the contract took 5 ms longer."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        if torch.accelerator.device_count() == 0:
            patch.setattr(torch, "manual_seed", lambda seed: torch.default_generator.manual_seed(int(seed)))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_wait_for_the_disk() -> Iterator[None]:
    """No waiting for the disk, which took 6 ms for each of 20 files of a small run: they need not outlive the
    machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _curves_drawn_once_of_a_kind() -> Iterator[None]:
    """Runs with as many panels share one drawing of their curves, which takes 0.35 s, a third of a small run."""
    from anyformer.train import plots

    draw, drawn = plots._draw, dict[tuple[int, ...], tuple[bytes, str]]()

    @functools.wraps(draw)
    def once(rows: list[dict[str, Any]], unit: str) -> tuple[bytes, str]:
        kind = tuple(len(names) for _, names in plots._panels(rows))
        drawn[kind] = drawn.get(kind) or draw(rows, unit)
        return drawn[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_draw", once)
        yield


@pytest.fixture(scope="module")
def forked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes of Python that tests start are forks of one that has imported the library; not in `make test-all`."""
    from tests.forked import Popen

    with pytest.MonkeyPatch.context() as patch:
        if "not slow" in request.config.option.markexpr:
            patch.setattr(subprocess, "Popen", Popen)
        yield


@pytest.fixture(autouse=True, scope="session")
def _little_memory_read() -> Iterator[None]:
    """Machines are measured with 32 MiB: the 1 GiB that a real figure needs would be the most that a worker holds."""
    from anyformer.core.machine import read_rate
    from anyformer.edge import machine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "read_rate", lambda: read_rate(rows=2**10))
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker runs a whole file, and so makes its fixtures once; the contract is grouped by page."""
    marks: dict[str, Any] = {}
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            name = item.nodeid.partition("::")[0]
            item.add_marker(marks.setdefault(name, pytest.mark.xdist_group(name)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Notes what the contract says nothing about, of the pages that are run.

    Raises:
        pytest.UsageError: in a worker that lost the groups: each fixture and model would be made several times.
    """
    gc.collect()
    gc.freeze()  # what was imported and collected stays to the end; no later collection looks at it
    if getattr(session.config.option, "loadgroup", False) and not all("@" in i.nodeid for i in session.items):
        raise pytest.UsageError("xdist deals tests without their groups; install what constraints.txt says")
    run = [i for i in session.items if "test_contract[" in i.nodeid]
    if pages := set(map(group, run)):
        from anyformer.contract.check import omissions

        omitted.update(row for row in omissions() if {row[1], row[1].partition("/")[0]} & pages)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Counts the processor time of the contract's pages, and who needs the most memory."""
    if item.config.pluginmanager.has_plugin(ASKS):
        return (yield)
    begin, before = time.process_time(), most_resident()
    result = yield
    if (most := most_resident()) > before:
        memory[0] = max(memory[0], (most, item.nodeid))
        rises[item.nodeid] = most - before
    if "test_contract[" in item.nodeid:
        spent[group(item)] = spent.get(group(item), 0.0) + time.process_time() - begin
    return result


def resident() -> int:
    """The memory that this process holds now, in bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def most_resident() -> int:
    """The most memory that this process has held, in bytes; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """The return of memory to the system behind each group, when its fixtures are gone, and behind a test that left
    much: models are cycles, which stay until a collection, and freed memory stays in pieces."""
    result = yield
    over = nextitem is None or group(nextitem) != group(item)
    if over or resident() > held[0] + GROWTH:
        collect(over)
        held[0] = resident()
        full[0] = over and held[0] > FULL
    return result


def group(item: pytest.Item) -> str:
    """The name of the tests that one worker runs in a row: the tests of a file, the contract's cases of a page."""
    mark = item.get_closest_marker("xdist_group")
    return "" if mark is None else mark.args[0]


def collect(over: bool) -> None:
    """A collection. Behind a group, what is left is mostly modules, a million objects: no later one looks at them, but
    one in a while."""
    if over:
        groups[0] += 1
        if contract := sys.modules.get("anyformer.contract"):
            contract.forget()
        if groups[0] % SEVERAL == 0:
            gc.unfreeze()
    gc.collect()
    if over:
        gc.freeze()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


Notes = tuple[dict[str, float], tuple[int, str], dict[str, int]]


def noted() -> Notes:
    """The counts of this process since it was last asked."""
    said = dict(spent), memory[0], dict(rises)
    spent.clear()
    rises.clear()
    return said


def add(notes: Notes) -> None:
    """Adds the counts of another process."""
    seconds, most, risen = notes
    for name in seconds:
        spent[name] = spent.get(name, 0.0) + seconds[name]
    memory[0] = max(memory[0], (most[0], most[1]))
    rises.update(risen)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Sends the counts of a worker to the process that started it."""
    if hasattr(session.config, "workeroutput"):
        memory[0] = max(memory[0], (most_resident(), "collection"))
        session.config.workeroutput["notes"] = json.dumps([sorted(omitted), noted()])


def large(config: pytest.Config) -> bool:
    """True if a worker held more than it may; without workers, one process runs all."""
    return config.pluginmanager.has_plugin("dsession") and memory[0][0] > MOST


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    rows, notes = json.loads(getattr(node, "workeroutput", {}).get("notes", """[[], [{}, [0, ""], {}]]"""))
    omitted.update(tuple(row) for row in rows)
    add(notes)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One table: what was left out and why, the cases that were skipped and those that were never made."""
    skipped = [reason(report) for report in terminalreporter.stats.get("skipped", ())]
    lines = [*table("skipped", skipped), *table("no case", [(check, why) for check, _, why in omitted])]
    if lines:
        terminalreporter.section("left out, and why")
    for line in lines:
        terminalreporter.write_line(line)
    if spent:
        most = ", ".join(f"{name} {seconds:.0f}" for name, seconds in Counter(spent).most_common(12))
        terminalreporter.write_line(f"processor seconds of the contract, {sum(spent.values()):.0f} in all: {most}")
    steps = Counter({name.partition("::")[2].partition("@")[0]: size // 10**6 for name, size in rises.items()})
    highest = ", ".join(f"{name} {size}" for name, size in steps.most_common(8))
    size, where = memory[0]
    terminalreporter.write_line(f"a test process held {size / 1e6:,.0f} MB at most; the highest steps: {highest}")
    if large(config):
        why = f"the limit is {MOST / 1e6:,.0f} MB, FULL in tests/conftest.py is what a child may start a group with"
        terminalreporter.write_line(f"TOO LARGE: a worker held {size / 1e6:,.0f} MB in {where}; {why}", red=True)


def reason(report: Any) -> tuple[str, str]:
    """What a skipped test would have checked, and why it was skipped."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    check, _, why = text.removeprefix("Skipped: ").rpartition(LEFT_OUT)
    return check or report.nodeid.partition("::")[0], why


def table(title: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    """A line for each reason, the most frequent first: how often, the reason, and what was to be checked."""
    checks: dict[str, list[str]] = {}
    for check, why in rows:
        checks.setdefault(why, []).append(check)
    for why, found in sorted(checks.items(), key=lambda item: -len(item[1])):
        names = ", ".join(dict.fromkeys(sorted(found)))
        yield shortened(f"{title} {len(found):5}  {why}: {names}")


def shortened(line: str) -> str:
    """A line of the table, cut at its width."""
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
