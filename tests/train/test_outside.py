"""Told before and during a run: the share of the time outside model and optimiser, and what compiling gains."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.data import text
from anyformer.train import Settings, fit, memory, objectives, train
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
    least = {kind: min(shares[1:]) for kind, shares in seen.items()}
    assert least["slow"] > max(0.5, least["quick"])


def test_a_run_prints_the_share_and_what_compiling_gains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The compiler's place is taken by the function itself."""
    book = tmp_path / "book.txt"
    book.write_text(text.read()[:20_000], encoding="utf-8")
    monkeypatch.setattr(torch, "compile", lambda function: function)
    small: dict[str, Any] = {"size": "tiny", "context": 32, "batch": 4, "steps": 4, "warmup": 0, "vocab": 260}
    train("gpt", data=str(book), out=tmp_path / "run", compile=True, log_every=1, **small)
    said = capsys.readouterr().out
    assert re.search(r"step 4/4 .* outside \d+\.\d %", said)
    assert re.search(r"compiled, a step takes \S+ s, as it is \S+ s: \d+\.\d\d times as fast; ", said)


def test_what_compiling_gains_is_the_ratio_of_its_steps() -> None:
    slow, quick = memory.DryRun(9.0, 0.5, None), memory.DryRun(2.0, 0.4, None)
    assert memory.gain(quick, slow) == (
        "compiled, a step takes 0.4 s, as it is 0.5 s: 1.25 times as fast; compiling took 2 s"
    )
    assert memory.gain(slow, quick).endswith("0.80 times as fast; compile=False is faster here")
