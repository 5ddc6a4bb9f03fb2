"""The script for a GPU: what it says without one, and that its parts run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.train_step import Shape

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert made.returncode == 1 and made.stderr.startswith("no GPU: ") and not made.stdout


def test_its_comparisons_hold_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny shape, as it is: every row but those of missing peers, and every comparison within rounding."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(gpu, "NAMES", ("ours_gpt", "plain_gpt", "no such peer"))
    said: list[str] = []
    assert gpu.report("cpu", Shape(1, 2, 16, 32, vocab=40, time=16), 1.0, said.append) == 0
    text = "\n".join(said)
    assert text.count("as it should") == 6 and text.count("| ours_gpt") == 2 and text.count("| plain_gpt") == 2
    assert "no such peer, compiled was not measured" in text
    pieces, whole = (gpu.loss(way, 500, "cpu", tokens=64, width=16) for way in (True, False))
    assert pieces["loss"] == pytest.approx(whole["loss"], rel=1e-2)
