"""Objects with a display in notebooks.

The module that draws them stands above them: the package attaches it (`renderer`), and it is imported on the first
display.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

renderer: Callable[[], Any] | None = None  # returns the module with `html` and `treescope_tree`


class Shown:
    """Base of recipes, parts, models, taps, masks and the results of runs: pictures, tables, and a tree with paths."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """HTML for Jupyter, VS Code and nbconvert."""
        return _renderer().html(self)

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        """A foldable tree for Treescope, whose buttons copy paths."""
        return _renderer().treescope_tree(self, path, subtree_renderer)


def _renderer() -> Any:
    assert renderer is not None, "the package attaches it before any of its modules is imported"
    return renderer()
