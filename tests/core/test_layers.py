"""Imports by name, which import-linter cannot see, point down as well."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "anyformer"
FIND_PAGES = ("core/pages.py", "core/recipe.py")  # architectures are listed from their folder


def layers() -> dict[str, int]:
    """Folder -> height, from import-linter's contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = next(c["layers"] for c in contracts if c["type"] == "layers")
    return {name.split(".")[1]: -i for i, row in enumerate(rows) for name in row.split(" | ")}


def test_no_module_names_one_of_a_higher_layer_in_a_text() -> None:
    height, upward, checked = layers(), [], 0
    for file in SOURCE.rglob("*.py"):
        place = file.relative_to(SOURCE).as_posix()
        ours = height.get(place.split("/")[0])
        if ours is None or place in FIND_PAGES:  # the package itself stands above all layers
            continue
        checked += 1
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            head, _, rest = node.value.partition(":")[0].partition(".")
            folder = rest.partition(".")[0]
            if head == "anyformer" and rest.replace(".", "_").isidentifier() and height.get(folder, ours) > ours:
                upward.append(f"{place}:{node.lineno} names {node.value}")
    assert checked > 200 and not upward
