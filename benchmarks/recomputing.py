"""Training as users start it, with everything inside a block made again in backward; float32.

Everything else as in "Training, speed and memory". x-transformers has no recomputing of its own, and is left out.
"""

from __future__ import annotations

from benchmarks.report import Section
from benchmarks.training import CASES, section


def run(rounds: int = 4) -> Section:
    """The section of the report."""
    cases = [title for title, case in CASES.items() if case.recompute]
    return section("Training with recomputed activations", cases, rounds, (__doc__ or "").strip())
