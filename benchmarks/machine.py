"""What this machine can do: facts for the report, and the two bounds that results are compared with."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

UNKNOWN = "a machine that these results do not record"


def facts(threads: int | None = None) -> str:
    """Processor, instruction set that PyTorch uses, threads, memory, versions, date: one line."""
    import torch

    from anyformer.core.machine import processor
    from benchmarks.contest import THREADS

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = []
    for name in ("torch", "transformers", "x-transformers"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return (
        f"{processor()} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores, "
        f"{threads or THREADS} threads used, {memory:.0f} GiB; Python {platform.python_version()}, "
        f"{', '.join(versions)}; {time.strftime('%Y-%m-%d')}."
    )


def recorded(results: Iterable[Mapping[str, Any]]) -> str:
    """The machine that results were measured on, as they recorded it."""
    machines = sorted({result.get("machine", UNKNOWN) for result in results})
    several = "several machines, whose figures cannot be compared: " if len(machines) > 1 else ""
    return several + " / ".join(machines)


def busy(seconds: float = 2.0) -> float:
    """How many cores other programs keep busy, over some seconds; the load average where there is no /proc/stat."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return os.getloadavg()[0]

    def ticks() -> tuple[int, int]:
        fields = [int(n) for n in stat.read_text().splitlines()[0].split()[1:9]]  # user … idle, iowait … steal
        return sum(fields), sum(fields) - fields[3] - fields[4]

    total, used = ticks()
    time.sleep(seconds)
    total, used = (now - then for now, then in zip(ticks(), (total, used), strict=True))
    return (os.cpu_count() or 1) * used / max(1, total)


def resident() -> dict[str, int]:
    """Bytes of this process: VmHWM (the most so far), VmRSS, RssFile; nothing where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return {
        k: 1024 * int(v.split()[0]) for k, v in (s.split(":", 1) for s in lines) if k in ("VmHWM", "VmRSS", "RssFile")
    }


def matmul_rate(kind: Any = None) -> float:
    """FLOP/s of plain matrix products: the best of a few sizes, among them those of the trained model.

    Args:
        kind: a type of torch; float32 by default.
    """
    import torch

    best = 0.0
    for m, k, n in ((2048, 2048, 2048), (2048, 1024, 1024), (2048, 384, 1536), (4096, 4096, 1024)):
        a, b = torch.randn(m, k).to(kind or torch.float32), torch.randn(k, n).to(kind or torch.float32)
        out = a @ b
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            best = max(best, 2 * m * k * n / (time.perf_counter() - start))
    return best
