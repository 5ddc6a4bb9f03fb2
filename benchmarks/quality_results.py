"""The stored results of `benchmarks.quality`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "quality"
NEAR = 0.1  # bits a byte: closer rows are run with all seeds; two seeds of full attention differ by 0.09
SEEDS = (0, 1, 2)
Run = tuple[str, str, int]  # group, name, seed
Found = dict[str, Any]


def file(run: Run) -> Path:
    """Where a run's result lies."""
    group, name, seed = run
    plain = "".join(c if c.isalnum() else "-" for c in f"{group} {name}")
    return RESULTS / f"{plain}-seed{seed}.json"


def setup(group: str) -> Found:
    """The size that runs of a group have now."""
    from benchmarks import quality_probes, quality_text

    probe = group.startswith("probe: ")
    return quality_probes.setup(group.removeprefix("probe: ")) if probe else quality_text.SETUP


def results() -> dict[tuple[str, str], list[Found]]:
    """What was found, by group and name; a list of seeds."""
    by_row: dict[tuple[str, str], list[Found]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        one = json.loads(path.read_text())
        if one["setup"] == setup(one["group"]):
            by_row.setdefault((one["group"], one["name"]), []).append(one)
    return by_row


def bits(by_row: dict[tuple[str, str], list[Found]], group: str, name: str, times: int = 1) -> float:
    """The mean over seeds of the bits a byte at `times` the trained length; infinite where there are none."""
    values = [f["bits"][str(times)] for f in by_row.get((group, name), [])]
    return statistics.mean(values) if values and None not in values else float("inf")
