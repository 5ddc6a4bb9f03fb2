"""Plain tables and numbers for a terminal; JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any


def table(rows: Iterable[Sequence[Any]], indent: int = 2, right: Sequence[int] = ()) -> str:
    """Rows as columns of equal width; the columns in `right` end flush, the last one is not padded."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append(" " * indent + "  ".join(padded).rstrip())
    return "\n".join(lines)


def size(count: float) -> str:
    """Bytes for people: 538.1 MB (powers of 1000)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def dump(data: Any) -> str:
    """JSON, two spaces, as it stands in other tools."""
    return json.dumps(data, indent=2, ensure_ascii=False)
