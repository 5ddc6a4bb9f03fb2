"""Objects with a display in notebooks. `explain.notebook` draws them, and is imported on the first display."""

from __future__ import annotations

import importlib
from typing import Any


class Shown:
    """Base of recipes, parts, models, taps, masks and the results of runs: pictures, tables, and a tree with paths."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """HTML for Jupyter, VS Code and nbconvert."""
        return _notebook().html(self)

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        """A foldable tree for Treescope, whose buttons copy paths."""
        return _notebook().treescope_tree(self, path, subtree_renderer)


def _notebook() -> Any:
    return importlib.import_module("anyformer.explain.notebook")
