"""The ledger: the status of every tensor and every key of a model's files.

One mechanism for the files beside config.json: a table of `Keys` gives the use of each key of such a file, and
`account` checks a file against it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from anyformer.core.value import nearest
from anyformer.hub.tables.config import Line


@dataclass(frozen=True)
class TensorLine:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    status: str  # "used": is ours; "derived": equal to another tensor; "ignored"; "fresh": ours, absent in the file
    detail: str  # our names, or the reason


@dataclass(frozen=True)
class Keys:
    """The keys of a kind of file.

    Args:
        used: key -> what it sets here.
        ignored: reason -> keys that change nothing here.
        only: key -> the values with which it changes nothing; another one is refused.
        refused: keys that are refused whatever their value, with the reason.
    """

    used: Mapping[str, str]
    ignored: Mapping[str, Collection[str]] = field(default_factory=dict)
    only: Mapping[str, Collection[Any]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def account(self, where: object, content: Mapping[str, Any], ignore: Collection[str] = ()) -> list[Line]:
        """The lines of a file, one for each key. `ignore`: keys that the caller passes over.

        Raises:
            ValueError: naming file and key, if one is unknown or has a value that would change the result.
        """
        why = {key: reason for reason, keys in self.ignored.items() for key in keys}
        lines = []
        for key, value in content.items():
            if key in ignore:
                lines.append(Line(key, value, "ignored", "as asked"))
            elif key in self.used:
                lines.append(Line(key, value, "used", self.used[key]))
            elif value is None or value in self.only.get(key, ()):
                lines.append(Line(key, value, "ignored", "changes nothing with this value"))
            elif key in why:
                lines.append(Line(key, value, "ignored", why[key]))
            elif key in self.refused or key in self.only:
                reason = self.refused.get(key) or f"only {' or '.join(map(repr, self.only[key]))} is supported"
                raise ValueError(f"{where}: key {key!r} is {value!r:.80}: {reason}. {passing(key)}")
            else:
                known = [*self.used, *why, *self.only]
                raise ValueError(f"{where}: key {key!r} is unknown{nearest(key, known)}. {passing(key)}")
        return lines


def passing(key: str) -> str:
    """The hint for error messages: how to pass over a key."""
    return f"If it changes nothing: load(..., ignore=[{key!r}]), or --ignore {key}"


@dataclass
class Ledger:
    """The status of every tensor and key of a model's files; kept as `model.ledger`."""

    path: str
    format: str
    tensors: list[TensorLine] = field(default_factory=list)
    config: list[Line] = field(default_factory=list)
    files: dict[str, list[Line]] = field(default_factory=dict)  # of the files beside it, by name
    notes: list[str] = field(default_factory=list)  # anything else that was done

    def count(self, status: str) -> int:
        """The number of tensors with that status."""
        return sum(line.status == status for line in self.tensors)

    def summary(self) -> str:
        """One line: all tensors and keys by status, and the notes; nothing of a file without keys."""
        tensors = ", ".join(f"{self.count(s)} {s}" for s in ("used", "derived", "ignored", "fresh") if self.count(s))
        files = {"config keys": self.config, **{f"keys of {name}": lines for name, lines in self.files.items()}}
        parts = [f"{len(self.tensors)} tensors: {tensors or 'none'}"]
        parts += [_counted(kind, lines) for kind, lines in files.items() if lines]
        return "; ".join([*parts, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return {
            "path": self.path,
            "format": self.format,
            "tensors": [vars(line) for line in self.tensors],
            "config": [vars(line) for line in self.config],
            "files": {name: [vars(line) for line in lines] for name, lines in self.files.items()},
            "notes": list(self.notes),
        }


def _counted(kind: str, lines: list[Line]) -> str:
    statuses = ("used", "fixed", "ignored", "refused")
    keys = ", ".join(f"{n} {s}" for s in statuses if (n := sum(k.status == s for k in lines)))
    return f"{len(lines)} {kind}: {keys}"
