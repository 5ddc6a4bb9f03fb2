"""Time series from tables: a time stamp, targets and what is known ahead, one step a row.

```
time,demand,holiday            N steps, C targets (demand), K features that are known ahead (holiday)
2020-01-01 00:00,913.2,1       an empty cell, NaN or NA: missing
2020-01-01 00:30,,1            steps behind the last value of any target: what is known of the future
```
A table with a column `series` holds several, one below the other or mixed. `fields` names the columns:
{"time": "date", "target": "demand,price", "known": "holiday", "series": "shop"}; by default those of these names.

Time goes on in equal steps, of seconds or of months. Rows in another order, a time that comes twice, or one between
two steps is an error; a step without a row is missing, and counted in `gaps`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("time", "target", "known", "series")
MISSING = ("", "nan", "na", "null", "none", "n/a")
DAY = 86_400


@dataclass(frozen=True)
class Step:
    """The time between two steps: so many seconds, or calendar months.

    Exactly one of the two is above 0.
    """

    seconds: int = 0
    months: int = 0

    def after(self, time: np.datetime64, count: int) -> np.ndarray:
        """The `count` times behind one, (count,) in seconds."""
        number = np.arange(1, count + 1)
        if not self.months:
            return time.astype("datetime64[s]") + number * self.seconds
        month = time.astype("datetime64[M]")
        return (month + number * self.months).astype("datetime64[s]") + (time - month.astype("datetime64[s]"))

    def season(self) -> int:
        """The steps of the shortest season that people's time has: of a day, a week, a year; at least 1."""
        if self.months:
            return max(1, 12 // self.months)
        for whole in (DAY, 7 * DAY, 365 * DAY):
            if self.seconds < whole:
                return round(whole / self.seconds)
        return 1

    def __str__(self) -> str:
        if self.months:
            return "a month" if self.months == 1 else f"{self.months} months"
        for name, size in (("day", DAY), ("hour", 3600), ("minute", 60)):
            if self.seconds % size == 0:
                count = self.seconds // size
                return f"{'an' if name == 'hour' else 'a'} {name}" if count == 1 else f"{count} {name}s"
        return f"{self.seconds} seconds"


@dataclass(frozen=True, eq=False)
class TimeSeries:
    """One series: values up to the present, and what is known of them ahead.

    Args:
        times: (N + F,) datetime64[s], F steps of the future last. `values`: (N, C), NaN = missing.
        known: (N + F, K). `targets`, `knowns`: names of the columns.
        step: between two times. `gaps`: steps that had no row.
        name: of several series in one table, else "".
    """

    times: np.ndarray
    values: np.ndarray
    known: np.ndarray
    targets: tuple[str, ...]
    knowns: tuple[str, ...]
    step: Step
    gaps: int = 0
    name: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def cut(self, count: int) -> TimeSeries:
        """The same with its first `count` values only; times and what is known stay."""
        return TimeSeries(
            self.times, self.values[:count], self.known, self.targets, self.knowns, self.step, self.gaps, self.name
        )


def read_series(path: str | Path, fields: Mapping[str, str] | None = None) -> list[TimeSeries]:
    """The series of a CSV, TSV or Parquet file, sorted by name.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming file, row and column, for a cell that is no number or no time, times that do not go on in
            equal steps, or a table without any value.
        ImportError: naming pyarrow, for Parquet without it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; series are read from CSV, TSV or Parquet")
    names, rows = _table(path)
    where = _columns(path, names, dict(fields or {}))
    by_name: dict[str, list[tuple[int, np.datetime64, list[float]]]] = {}
    for number, row in enumerate(rows, 1):
        try:
            name = str(row[where["series"][0]]) if where["series"] else ""
            numbers = [_number(column, row[column]) for column in (*where["target"], *where["known"])]
            by_name.setdefault(name, []).append((number, _time(where["time"][0], row[where["time"][0]]), numbers))
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
    if not by_name:
        raise ValueError(f"{path} holds no rows")
    targets, knowns = where["target"], where["known"]
    return [_series(path, name, rows_of, targets, knowns) for name, rows_of in sorted(by_name.items())]


def _table(path: Path) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """The names of the columns, and the rows."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise ImportError(f"{path}: Parquet needs `pip install pyarrow`; or save the table as CSV") from None
        table = pq.read_table(path)
        return list(table.column_names), iter(table.to_pylist())
    if kind not in (".csv", ".tsv"):
        raise ValueError(f"{path}: series are read from .csv, .tsv or .parquet, not from {kind or 'files without end'}")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if kind == ".tsv" else ",")
        lines = [cells for cells in reader if cells]
    if not lines:
        raise ValueError(f"{path} is empty")
    names, *cells = lines
    short = next((i for i, row in enumerate(cells, 1) if len(row) != len(names)), None)
    if short is not None:
        raise ValueError(
            f"{path}, row {short} has {len(cells[short - 1])} cells, and the first line {len(names)} names"
        )
    return names, (dict(zip(names, row, strict=True)) for row in cells)


