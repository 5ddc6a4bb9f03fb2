"""Tests that a child of a worker runs are reported as if the worker had run them, and the child's end ends no run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
import sys
from tests.child import Runner
def pytest_configure(config):
    if hasattr(config, "workerinput"):
        counted = []
        add = lambda notes: print("counted", notes, file=sys.__stderr__)
        config.pluginmanager.register(Runner(lambda session: None, lambda: FULL, counted.copy, add))
"""
TESTS = """
import os, signal, warnings
from pathlib import Path
import pytest
@pytest.fixture(scope="session")
def made(tmp_path_factory):
    yield (tmp_path_factory.mktemp("made") / "file")
    print("torn down in", os.getpid())
    assert os.environ.get("WORD") != "ends", "the end went wrong"
def note(request):
    with open("processes", "a") as file:
        print(os.getpid(), os.getppid(), request.node.name, file=file)
def test_passes(request, made):
    note(request)
    made.write_text("x")
def test_fails(request):
    note(request)
    print("said before")
    assert [1, 2] == [1, 3]
def test_dies(request):
    note(request)
    os.kill(os.getpid(), signal.SIGKILL)
def test_leaves(request):
    os._exit(3)
def test_warns(request):
    note(request)
    class Own(UserWarning): pass
    warnings.warn("take care", Own)
@pytest.mark.skipif(True, reason="not today")
def test_waits(): pass
@pytest.mark.xfail(strict=True, reason="known")
def test_is_known(): assert False
def test_last(request, made):
    note(request)
    made.write_text("x")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="children of workers are forked under Linux alone")
@pytest.mark.parametrize("full", [True, False])
def test_outcomes_words_and_the_end_of_a_child(full: bool, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(PLUGIN.replace("FULL", str(full)))
    (tmp_path / "test_it.py").write_text(TESTS)
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    words = ["-n", "1", "-p", "no:cacheprovider", "-rA", "-m", "not slow"]
    run = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": path, "WORD": "ends"})  # fmt: skip
    assert "3 failed, 3 passed, 1 skipped, 1 xfailed, 1 warning" in run.stdout, run.stdout + run.stderr
    assert ("2 errors" if full else "1 error") in run.stdout
    assert "test_it.py::test_dies: the process ended with signal SIGKILL" in run.stdout
    assert "test_it.py::test_leaves: the process exited: 3" in run.stdout
    assert "At index 1 diff: 2 != 3" in run.stdout and "said before" in run.stdout and "not today" in run.stdout
    assert "take care" in run.stdout and "AssertionError: the end went wrong" in run.stdout
    rows = [row.split() for row in (tmp_path / "processes").read_text().splitlines()]
    assert [row[2] for row in rows] == [
        "test_passes",
        "test_fails",
        "test_dies",
        "test_warns",
        "test_last",
    ]  # once each
    children = [row[0] for row in rows]
    assert len({row[1] for row in rows}) == 1 and len(set(children)) == (5 if full else 2)
    assert children[3] != children[2] and run.returncode == 1
