"""The training step of 10.7 M models, compiled by `torch.compile` before the first step, in float32 and in bf16.

Everything else as in the training step as it is, which stands beside it for ours: time / ours of those rows says how
many times as long a step takes that is not compiled. Memory includes the compiler's.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.report import Section
from benchmarks.train_step import COMPILED, CONTESTANTS, HALF, MADE, SMALL, section


def run(rounds: int = 12) -> Section:
    """The section of the report."""
    plain = {
        key: replace(CONTESTANTS[key], against=key + COMPILED)
        for key in ("ours_gpt", "ours_llama", f"ours_gpt{HALF}", f"ours_llama{HALF}")
    }
    contestants = {**MADE, **plain, "peak": CONTESTANTS["peak"]}
    return section("Training step, compiled", [contestants], SMALL, rounds, (__doc__ or "").strip())
