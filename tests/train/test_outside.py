"""The share of the time that neither the model nor the optimiser takes, and memory that is kept between steps."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.train import Settings, fit, objectives
from anyformer.train.loggers import Observer


def test_time_outside_model_and_optimiser_is_told(tmp_path: Path) -> None:
    """A step of a tiny model takes some milliseconds; a batch that takes 0.1 s is most of the time."""
    seen: dict[str, list[float]] = {"quick": [], "slow": []}
    ids = torch.arange(1, 17)[None]
    for kind, pause in (("quick", 0.0), ("slow", 0.1)):

        class Watch(Observer):
            def on_steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
                seen[kind].append(row["outside"])  # noqa: B023

        def batches(_: int) -> dict[str, torch.Tensor]:
            time.sleep(pause)  # noqa: B023
            return {"input_ids": ids, "labels": ids + 1}

        settings = Settings(6, warmup=0, log_every=2)
        fit(af.build("gpt", "tiny", seed=0), batches, objectives.causal_lm, settings, tmp_path / kind, observer=Watch())
    assert len(seen["slow"]) == 3 and all(0 <= share <= 1 for shares in seen.values() for share in shares)
    assert min(seen["slow"][1:]) > 0.5 > min(seen["quick"][1:])


FAULTS = """
import resource, sys, torch
from anyformer.train.allocator import keep_freed
if len(sys.argv) > 1 and not keep_freed():
    sys.exit("another C library")
def step():
    return [torch.empty(1 << 20).fill_(1.0) for _ in range(8)]  # 32 MB
for i in range(10):
    step()
    if i == 1:  # the first ones find out what is needed
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_kept_for_the_next_step() -> None:
    """Eight steps of 32 MB are 65,000 pages, which are taken from the system once."""

    def faults(*words: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, *words], capture_output=True, text=True, check=False)
        if "another C library" in done.stderr:
            pytest.skip("the C library is not glibc: left out: what it keeps is its own affair")
        assert not done.returncode, done.stderr
        return int(done.stdout)

    assert faults("kept") < 2_000 < faults()
