"""Electricity that the processor used, where it counts it itself (Intel's and AMD's RAPL counters, Linux)."""

from __future__ import annotations

from pathlib import Path

COUNTERS = Path("/sys/class/powercap")


class Energy:
    """The energy of all processor packages since this object was made: without memory, disks, fans and GPUs.

    Raises:
        ValueError: if it cannot be measured here, with the reason.
    """

    def __init__(self, counters: Path = COUNTERS):
        self.files = sorted(counters.glob("intel-rapl:?/energy_uj"))  # a second colon is a part of a package
        if not self.files:
            raise ValueError(f"energy cannot be measured here: there is no RAPL counter in {counters}")
        try:
            self.last = self._read()
            self.limits = [int((f.parent / "max_energy_range_uj").read_text()) for f in self.files]
        except PermissionError as error:
            raise ValueError(f"energy cannot be measured here: {error.filename} is for root only") from None
        self.used = 0

    def joules(self) -> float:
        """So far. To be asked at least every few minutes: a counter begins again at 0 when it is full."""
        now = self._read()
        for value, last, limit in zip(now, self.last, self.limits, strict=True):
            self.used += value - last if value >= last else value - last + limit
        self.last = now
        return self.used / 1e6

    def _read(self) -> list[int]:
        return [int(f.read_text()) for f in self.files]
