"""What the README shows is run, its Python and its commands in the order in which they stand, and prints what it shows.

A block of `text` is the output of the block before it: its lines come in that order, … stands for anything.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(python|sh|text)\n(.*?)^```$", README, re.S | re.M)


def shown(printed: str, expected: str) -> None:
    """Fails unless the output has the expected lines."""
    place = 0
    for line in filter(None, expected.splitlines()):
        pattern = ".*?".join(map(re.escape, line.rstrip().split("…")))
        match = re.compile(pattern).search(printed, place)
        assert match, f"not in the output: {line!r}\n{printed[place:]}"
        place = match.end()


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The output of each block: Python goes on in one process, which runs the commands as they come."""
    folder = tmp_path_factory.mktemp("readme")
    script = ["import subprocess as _s, sys as _y"]
    for language, block in BLOCKS:
        if language != "text":
            script += ['print("\\0", flush=True)']
            script += [block] if language == "python" else [f"_s.run(['bash', '-ec', {block!r}], check=True)"]
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(
        [sys.executable, "-u", "-c", "\n".join(script)],
        cwd=folder, env={**os.environ, **paths}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.split("\0\n")[1:]


def test_every_block_runs_and_prints_what_stands_below_it(printed: list[str]) -> None:
    assert len(printed) == sum(language != "text" for language, _ in BLOCKS) > 5
    runs, checked = -1, 0
    for language, block in BLOCKS:
        if language == "text":
            shown(printed[runs], block)
            checked += 1
        else:
            runs += 1
    assert checked >= 5


def test_an_output_that_differs_is_found() -> None:
    shown("a\nbcd\ne", "a\nb…d\n")
    with pytest.raises(AssertionError, match="not in the output: 'b'"):
        shown("b\na\n", "a\nb\n")


def test_it_is_short_and_names_the_two_commands_of_a_newcomer() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert len(README.splitlines()) <= 150 and "pip install" in README
    assert all(f"make {name}" in README and f"\n{name}:" in makefile for name in ("demo", "test", "docs"))
