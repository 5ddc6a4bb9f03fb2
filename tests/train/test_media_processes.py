"""Sounds, music, series, graphs and proteins by `train` in two processes against one: the same losses and measures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from anyformer.media.proteins import pdb_text
from tests.train import distributed_worker as worker
from tests.train.launched import launch, rows

torch.set_num_threads(1)
pytestmark = pytest.mark.slow
RUNS: dict[str, dict[str, Any]] = {
    "ctc": {"model": "wav2vec2", "data": "sounds"},
    "features": {"model": "conformer", "data": "sounds", "overrides": {"hides": False}},
    "contrast": {"model": "wav2vec2", "task": "contrast", "data": "sounds"},
    "units": {"model": "hubert", "task": "units", "clusters": 3, "data": "sounds"},
    "codec": {"model": "encodec", "data": "seconds"},
    "music": {"model": "musicgen", "data": "codes.jsonl"},
    "stage": {"model": "musiclm", "tokenizer": "bytes", "data": "codes.jsonl"},
    "forecast": {"model": "informer", "overrides": {"lags": [1, 2], "distil": False}, "data": "series.csv"},
    "trend": {"model": "autoformer", "overrides": {"lags": [1, 2]}, "data": "series.csv"},
    "graphs": {"model": "graphormer", "data": "graphs.jsonl"},
    "fold": {"model": "esmfold", "data": "proteins", "batch": 2},
}
NORMS = {  # where each process has statistics of its own batch, losses differ, and docs say so
    "contrast": "the diversity of codes is a batch's", "features": "batch norms take a batch's mean",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, noise = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    (folder / "sounds").mkdir()
    (folder / "proteins").mkdir()
    (folder / "seconds").mkdir()
    for i in range(24):
        soundfile.write(folder / "sounds" / f"{i}.wav", noise.normal(0, 0.1, 1600 + 80 * i), 16000)
        (folder / "sounds" / f"{i}.txt").write_text("ab"[i % 2])
        soundfile.write(folder / "seconds" / f"{i}.wav", noise.normal(0, 0.1, 121 + 5 * i), 120)
    for i in range(4):
        places = noise.normal(scale=5, size=(6 + i, 14, 3)).astype(np.float32)
        text = pdb_text([("MKTAYGAVL"[: 6 + i], places, np.zeros(6 + i))], [])
        (folder / "proteins" / f"{i}.pdb").write_text(text)
    days = np.arange("2024-01-01", "2024-05-01", dtype="datetime64[D]")
    (folder / "series.csv").write_text("time,target\n" + "".join(f"{day},{i % 7}\n" for i, day in enumerate(days)))
    codes = [
        {"text": "ab"[i % 2], "semantic": [i % 5] * (3 + i % 4), "codes": [[t % 9, (t + i) % 9] for t in range(9 + i)]}
        for i in range(24)
    ]
    graphs = [{"nodes": 2 + i % 3, "edges": [[0, 1]], "label": i} for i in range(24)]
    for name, some in (("codes", codes), ("graphs", graphs)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    return folder


def options(home: Path, name: str) -> dict[str, Any]:
    given: dict[str, Any] = {"size": "tiny", "steps": 4, "batch": 8, "lr": 1e-3, "warmup": 1, "eval_every": 2}
    return given | RUNS[name] | {"data": str(home / RUNS[name]["data"]), "device": "cpu"}


@pytest.fixture(scope="module")
def two(home: Path) -> Path:
    launch(home, 2, [{"by": "command", "out": str(home / f"{name}-2"), **options(home, name)} for name in RUNS])
    return home


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(name: str, two: Path) -> None:
    worker.command(two / f"{name}-1", **options(two, name))
    one, other = rows(two / f"{name}-1"), rows(two / f"{name}-2")
    assert len(one) == len(other) and any(row.get("held_out") is not None for row in one)
    room = 0.3 if name in NORMS else 1e-4
    for key in ("loss", "held_out"):
        found, wanted = (np.array([row.get(key) or np.nan for row in some]) for some in (other, one))
        np.testing.assert_allclose(found, wanted, rtol=room, err_msg=f"{name}: {key} {NORMS.get(name, '')}")
