"""A forked process is what the interpreter would have been: words, folder, environment, files, end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.apart import apart

pytestmark = pytest.mark.usefixtures("forked")
SAY = """import os, random, sys
print(__name__, sys.argv[1:], os.getcwd(), os.environ["WORD"], sys.stdin.read(), "anyformer.train" in sys.modules)
print("wrong", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("kind", ["-c", "-m", "file"])
def test_words_folder_environment_files_and_status(kind: str, tmp_path: Path) -> None:
    (tmp_path / "said.py").write_text(SAY)
    first = {"-c": ["-c", SAY], "-m": ["-m", "said"], "file": [str(tmp_path / "said.py")]}[kind]
    environment = {**os.environ, "WORD": "a b", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, *first, "7", "last"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, input="given", capture_output=True, text=True)
    assert run.returncode == 7 and run.stderr == "wrong\n"
    fork = subprocess.Popen.__module__ != "subprocess"
    assert run.stdout == f"__main__ ['7', 'last'] {tmp_path} a b given {fork}\n"


def test_ends_that_are_no_status() -> None:
    for code, status, said in (
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import sys; sys.exit('no')", 1, "no"),
        ("pass", 0, ""),
        ("import atexit; atexit.register(print, 'late')", 0, "late"),
    ):
        run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert run.returncode == status and said in run.stdout


def test_a_signal_ends_it_and_is_its_status() -> None:
    process = subprocess.Popen([sys.executable, "-c", "print('begun', flush=True); input()"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == b"begun\n" and process.poll() is None
    process.kill()
    assert process.wait(30) == -signal.SIGKILL


def test_a_test_apart_passes_fails_and_is_skipped() -> None:
    left: list[int] = []
    apart(left.append)(1)
    assert left == []  # it was appended elsewhere
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        apart(lambda: print(1 / 0))()
    with pytest.raises(pytest.skip.Exception, match="not here"):
        apart(lambda: pytest.skip("not here"))()
    with pytest.raises(AssertionError, match="ended with 9"):
        apart(lambda: os.kill(os.getpid(), signal.SIGKILL))()
