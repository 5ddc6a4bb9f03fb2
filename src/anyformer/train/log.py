"""Log files of a run: log.csv, log.jsonl, statistics.jsonl."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

from anyformer.hub.formats.guard import atomic_write

COLUMNS = ("step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "held_out")


class Log:
    """`log.csv` and `log.jsonl`: a row a step and a row an evaluation; `statistics.jsonl` where that is asked for.
    Metrics of the model's parts (`train.step_loss.metrics`) are columns after `COLUMNS`, from the first row with one.
    Use as a context manager.

    Args:
        folder: of the run.
        step: where the run goes on; rows from after it, which a killed run may have left, are dropped.
    """

    def __init__(self, folder: Path, step: int):
        self.lines, self.table, self.sizes = (folder / name for name in ("log.jsonl", "log.csv", "statistics.jsonl"))
        if sizes := [row for row in read_log(self.sizes) if row["step"] <= step]:
            atomic_write(self.sizes, "".join(json.dumps(row) + "\n" for row in sizes).encode())
        else:
            self.sizes.unlink(missing_ok=True)
        rows = [row for row in read_log(self.lines) if row["step"] < step or (row["step"] == step and "loss" in row)]
        atomic_write(self.lines, b"")
        self._head(COLUMNS, [])
        with self:
            self.add(rows)

    def __enter__(self) -> Log:
        self._lines = self.lines.open("a", encoding="utf-8")
        self._table = self.table.open("a", encoding="utf-8", newline="")
        return self

    def __exit__(self, *_: Any) -> None:
        for file in (self._lines, self._table):
            with contextlib.suppress(OSError):  # the failed write has been reported
                file.close()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Adds rows to both files.

        Raises:
            OSError: if they cannot be written, naming the file.
        """
        try:
            self._add(rows)
        except OSError as error:
            why = f"the log cannot be written: {error.strerror}; earlier checkpoints are complete"
            raise OSError(error.errno, why, str(self.lines)) from error

    def _add(self, rows: list[dict[str, Any]]) -> None:
        if more := dict.fromkeys(name for row in rows for name in row if name not in self.columns):
            self._table.close()
            self._head((*self.columns, *more), read_log(self.lines))
            self._table = self.table.open("a", encoding="utf-8", newline="")
        writer = csv.DictWriter(self._table, self.columns, lineterminator="\n")
        for row in rows:
            self._lines.write(json.dumps(row) + "\n")
            writer.writerow(row)
        self._lines.flush()
        self._table.flush()

    def _head(self, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
        """Begins the table, with these columns and the rows so far."""
        self.columns, text = columns, io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write(self.table, text.getvalue().encode())

    def statistics(self, row: dict[str, Any]) -> None:
        """Adds sizes of activations, gradients and weights, by path."""
        with self.sizes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class Silent(Log):
    """The log of a process that is not the main one: writes nothing."""

    def __init__(self) -> None:
        pass

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def add(self, rows: list[dict[str, Any]]) -> None:
        pass

    def statistics(self, row: dict[str, Any]) -> None:
        pass


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a log; a kill may have cut the last one."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("}\n")]
