"""Tutorials: scripts of examples/tutorials in cells, shown with what each cell prints.

A cell begins with `# %%`, as editors know it; one that begins with `# %% [markdown]` is prose in comments. What the
cells print is kept beside the script in a file `.out`, which a test compares with a run. To write it anew:

    python -m docs.site.tutorials [NAME …]
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path

from docs.site.navigation import tutorials

CELL = "# %%"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Cell:
    """A piece of a script: prose as Markdown, or code."""

    prose: bool
    text: str


def cells(script: Path) -> list[Cell]:
    """The cells behind the docstring."""
    parts = re.split(rf"^{CELL}", script.read_text(), flags=re.M)[1:]
    return [cell(part) for part in parts]


def cell(part: str) -> Cell:
    """One cell, from the text behind its mark."""
    head, _, body = part.partition("\n")
    prose = "[markdown]" in head
    if prose:
        body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.splitlines())
    return Cell(prose, body.strip("\n"))


def run(script: Path) -> list[str]:
    """What each cell of code prints, run one after the other in an empty folder."""
    module = sys.modules["tutorial"] = types.ModuleType("tutorial")  # classes can be pickled, which needs a module
    printed = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for c in cells(script):
            if not c.prose:
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(c.text, str(script), "exec", dont_inherit=True), vars(module))
                printed.append(out.getvalue().rstrip())
    return printed


def kept(script: Path) -> list[str]:
    """What the cells printed when their output was written down."""
    return re.split(rf"^{CELL}\n", script.with_suffix(".out").read_text(), flags=re.M)[1:]


def write(script: Path) -> None:
    """Runs a tutorial and keeps what it prints."""
    script.with_suffix(".out").write_text("".join(f"{CELL}\n{text}\n" for text in run(script)))


def page(script: Path) -> str:
    """A tutorial as Markdown: prose, code, and what the code prints."""
    first, _, rest = (ast.get_docstring(ast.parse(script.read_text())) or "").partition("\n")
    blocks = ["# " + first.rstrip("."), rest.strip()]
    outputs = iter(kept(script))
    for c in cells(script):
        blocks += [c.text] if c.prose else [f"```python\n{c.text}\n```"]
        if not c.prose and (out := next(outputs).strip("\n")):
            blocks.append(f"```text\n{out}\n```")
    where = f"examples/tutorials/{script.name}"
    blocks.append(f"The whole script is `{where}`; its output is checked by the tests.")
    return "\n\n".join(block for block in blocks if block) + "\n"


def alike(left: str, right: str, share: float = 0.1) -> bool:
    """Equal texts; numbers with a decimal point may differ by a share, since losses depend on the processor."""
    if NUMBER.sub("#", left).split() != NUMBER.sub("#", right).split():
        return False
    pairs = zip(NUMBER.findall(left), NUMBER.findall(right), strict=True)
    return all(a == b or ("." in a and close(a, b, share)) for a, b in pairs)


def close(left: str, right: str, share: float) -> bool:
    """Two numbers in text that differ by at most that share."""
    a, b = (float(text.replace(",", "")) for text in (left, right))
    return abs(a - b) <= share * max(abs(a), abs(b))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for script in tutorials():
        if not sys.argv[1:] or script.stem in sys.argv[1:]:
            write(script)
