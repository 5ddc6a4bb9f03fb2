"""The process of one mixer or one peer: what it takes at a length, in seconds or in bytes. B batch, T time, D width.

Memory is the highest resident memory (VmHWM) of a pass, less what was there before it. So that memory which was freed
does not count, the C library of a process that measures memory hands back every block of more than 128 kB. That of a
process that measures time keeps all that it has: by itself it would fetch each tensor of more than 32 MB from the
system anew, and the page faults of that would stand among the figures of the longest texts alone.
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
ALLOCATOR = {
    "memory": {TRIM_THRESHOLD: 1 << 17, MMAP_THRESHOLD: 1 << 17},
    "time": {TRIM_THRESHOLD: (1 << 31) - 1, MMAP_MAX: 0},
}
LEAST, MOST = 0.2, 15  # seconds to repeat short passes for, and passes at most
Answer = dict[str, Any]


def build(name: str) -> tuple[Answer, Callable[[Answer], Answer]]:
    """`name`: "time of " or "memory of ", then a mixer of ours, or "peer: " and a peer's name."""
    import torch

    what, name = name.split(" of ", 1)
    for option, value in ALLOCATOR[what].items():
        ctypes.CDLL(None).mallopt(option, value)
    torch.set_num_threads(THREADS)
    contestant = Contestant(name, {"memory": peak, "time": seconds}[what])
    contestant.pass_(256, True)()  # code is loaded, threads are started
    _bounded()
    return {}, contestant.serve


def _bounded() -> None:
    import resource

    now = next(int(s.split()[1]) for s in Path("/proc/self/status").read_text().splitlines() if "VmData" in s) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (now + ROOM, now + ROOM))


def seconds(work: Callable[[], None]) -> Answer:
    """The median of a few passes, after one that fetches memory from the system."""
    work()
    took: list[float] = []
    while not took or (sum(took) < LEAST and len(took) < MOST):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return {"seconds": statistics.median(took)}


def peak(work: Callable[[], None]) -> Answer:
    """Bytes of one pass on top of what was there."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = resident()["VmRSS"]
    start = time.perf_counter()
    work()
    took = time.perf_counter() - start
    return {"bytes": max(0, resident()["VmHWM"] - before), "seconds": took}


class Contestant:
    """Makes the layer for a length, once, and measures it."""

    def __init__(self, name: str, measure: Callable[[Callable[[], None]], Answer] = seconds):
        from benchmarks.attention_peers import PEERS

        self.peer = PEERS[name.removeprefix("peer: ")] if name.startswith("peer: ") else None
        self.entry = ENTRIES[name if self.peer is None else self.peer.ours]
        self.measure = measure
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
        """Answers {"length", "backward"}, or {"error": length}."""
        try:
            if "error" in request:
                return self.error(request["error"])
            return self.measure(self.pass_(request["length"], request["backward"]))
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
