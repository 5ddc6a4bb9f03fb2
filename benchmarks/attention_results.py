"""The stored results of `benchmarks.attention`, and the figures that reports make of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.contest import ROOT

RESULTS = ROOT / "benchmarks" / "results"
LENGTHS = tuple(2**n for n in range(8, 16))
SECONDS, BYTES = 6.0, 8 << 30  # what would take more than either is left out
ROUNDS, PATIENCE = 3, SECONDS  # turns of each, and the seconds of a pass from which there is only one
CHECKED = 1024  # the length at which a peer's numbers are compared with ours
FROM = 2048  # exponents are fitted from this length on
CONTEXTS = (256, 1024, 4096, 16384)
Found = dict[str, Any]


def results(kind: str) -> dict[str, Found]:
    """What was found so far; nothing if nothing was measured."""
    path = RESULTS / f"{kind}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def exponent(values: dict[int, float]) -> float | None:
    """The slope of log value by log length, by least squares from `FROM` on, of at least the three longest lengths.
    None with fewer than three."""
    lengths = sorted(values)
    chosen = [n for n in lengths if n >= FROM]
    pairs = [
        (math.log(n), math.log(values[n])) for n in (chosen if len(chosen) >= 3 else lengths[-3:]) if values[n] > 0
    ]
    return statistics.linear_regression(*zip(*pairs, strict=True)).slope if len(pairs) >= 3 else None


def medians(result: Found, way: str) -> dict[int, float]:
    """Seconds by length (`way` forward or both), or bytes (forward_bytes, both_bytes)."""
    values: Iterable[tuple[int, Any]] = sorted((int(n), p[way]) for n, p in result["points"].items() if way in p)
    return {n: statistics.median(v) if isinstance(v, list) else float(v) for n, v in values}
