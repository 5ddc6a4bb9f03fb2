"""Finished runs as three columns of numbers, from a CSV, TSV, JSONL or Parquet file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyformer.core.value import nearest
from anyformer.data.records import records
from anyformer.scale.quantities import quantity

Array = NDArray[np.float64]
LEAST = 6  # runs of a law of five numbers
COLUMNS = {"params": "params", "tokens": "tokens", "flops": "flops", "loss": "loss"}


@dataclass(frozen=True, eq=False)
class Runs:
    """Parameters N, tokens D and losses L of runs, one place for each run.

    Raises:
        ValueError: for fewer runs than `LEAST`, fewer than three different N or D, or numbers that are not above 0 and
            finite; the run is named by its number.
    """

    params: Array
    tokens: Array
    loss: Array

    def __post_init__(self) -> None:
        for name in ("params", "tokens", "loss"):
            for number, value in enumerate(getattr(self, name), 1):
                if not (math.isfinite(value) and value > 0):
                    raise ValueError(f"run {number}: {name} must be a finite number above 0, got {value}")
        if len(self.loss) < LEAST:
            raise ValueError(f"{len(self.loss)} runs; a law of five numbers needs at least {LEAST}")
        for name in ("params", "tokens"):
            if (kinds := len(np.unique(getattr(self, name)))) < 3:
                raise ValueError(f"{kinds} different numbers of {name}; an exponent and a floor need at least 3")

    @property
    def flops(self) -> Array:
        """6 N D, the usual estimate of a run's operations."""
        made: Array = 6 * self.params * self.tokens
        return made

    def take(self, chosen: Any) -> Runs:
        """Some of the runs, by numbers or a mask."""
        return Runs(self.params[chosen], self.tokens[chosen], self.loss[chosen])


def read(path: Path, columns: Mapping[str, str] | None = None, drop: int = 0) -> Runs:
    """The runs of a file.

    Args:
        columns: the file's names of params, tokens (or flops, which is 6 N D) and loss, where they differ.
        drop: this many of the highest losses are left out.

    Raises:
        ValueError: for a column that is not there, a value that is no number, and what `Runs` refuses. OSError.
    """
    names = {**COLUMNS, **(columns or {})}
    rows = list(records(path))
    if not rows:
        raise ValueError(f"{path} has no rows")
    second = "flops" if names["tokens"] not in rows[0] and names["flops"] in rows[0] else "tokens"
    table = {key: _column(path, rows, names[key], key) for key in ("params", second, "loss")}
    for key, values in table.items():
        for number, value in enumerate(values, 1):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{path}, run {number}: {names[key]} must be a finite number above 0, got {value}")
    if second == "flops":
        table["tokens"] = table.pop("flops") / (6 * table["params"])
    kept = np.sort(np.argsort(table["loss"], kind="stable")[: max(0, len(rows) - drop)])
    try:
        return Runs(table["params"][kept], table["tokens"][kept], table["loss"][kept])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _column(path: Path, rows: list[dict[str, Any]], name: str, key: str) -> Array:
    values = []
    for number, row in enumerate(rows, 1):
        if name not in row:
            raise ValueError(
                f"{path}, run {number} has no column {name!r}{nearest(name, [*row])}; it has {', '.join(row)}. "
                f"--columns.{key} NAME names another"
            )
        try:
            values.append(quantity(row[name]))
        except ValueError:
            raise ValueError(f"{path}, run {number}: {name} must be a number, got {row[name]!r}") from None
    return np.array(values)
