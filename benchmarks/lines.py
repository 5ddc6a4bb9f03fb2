"""The lines of code that run: `python -m benchmarks.lines` counts them while LLaMA (tiny) is built, makes one forward
pass, and generates five tokens. What a reader walks through; imports are done before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any


def lines_of(package: Path, run: Callable[[], Any]) -> tuple[int, int]:
    """The number of distinct lines below a folder that a call runs, and of the files that they stand in."""
    seen: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(str(package)):
            return None
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return len(seen), len({file for file, _ in seen})


def main() -> None:
    """Prints a line for each of the three."""
    import torch

    import anyformer as af

    package, ids = Path(af.__file__).parent, torch.tensor([[1, 2, 3]])
    model = af.build("llama", "tiny", seed=0).eval()
    with torch.no_grad():
        model.generate([[1, 2, 3]], max_new_tokens=2)  # what is imported on first use
        runs: dict[str, Callable[[], Any]] = {
            "building": lambda: af.build("llama", "tiny", seed=0),
            "one forward pass": lambda: model(ids),
            "generating five tokens": lambda: model.generate([[1, 2, 3]], max_new_tokens=5),
        }
        for name, run in runs.items():
            count, files = lines_of(package, run)
            print(f"{name}: {count} lines in {files} files")


if __name__ == "__main__":
    main()
