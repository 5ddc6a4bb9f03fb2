"""The machine that a figure was measured on: its name, its instruction set, and what it can do at most."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import torch


def about() -> dict[str, str]:
    """The facts about the first processor as Linux names them, by key; empty where they are unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]
    return dict(reversed(pairs))  # of several processors the first


def processor() -> str:
    """The name of the processor."""
    return about().get("model name", platform.machine())


def conditions() -> str:
    """The instruction set and the threads of times that are measured now: times of others cannot be compared."""
    count = torch.get_num_threads()
    return f"{torch.backends.cpu.get_cpu_capability()}, {count} thread{'s' * (count > 1)}"


def matmul_rate(device: torch.device, kind: torch.dtype = torch.float32) -> float:
    """FLOP/s of a plain matrix product here: the best within half a second, since threads need time to wake up."""
    n = 1024 if device.type == "cpu" else 8192
    a = torch.ones(n, n, device=device, dtype=kind)
    out, best = a @ a, 0.0
    ends = time.perf_counter() + 0.5
    while (began := time.perf_counter()) < ends:
        torch.mm(a, a, out=out)
        float(out[0, 0])
        best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best


def read_rate(rows: int = 2**15) -> float:
    """Bytes a second that the processor reads from memory that no cache holds: the best of a few products of a matrix
    with a vector, the fastest plain read in PyTorch, and what decoding is made of.

    Args:
        rows: of 32 KiB; by default the matrix has 1 GiB.
    """
    a, x = torch.ones(rows, 2**13), torch.ones(2**13)
    out, best = a @ x, 0.0
    for _ in range(5):
        began = time.perf_counter()
        torch.mv(a, x, out=out)
        best = max(best, a.nbytes / (time.perf_counter() - began))
    return best
