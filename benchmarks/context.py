"""Long texts on several processes: memory and time of a step whose tokens are split (`mesh.context`).

Every layout trains one model on one row of random tokens, each process in a fresh start. Counted: the growth of a
process's highest resident memory (VmHWM) over what it held before its model was made, of the process that holds most;
and the median time of the steps after the first.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT, Missing
from benchmarks.machine import resident
from benchmarks.report import Section, row

TOKENS = 4096
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"dim": 256, "depth": 6, "heads": 8, "kv_heads": 2, "hidden": 704, "vocab": 4096, "context": TOKENS},
    "mamba": {"dim": 192, "depth": 6, "vocab": 4096},
}
COUNTS, KEPT = (1, 2, 4), ((), ("blocks.*",))


def run(rounds: int = 3) -> Section:
    """Trains each model in each layout for so many steps; the section of the report."""
    if not Path("/proc/self/status").exists():
        raise Missing("memory is read from Linux, in /proc/self/status")
    table = [row("", "processes", "blocks recomputed", "memory, each, MB", "of one process", "step, s", "loss")]
    for page in MODELS:
        for again in KEPT:
            whole = 0.0
            for count in COUNTS:
                found = _launched(page, again, count, rounds)
                whole = whole or found["memory"]
                share, yes = f"{found['memory'] / whole:.0%}", "yes" if again else "no"
                cells = f"{found['memory']:,.0f}", share, f"{found['seconds']:.2f}", f"{found['loss']:.5f}"
                table.append(row(page, str(count), yes, *cells))
    text = (
        f"One row of {TOKENS:,} random tokens, AdamW, {os.cpu_count()} cores, one thread for each process; LLaMA of 6 "
        "layers of 256 with 2 of 8 key/value heads, Mamba of 6 of 192. Weights, gradients and moments are whole in "
        "each process. The loss is that of the last of the steps, which all layouts share."
    )
    return Section("Long texts on several processes", text, table)


def _launched(page: str, again: tuple[str, ...], count: int, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
        command += ["-m", "benchmarks.context", folder, page, json.dumps(again), str(steps)]
        subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
        found = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    assert len(found) == count
    return {**found[0], "memory": max(f["memory"] for f in found)}


def main(folder: str, page: str, again: list[str], steps: int) -> None:
    """The steps of one process of the launcher."""
    import torch
    import torch.distributed as dist

    import anyformer as af
    from anyformer.train import Settings, fit, objectives
    from anyformer.train.distributed import world

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    processes, times = world(mesh={"context": dist.get_world_size()}), list[float]()
    held, update = resident()["VmRSS"], processes.after_step

    def after_step(step: int, last: bool) -> None:
        update(step, last)
        times.append(time.perf_counter())

    def batch(number: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 4096, (1, TOKENS), generator=torch.Generator().manual_seed(number))
        return {"input_ids": ids, "labels": objectives.next_tokens(ids)}

    processes.after_step = after_step  # type: ignore[method-assign]
    settings = Settings(steps, activation_checkpointing=tuple(again))
    out = processes.on_main(lambda: f"{folder}/run")
    done = fit(af.build(page, "tiny", seed=0, overrides=MODELS[page]), batch, objectives.causal_lm, settings, out,
               world=processes)  # fmt: skip
    seconds = statistics.median(b - a for a, b in pairwise(times))
    found = {"memory": (resident()["VmHWM"] - held) / 1e6, "seconds": seconds, "loss": done.loss}
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
