"""The share of the time that neither the model nor the optimiser takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

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
