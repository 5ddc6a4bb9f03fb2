"""One training step at 57 M: 8 layers, 12 heads, width 768, MLP of 3072, or gated of 2048; 8 x 256 tokens.

Everything else as in the training step of 10.7 M: float32, then bf16, eager; ours with kept memory, as in `fit`.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from benchmarks.report import Section
from benchmarks.train_step import BIG, CONTESTANTS, EAGER, HALF, LARGE, section


def run(rounds: int = 10) -> Section:
    """The section of the report."""
    groups = []
    for end, ours in itertools.product(("", HALF), ("ours_gpt", "ours_llama")):  # all at once would need 20 GB
        some = {key + end: CONTESTANTS[key + end] for key, c in EAGER.items() if ours in (key, c.against)}
        groups.append({k + BIG: replace(c, against=c.against and c.against + BIG) for k, c in some.items()})
        groups[-1]["peak"] = CONTESTANTS["peak"]
    return section("Training step, 57 M", groups, LARGE, rounds, (__doc__ or "").strip())
