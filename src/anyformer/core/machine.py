"""The machine that a figure was measured on: its name, its instruction set, and what it can do at most."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import time
from collections.abc import Iterator
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


TRIM, MAPPED, MAPS = -1, -3, -4  # mallopt's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX
BLOCK = 32 << 20  # bytes, the largest M_MMAP_THRESHOLD and the one that glibc's own rule ends at


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """The memory that a step frees, kept by the C library for the next step.

    glibc gives what is free at the end of its heap back to the system, and every tensor above 32 MiB at once; the next
    step takes the same pages again, and the system empties each one first. Which step meets this depends on what
    happens to lie at the end of the heap. Afterwards all that is free goes back, and glibc's limits are those that its
    own rule ends at. Other C libraries, and memory of other devices, stay as they are.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc is None:
        yield
        return
    put, trim = libc.mallopt, libc.malloc_trim
    after = ((MAPS, 1 << 16), (MAPPED, BLOCK), (TRIM, 2 * BLOCK))  # at the interpreter's end these names are None
    for option, value in ((MAPS, 0), (TRIM, -1)):
        put(option, value)
    try:
        yield
    finally:
        for option, value in after:
            put(option, value)
        trim(0)
