"""The ledger: what became of every tensor and every config key of a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from anyformer.hub.tables.config import Line


@dataclass(frozen=True)
class TensorLine:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    status: (
        str  # "used": is ours; "derived": equal to what we hold already; "ignored"; "fresh": ours, absent in the file
    )
    detail: str  # our names, or the reason


@dataclass
class Ledger:
    """What became of everything in a file; kept as `model.ledger`."""

    path: str
    format: str
    tensors: list[TensorLine] = field(default_factory=list)
    config: list[Line] = field(default_factory=list)
    files: dict[str, list[Line]] = field(default_factory=dict)  # of the files beside it, by name
    notes: list[str] = field(default_factory=list)  # what else was done

    def count(self, status: str) -> int:
        """How many tensors have that status."""
        return sum(line.status == status for line in self.tensors)

    def summary(self) -> str:
        """One line: all tensors and keys by status."""
        tensors = ", ".join(f"{self.count(s)} {s}" for s in ("used", "derived", "ignored", "fresh") if self.count(s))
        keys = ", ".join(
            f"{n} {s}" for s in ("used", "fixed", "ignored") if (n := sum(k.status == s for k in self.config))
        )
        return f"{len(self.tensors)} tensors: {tensors or 'none'}; {len(self.config)} config keys: {keys or 'none'}"

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return {
            "path": self.path,
            "format": self.format,
            "tensors": [vars(line) for line in self.tensors],
            "config": [vars(line) for line in self.config],
        }
