"""Scripts in a process where neither torch nor anyformer can be imported."""

from __future__ import annotations

import sys
from pathlib import Path


def bare(script: Path, *hidden: str, after: str = "") -> list[str]:
    """The command that runs a script there; its arguments follow.

    Args:
        hidden: what cannot be imported either.
        after: a line that runs behind it, with its names in `seen`.
    """
    names = ("torch", "anyformer", "transformers", *hidden)
    code = (
        f"import sys, runpy\nsys.modules.update(dict.fromkeys({names}))\n"
        f"sys.argv = sys.argv[1:]\nseen = runpy.run_path(sys.argv[0], run_name='__main__')\n{after}"
    )
    return [sys.executable, "-c", code, str(script)]
