"""What processes send each other, and what it buys: bytes and held-out loss of every way to exchange, side by side.

Two processes of this machine train the same small model on the same text, joined by gloo. Bytes are what the operating
system saw the second process write (/proc/self/io; it writes no files), from the first update to the last: not what an
algorithm should need, but what left the process, headers included.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT, Missing
from benchmarks.report import Section, row

STEPS, BATCH, CONTEXT, COPIES = 400, 16, 64, 2
SHAPE = {"dim": 64, "depth": 2, "heads": 4, "hidden": 256, "vocab": 256, "context": CONTEXT}
CONTESTANTS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    "tensor parallel": {"parallel": "tp"},
    "PowerSGD, rank 4": {"parallel": "powersgd", "communication": {"rank": 4}},
    "PowerSGD, rank 1": {"parallel": "powersgd", "communication": {"rank": 1}},
    "local SGD, every 10 steps": {"parallel": "local", "communication": {"every": 10}},
    "local SGD, every 50 steps": {"parallel": "local", "communication": {"every": 50}},
    "DiLoCo, every 10 steps": {"parallel": "diloco", "communication": {"every": 10}},
    "DiLoCo, every 50 steps": {"parallel": "diloco", "communication": {"every": 50}},
}


def run(rounds: int = 2) -> Section:
    """Trains every contestant `rounds` times, with other seeds; the section of the report."""
    if not Path("/proc/self/io").exists():
        raise Missing("bytes are counted by Linux, in /proc/self/io")
    alone = [train({}, seed) for seed in range(rounds)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={COPIES}"]
        made = f"{folder}/found.json"
        subprocess.run(
            [*command, "-m", "benchmarks.communication", made, str(rounds)], env=environment, cwd=ROOT, check=True
        )
        runs = json.loads(Path(made).read_text())
    table = [row("", "kB sent a step, each process", "of ddp", "held-out loss, nats a byte", "against one process")]
    base = sum(x["loss"] for x in alone) / rounds
    table.append(row("one process, the same batches", "0", "0 %", f"{base:.4f}", ""))
    whole = runs["ddp"][0]["bytes"]
    for name, results in runs.items():
        loss, sent = sum(x["loss"] for x in results) / rounds, results[0]["bytes"]
        cells = f"{sent / 1000:,.1f}", f"{sent / whole:.1%}", f"{loss:.4f}", f"{loss - base:+.4f}"
        table.append(row(name, *cells))
    text = (
        f"GPT of {alone[0]['parameters'] / 1e3:.0f} k parameters, {STEPS} steps of {BATCH} x {CONTEXT} bytes of pydoc, "
        f"AdamW, {COPIES} processes that share each batch; seeds: {rounds}. PowerSGD begins with 10 whole gradients, "
        "which are counted. Neither bytes nor losses depend on what else the machine does."
    )
    return Section("Exchange between processes", text, table, timed=False)


def train(options: dict[str, Any], seed: int) -> dict[str, float]:
    """One run in this process and its fellows: bytes sent a step, and the loss on held-out text."""
    import torch

    import anyformer as af
    from anyformer.data import sources, text
    from anyformer.train import Settings, fit, objectives
    from anyformer.train.distributed import world

    torch.set_num_threads(1)
    learn, held_out = (
        torch.frombuffer(bytearray(t.encode()), dtype=torch.uint8).numpy() for t in text.split(sources.text("pydoc"))
    )
    model, processes, counts = af.build("gpt", "tiny", seed=seed, overrides=SHAPE), world(**options), list[int]()
    update = processes.after_step

    def after_step(step: int, last: bool) -> None:
        update(step, last)
        counts.append(_written())

    def measure(model: Any) -> float:
        rows = list(text.sliding(held_out[:32_000], CONTEXT, 64))
        total = sum(float(objectives.causal_lm(model(r["input_ids"]), r["labels"], 1.0)) for r in rows)
        return total / sum(int(objectives.counted(r["labels"])) for r in rows)

    processes.after_step = after_step  # type: ignore[method-assign]
    settings = Settings(steps=STEPS, lr=3e-3, warmup=40, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        out = processes.on_main(lambda: folder)
        windows = text.Windows(learn, BATCH, CONTEXT, seed)
        done = fit(model, windows, objectives.causal_lm, settings, out, measure=measure, world=processes)
    assert done.held_out is not None and math.isfinite(done.held_out)
    parameters = sum(math.prod(p.shape) for p in model.parameters())
    return {"loss": done.held_out, "bytes": (counts[-1] - counts[0]) / (STEPS - 1), "parameters": parameters}


def _written() -> int:
    """Bytes that this process has written so far, to sockets and files."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("wchar")).split()[1])


def main(made: str, rounds: int) -> None:
    """What each process of the launcher does; the last one, which writes no files, says what was found."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    runs = {name: [train(options, seed) for seed in range(rounds)] for name, options in CONTESTANTS.items()}
    if dist.get_rank() == COPIES - 1:
        Path(made).write_text(json.dumps(runs))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
