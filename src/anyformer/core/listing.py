"""The pages as files: names, first lines and sizes, read from their source. Nothing is imported or built."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parent.parent / "models"


@dataclass(frozen=True)
class Entry:
    """A page: the first line of its docstring, and the number of parameters of each size."""

    name: str
    summary: str
    sizes: dict[str, int]


def names() -> list[str]:
    """The names of all pages."""
    return sorted(f.stem for f in MODELS.glob("*.py") if not f.stem.startswith("_"))


def entry(name: str) -> Entry:
    """The page of that name, from its docstring and its `PARAMETERS`."""
    tree = ast.parse((MODELS / f"{name}.py").read_text(encoding="utf-8"))
    counts = next(n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "PARAMETERS")
    return Entry(name, (ast.get_docstring(tree) or "").partition("\n")[0], ast.literal_eval(counts))
