"""Losses of training in bfloat16 beside float32: three pages, 500 steps each, three seeds.

Small models (two blocks of width 64) learn the reference inside every CPython (`pydoc`) as bytes, 4 x 128 of them a
step, learning rate 1e-3. Loss: mean of the last 100 steps, nats a byte. A seed is that of the first weights and of
dropout; batches are the same. The noise is the standard deviation of the float32 runs, and the difference is the mean
over the seeds, with its standard error.
"""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

from benchmarks.contest import THREADS
from benchmarks.report import Section, row

PAGES = ("gpt", "llama", "mixtral")
STEPS, LAST, LENGTH = 500, 100, 128


def _loss(page: str, precision: str, seed: int) -> float:
    """The mean of the last losses of a run."""
    import numpy as np
    import torch

    import anyformer as af
    from anyformer.data import text
    from anyformer.train import Settings, fit, objectives
    from anyformer.train.loggers import Observer

    torch.set_num_threads(THREADS)
    data = torch.from_numpy(np.frombuffer(text.read().encode("ascii", "replace"), np.uint8).astype(np.int64))
    seen: list[float] = []

    class Watch(Observer):
        def on_steps(self, row: dict[str, Any], speed: float, steps: int) -> None:
            seen.append(row["loss"])

    def batches(number: int) -> dict[str, Any]:
        starts = torch.randint(0, len(data) - LENGTH - 1, (4,), generator=torch.Generator().manual_seed(number))
        ids = torch.stack([data[s : s + LENGTH + 1] for s in starts.tolist()])
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}

    model = af.build(page, "tiny", seed=seed, dim=64, vocab=256, context=LENGTH)
    settings = Settings(STEPS, lr=1e-3, warmup=50, log_every=1, precision=precision, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, batches, objectives.causal_lm, settings, folder, observer=Watch())
    return statistics.mean(seen[-LAST:])


def run(rounds: int = 3) -> Section:
    """The section of the report; `rounds` seeds."""
    table = [row("page", "float32", "bf16", "bf16 - float32", "noise between seeds")]
    for page in PAGES:
        single, half = ([_loss(page, kind, seed) for seed in range(rounds)] for kind in ("fp32", "bf16"))
        apart = [h - s for h, s in zip(half, single, strict=True)]
        error = statistics.stdev(apart) / rounds**0.5
        cells = f"{statistics.mean(single):.4f}", f"{statistics.mean(half):.4f}"
        table.append(
            row(page, *cells, f"{statistics.mean(apart):+.4f} ± {error:.4f}", f"{statistics.stdev(single):.4f}")
        )
        print(f"  {table[-1]}", flush=True)
    return Section("Losses in bfloat16", (__doc__ or "").strip(), table, timed=False)
