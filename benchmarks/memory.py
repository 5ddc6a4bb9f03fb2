"""Memory and time of training, known before the first step, and measured.

Each page trains for a few steps in a process of its own, with the allocator as it is. Counted: `train.memory.estimate`,
what lives at one time, from the recipe alone. Rehearsed: `train.memory.dry_run`, two steps that change nothing, which
`anyformer train` makes before a run of a hundred or more; what the process takes. Measured: the highest resident memory
of the process in the steps after (VmHWM), and the time of the steps after the first. What the process held before the
model was made is subtracted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT, Missing
from benchmarks.machine import resident
from benchmarks.report import Section, row

PAGES: dict[str, dict[str, Any]] = {
    "gpt": {"dim": 512, "depth": 8, "heads": 8, "vocab": 8192, "context": 256},
    "llama": {"dim": 512, "depth": 8, "heads": 8, "kv_heads": 4, "hidden": 1408, "vocab": 8192, "context": 256},
    "bert": {"dim": 512, "depth": 8, "heads": 8, "hidden": 2048, "vocab": 8192, "context": 256},
    "mamba": {"dim": 384, "depth": 6, "vocab": 8192},
}
BATCH, TIME, STEPS = 4, 256, 4
VARIANTS: dict[str, dict[str, Any]] = {"plain": {}, "recompute": {"activation_checkpointing": ["blocks.*"]}}


def one(page: str, settings: dict[str, Any]) -> dict[str, float]:
    """What was foreseen and what came, in this process."""
    import torch

    import anyformer as af
    from anyformer.train import Settings, objectives
    from anyformer.train.checkpoint import Run
    from anyformer.train.loggers import Observer
    from anyformer.train.loop import Loop
    from anyformer.train.memory import dry_run, estimate

    torch.set_num_threads(1)
    s = Settings(STEPS, warmup=0, **settings)
    objective = objectives.masked_lm if page == "bert" else objectives.causal_lm

    def batches(number: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(1, 8192, (BATCH, TIME), generator=torch.Generator().manual_seed(number))
        return {"input_ids": ids, "labels": objectives.next_tokens(ids)}

    tiny = af.build(page, "tiny")  # imports, pools of threads and the like are no part of a model
    short = {k: v[:1, :8] % 100 for k, v in batches(0).items()}
    estimate(tiny, short, objective, s)
    dry_run(tiny, short, objective, s)
    base = resident()["VmRSS"]
    model = af.build(page, "tiny", seed=0, **PAGES[page])
    predicted = estimate(model, batches(0), objective, s)
    done = dry_run(model, batches(0), objective, s)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    with tempfile.TemporaryDirectory() as folder, Run(folder) as run:
        loop = Loop(model, batches, objective, s, run, None, {}, Observer())
        loop.advance()
        began = time.perf_counter()
        for _ in range(STEPS - 1):
            loop.advance()
        took = (time.perf_counter() - began) / (STEPS - 1)
    assert done.bytes is not None
    figures = {"counted": predicted.peak, "rehearsed": done.bytes - base}
    return {**figures, "measured": resident()["VmHWM"] - base, "foreseen_s": done.seconds, "measured_s": took}


def run(rounds: int = 1, pages: tuple[str, ...] = tuple(PAGES)) -> Section:
    """The section of the report; of several rounds, the last counts."""
    if not Path("/proc/self/clear_refs").exists():
        raise Missing("resident memory is read from Linux's /proc/self")
    heads = "counted, MB", "rehearsed, MB", "measured, MB", "", "foreseen, s a step", "measured, s a step", ""
    table = [row("page", "settings", *heads)]
    for page in pages:
        for variant, settings in VARIANTS.items():
            code = f"import json; from benchmarks.memory import one; print(json.dumps(one({page!r}, {settings!r})))"
            env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
            for _ in range(rounds):
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
            f = json.loads(done.stdout.splitlines()[-1])
            shares = [f["rehearsed"] / f["measured"] - 1, f["foreseen_s"] / f["measured_s"] - 1]
            memory = (f"{f[k] / 1e6:,.0f}" for k in ("counted", "rehearsed", "measured"))
            speed = f"{f['foreseen_s']:.2f}", f"{f['measured_s']:.2f}", f"{100 * shares[1]:+.0f} %"
            table.append(row(page, variant, *memory, f"{100 * shares[0]:+.0f} %", *speed))
            print(f"  {table[-1]}", flush=True)
    text = f"{(__doc__ or '').strip()}\n\nBatches of {BATCH} x {TIME} tokens, vocabulary 8,192, float32, one thread."
    return Section("Memory and time, foreseen and measured", text, table)


if __name__ == "__main__":
    print(run(pages=tuple(sys.argv[1:]) or tuple(PAGES)).markdown("this machine"))
