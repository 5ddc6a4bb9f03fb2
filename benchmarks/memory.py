"""Memory and time of training, predicted before the first step and measured: `python -m benchmarks.memory [PAGE ...]`.

Each page trains for a few steps in a process of its own. Measured is the highest resident memory of the process in the
steps (VmHWM), less what the process held before the model was made; predicted is `train.predict.predict`. The C
library is told to give memory back (MALLOC_*_THRESHOLD_): by default it keeps some of what was freed, on top. Time is
that of the steps after the first, predicted by `train.predict.probe`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import resident

PAGES: dict[str, dict[str, Any]] = {
    "gpt": {"dim": 512, "depth": 8, "heads": 8, "vocab": 8192, "context": 256},
    "llama": {"dim": 512, "depth": 8, "heads": 8, "kv_heads": 4, "hidden": 1408, "vocab": 8192, "context": 256},
    "bert": {"dim": 512, "depth": 8, "heads": 8, "hidden": 2048, "vocab": 8192, "context": 256},
    "mamba": {"dim": 384, "depth": 6, "vocab": 8192},
}
BATCH, TIME, STEPS = 4, 256, 3


def one(page: str, settings: dict[str, Any]) -> dict[str, float]:
    """Predicted and measured, in this process."""
    import torch

    import anyformer as af
    from anyformer.train import Settings, objectives
    from anyformer.train.checkpoint import Run
    from anyformer.train.log import Watch
    from anyformer.train.loop import Loop
    from anyformer.train.predict import predict, probe

    torch.set_num_threads(1)
    s = Settings(STEPS, warmup=0, **settings)
    objective = objectives.masked_lm if page == "bert" else objectives.causal_lm

    def batches(number: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(1, 8192, (BATCH, TIME), generator=torch.Generator().manual_seed(number))
        return {"input_ids": ids, "labels": objectives.next_tokens(ids)}

    tiny = af.build(page, "tiny")  # imports, pools of threads and the like are no part of a model
    short = {k: v[:1, :8] % 100 for k, v in batches(0).items()}
    predict(tiny, short, objective, s)
    probe(tiny, short, objective, s)
    base = resident()["VmRSS"]
    model = af.build(page, "tiny", seed=0, **PAGES[page])
    said = predict(model, batches(0), objective, s)
    seconds = probe(model, batches(0), objective, s)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    import tempfile

    with tempfile.TemporaryDirectory() as folder, Run(folder) as run:
        loop = Loop(model, batches, objective, s, run, None, {}, Watch())
        loop.advance()
        began = time.perf_counter()
        for _ in range(STEPS - 1):
            loop.advance()
        took = (time.perf_counter() - began) / (STEPS - 1)
    found = {"predicted": said.peak, "measured": resident()["VmHWM"] - base, "base": base}
    return {**found, "predicted_s": seconds, "measured_s": took}


def main(pages: list[str]) -> None:
    """Prints a table."""
    print("| page | settings | predicted, MB | measured, MB | | predicted, s a step | measured, s a step | |")
    print("|---|---|---|---|---|---|---|---|")
    variants: list[dict[str, Any]] = [{}, {"recompute": ["blocks.*"]}]
    for page in pages or list(PAGES):
        for settings in variants:
            code = f"import json; from benchmarks.memory import one; print(json.dumps(one({page!r}, {settings!r})))"
            env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "200000", "MALLOC_TRIM_THRESHOLD_": "200000"}
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
            if done.returncode:
                raise SystemExit(done.stderr)
            f = json.loads(done.stdout.splitlines()[-1])
            shares = [f["predicted"] / f["measured"] - 1, f["predicted_s"] / f["measured_s"] - 1]
            memory = f"{f['predicted'] / 1e6:.0f} | {f['measured'] / 1e6:.0f} | {100 * shares[0]:+.0f} %"
            speed = f"{f['predicted_s']:.2f} | {f['measured_s']:.2f} | {100 * shares[1]:+.0f} %"
            print(f"| {page} | {', '.join(settings) or 'plain'} | {memory} | {speed} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
