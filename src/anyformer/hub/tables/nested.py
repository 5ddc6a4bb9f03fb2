"""Entries for a part of the model with its own hyperparameters and table.

within("text_config", "text", Text, …)   a config one level down
within_if("use_text", "text_config", …)  the same for a part that a model can lack
beside("text", Text, …)                  keys among those of the model
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.check import shown
from anyformer.hub.tables.config import Lens, Line, hyperparameters, read, write


@dataclass(frozen=True)
class Within(Lens):
    """The entry for a part of the model with a config one level down: its own table, as strict.

    Of several names, all present ones must agree.
    """

    cls: Any = None
    entries: tuple[Lens, ...] = ()

    def tables(self) -> tuple[Lens, ...]:
        """All entries that a config one level down can have."""
        return self.entries

    def values(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        configs = {name: self._read(inner, path)[0] for name, inner, path in self._inner(config, where)}
        first, *others = configs
        for name in others:
            if configs[name] != configs[first]:
                raise ValueError(
                    f"config keys {where + first!r} and {where + name!r} describe two models: {configs[first]} and "
                    f"{configs[name]}; remove one of them"
                )
        return {self.fields[0]: configs[first]}

    def lines(self, config: Mapping[str, Any], where: str) -> list[Line]:
        inner_lines = [line for _, inner, path in self._inner(config, where) for line in self._read(inner, path)[1]]
        return [dataclasses.replace(line, detail=self._dotted(line)) for line in inner_lines]

    def words(self, hyper: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
        inner = getattr(hyper, self.fields[0])
        if inner is None:
            raise ValueError(f"{self.fields[0]} is None, but this format needs {self.names[0]!r}")
        empty = {name: None for name in self.names if name in origin and origin[name] is None}
        names = [name for name in self.names if origin.get(name) is not None] or self.names[:1]
        return empty | {name: write(self.entries, inner, {}, origin.get(name) or {}) for name in names}

    def hyperparameters(self) -> set[str]:
        return {f"{self.fields[0]}.{name}" for name in hyperparameters(self.tables())}

    def _read(self, inner: Mapping[str, Any], path: str) -> tuple[Any, list[Line]]:
        return read(self.entries, inner, self.cls, {}, where=path)

    def _inner(self, config: Mapping[str, Any], where: str) -> list[tuple[str, Mapping[str, Any], str]]:
        """Each name present, with its dictionary and its path."""
        there = [name for name in self.names if config.get(name) is not None]
        if not there:
            raise ValueError(f"the config lacks {where + self.names[0]!r}")
        for name in there:
            if not isinstance(config[name], Mapping):
                raise ValueError(f"config key {where + name!r}: expected a dictionary, got {shown(config[name])}")
        return [(name, config[name], f"{where}{name}.") for name in there]

    def _dotted(self, line: Line) -> str:
        return f"{self.fields[0]}.{line.detail}" if line.status == "used" else line.detail


@dataclass(frozen=True)
class Beside(Within):
    """The entry for a part of the model with its keys among those of the model."""

    def words(self, hyper: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
        inner = getattr(hyper, self.fields[0])
        if inner is None:
            raise ValueError(f"{self.fields[0]} is None, but this format needs a value")
        return write(self.entries, inner, {}, {name: origin[name] for name in self.names if name in origin})

    def _inner(self, config: Mapping[str, Any], where: str) -> list[tuple[str, Mapping[str, Any], str]]:
        return [("", {name: config[name] for name in self.names if name in config}, where)]


@dataclass(frozen=True)
class If(Within):
    """The entry for a part that a model can lack: a dictionary, and a key beside it that says whether it counts.

    The first name is the dictionary, checked in any case, and the second one is the key.
    """

    def values(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        counts = config.get(self.names[1])
        if not isinstance(counts, bool | None):
            raise ValueError(f"config key {where + self.names[1]!r} is {shown(counts)}; expected true or false")
        part = super().values(config, where)
        return part if counts else dict.fromkeys(part)

    def lines(self, config: Mapping[str, Any], where: str) -> list[Line]:
        name = self.names[1]
        here = [Line(where + name, config[name], "used", self.fields[0])] if name in config else []
        return here + super().lines(config, where)

    def words(self, hyper: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
        (name, switch), inner = self.names, getattr(hyper, self.fields[0])
        if inner is None:
            kept = {name: origin[name]} if name in origin else {}
            return kept | ({switch: False} if not origin or switch in origin else {})
        return {switch: True, name: write(self.entries, inner, {}, origin.get(name) or {})}

    def _inner(self, config: Mapping[str, Any], where: str) -> list[tuple[str, Mapping[str, Any], str]]:
        return super()._inner(
            {self.names[0]: {} if config.get(self.names[0]) is None else config[self.names[0]]}, where
        )


def within(theirs: str, ours: str, cls: type, *entries: Lens, also: tuple[str, ...] = ()) -> Lens:
    """Their dictionary `theirs` is our nested hyperparameters `ours`, of the dataclass `cls`, by a table of its own.

    Args:
        also: other names of the dictionary; all present ones must agree.
    """
    return Within((theirs, *also), (ours,), dict, dict, cls=cls, entries=entries)


def within_if(switch: str, theirs: str, ours: str, cls: type, *entries: Lens) -> Lens:
    """As `within`, for a part that a model has only if the key `switch` beside the dictionary is true."""
    return If((theirs, switch), (ours,), dict, dict, cls=cls, entries=entries)


def beside(ours: str, cls: type, *entries: Lens) -> Lens:
    """Keys of their own level are our nested hyperparameters `ours`, of the dataclass `cls`."""
    names = tuple(name for entry in entries for name in entry.names)
    return Beside(names, (ours,), dict, dict, cls=cls, entries=entries)
