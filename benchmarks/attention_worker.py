"""The process of one mixer or one peer: what it takes at a length, in seconds and in bytes. B batch, T time, D width.

Memory is the highest resident memory (VmHWM) of a pass, less what was there before it. So that memory which was freed
does not count, the C library is told to hand back every block of more than 128 kB while memory is measured. While time
is measured it is told to keep all that it has, for everybody: by itself it would fetch each tensor of more than 32 MB
from the system anew, and the page faults of that would stand among the figures of the longest texts alone.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.attention_mixers import DIM, ENTRIES
from benchmarks.contest import THREADS
from benchmarks.machine import resident

ROOM = 10 << 30  # bytes that a pass may take; more is refused by the system
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # of glibc's mallopt
LEAST, MOST = 0.2, 15  # seconds to repeat short passes for, and passes at most
Answer = dict[str, Any]


def build(name: str) -> tuple[Answer, Callable[[Answer], Answer]]:
    """`name`: a mixer of ours, or "peer: " and a peer's name."""
    import torch

    torch.set_num_threads(THREADS)
    contestant = Contestant(name)
    contestant.pass_(256, True)()  # code is loaded, threads are started
    _bounded()
    return {}, contestant.serve


def _bounded() -> None:
    import resource

    now = next(int(s.split()[1]) for s in Path("/proc/self/status").read_text().splitlines() if "VmData" in s) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (now + ROOM, now + ROOM))


class Contestant:
    """Makes the layer for a length, once, and measures it."""

    def __init__(self, name: str):
        from benchmarks.attention_peers import PEERS

        self.peer = PEERS[name.removeprefix("peer: ")] if name.startswith("peer: ") else None
        self.entry = ENTRIES[name if self.peer is None else self.peer.ours]
        self.length, self.layer, self.ours = 0, None, None  # type: tuple[int, Any, Any]

    def ready(self, length: int) -> None:
        """The layer for that length, the same weights for everybody."""
        import torch

        from anyformer.core.init import initialise

        if length == self.length:
            return
        self.layer = self.ours = None
        mixer = self.entry.recipe(length).build(DIM)
        initialise(mixer, seed=0)
        mixer.train(self.entry.training)
        self.ours = lambda x: mixer(x, self.entry.flow(length))
        if self.peer is None:
            self.layer, self.parameters = self.ours, list(mixer.parameters())
        else:
            made = self.peer.make(mixer, length)
            self.layer, self.parameters = made, list(made.parameters())  # type: ignore[attr-defined]
            made.train(self.entry.training)  # type: ignore[attr-defined]
        self.x = torch.randn(1, length, DIM, generator=torch.Generator().manual_seed(0))  # (B, T, D)
        self.slope = torch.randn(1, length, DIM, generator=torch.Generator().manual_seed(1))
        for p in self.parameters:  # gradients are there before, as in training
            p.grad = torch.zeros_like(p)
        self.length = length

    def pass_(self, length: int, backward: bool) -> Callable[[], None]:
        """One pass as a function."""
        import torch

        self.ready(length)

        def forward() -> None:
            with torch.no_grad():
                self.layer(self.x)

        def both() -> None:
            x = self.x.detach().requires_grad_()
            self.layer(x).backward(self.slope)

        return both if backward else forward

    def serve(self, request: Answer) -> Answer:
        """Answers {"what": "time" | "memory" | "error", "length", "backward"}."""
        try:
            if request["what"] == "error":
                return self.error(request["length"])
            work = self.pass_(request["length"], request["backward"])
            return peak(work) if request["what"] == "memory" else seconds(work)
        except (RuntimeError, MemoryError) as error:
            if "memory" in str(error) or isinstance(error, MemoryError):
                return {"over": f"more than {ROOM >> 30} GiB"}
            raise

    def error(self, length: int) -> Answer:
        """How far the peer's result is from ours, as a share of the largest number in it."""
        import torch

        self.ready(length)
        with torch.no_grad():
            a, b = self.ours(self.x), self.layer(self.x)
        return {"error": float((a - b).abs().max() / a.abs().max())}


def seconds(work: Callable[[], None]) -> Answer:
    """The median of a few passes, after one that fetches memory from the system; what is freed is kept meanwhile."""
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, (1 << 31) - 1)
    work()
    took: list[float] = []
    while not took or (sum(took) < LEAST and len(took) < MOST):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return {"seconds": statistics.median(took)}


def peak(work: Callable[[], None]) -> Answer:
    """Bytes of one pass on top of what was there."""
    libc = ctypes.CDLL(None)
    gc.collect()
    libc.mallopt(MMAP_MAX, 1 << 16)  # the C library's own number
    libc.mallopt(MMAP_THRESHOLD, 1 << 17)
    libc.mallopt(TRIM_THRESHOLD, 1 << 17)
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = resident()["VmRSS"]
    start = time.perf_counter()
    work()
    took = time.perf_counter() - start
    return {"bytes": max(0, resident()["VmHWM"] - before), "seconds": took}