def _columns(path: Path, names: Sequence[str], fields: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """The columns of each kind."""
    if strange := [name for name in fields if name not in NAMES]:
        raise ValueError(f"fields: no name {strange[0]!r}; series have {', '.join(NAMES)}")
    where = {}
    for name in NAMES:
        given = fields.get(name)
        columns = [] if given is None else [column.strip() for column in given.split(",") if column.strip()]
        columns = columns or ([name] if given is None and name in names else [])
        if missing := [column for column in columns if column not in names]:
            raise ValueError(f"{path}: no column {missing[0]!r}; it has {', '.join(map(repr, names))}")
        where[name] = tuple(columns)
    for name in ("time", "target"):
        if not where[name]:
            raise ValueError(
                f"{path}: which column is the {name}? It has {', '.join(map(repr, names))}; --fields.{name} NAME"
            )
    if len(where["time"]) > 1 or len(where["series"]) > 1:
        raise ValueError(f"{path}: one column holds the time, and one the name of the series; got several")
    if both := sorted(set(where["target"]) & set(where["known"])):
        raise ValueError(f"{path}: {both[0]!r} is a target, whose values are not known ahead; leave it out of known")
    return where


def _number(column: str, cell: Any) -> float:
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING):
        return float("nan")
    try:
        number = float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{column!r} is {cell!r:.40}, which is no number; leave a missing value empty") from None
    if np.isinf(number):
        raise ValueError(f"{column!r} is infinite; leave a missing value empty")
    return number


def _time(column: str, cell: Any) -> np.datetime64:
    text = (cell.isoformat() if hasattr(cell, "isoformat") else str(cell)).strip().removesuffix("Z")
    zone = re.search(r"[+-]\d\d:?\d\d$", text[10:])
    try:
        time = np.datetime64("NaT" if zone else text, "s")
    except ValueError:
        time = np.datetime64("NaT")
    if np.isnat(time):
        raise ValueError(
            f"{column!r} is {text!r:.40}, which is no time; write 2020-01-31, 2020-01-31 13:30 or 2020-01-31T13:30:00, "
            "all in one time zone"
        )
    return time


def _series(
    path: Path, name: str, rows: Sequence[tuple[int, np.datetime64, list[float]]], targets: tuple[str, ...],
    knowns: tuple[str, ...],
) -> TimeSeries:  # fmt: skip
    which = f"{path}, series {name!r}" if name else str(path)
    times = np.array([time for _, time, _ in rows])
    for i, apart in enumerate(np.diff(times).astype(np.int64), 1):
        if apart <= 0:
            what = "comes twice" if not apart else f"comes after {times[i - 1]}: sort the rows by time"
            raise ValueError(f"{which}, row {rows[i][0]}: the time {times[i]} {what}")
    if len(times) < 2:
        raise ValueError(f"{which} has one row, and a step is the time between two")
    step, places = _grid(which, rows, times)
    numbers = np.full((places[-1] + 1, len(targets) + len(knowns)), np.nan)
    numbers[places] = np.array([row for *_, row in rows])
    values, known = numbers[:, : len(targets)], numbers[:, len(targets) :]
    there = ~np.isnan(values).all(1)
    if not there.any():
        raise ValueError(f"{which}: every value of {', '.join(map(repr, targets))} is missing")
    count = int(np.flatnonzero(there)[-1]) + 1
    whole = np.concatenate((times[:1], step.after(times[0], len(numbers) - 1)))
    for column, own in zip(knowns, known.T, strict=True):
        if np.isnan(own).any():
            raise ValueError(f"{which}: {column!r}, known ahead, is missing at {whole[np.isnan(own)][0]}")
        for target, other in zip(targets, values[:count].T, strict=True):
            if np.array_equal(own[:count], other, equal_nan=True):
                raise ValueError(
                    f"{which}: {column!r} is equal to the target {target!r} at every step: as a column that is known "
                    "ahead it would tell the future"
                )
    gaps = len(numbers) - len(rows)
    return TimeSeries(whole, values[:count], known, targets, knowns, step, gaps, name)


def _grid(
    which: str, rows: Sequence[tuple[int, np.datetime64, list[float]]], times: np.ndarray
) -> tuple[Step, np.ndarray]:
    """The step, and the place of each time on the grid that it makes."""
    apart = np.diff(times).astype(np.int64)
    months = times.astype("datetime64[M]").astype(np.int64)
    inside = times - times.astype("datetime64[M]").astype("datetime64[s]")
    if int(apart.min()) >= 28 * DAY and len(set(inside.tolist())) == 1:
        least = int(np.diff(months).min())
        off = (months - months[0]) % least
        step, places = Step(months=least), (months - months[0]) // least
    else:
        least = int(apart.min())
        off = (times - times[0]).astype(np.int64) % least
        step, places = Step(seconds=least), (times - times[0]).astype(np.int64) // least
    if off.any():
        bad = int(np.flatnonzero(off)[0])
        raise ValueError(
            f"{which}, row {rows[bad][0]}: the time {times[bad]} lies between two steps of {step}; times go on in "
            "equal steps, and a row can be missing"
        )
    return step, places


def known_ahead(series: Iterable[TimeSeries]) -> int:
    """The least number of steps of the future that any series has."""
    return min(len(one.times) - len(one) for one in series)
