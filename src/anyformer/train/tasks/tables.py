"""Tables of rows, read once into examples on disk (`data.store`)."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.data import pictures, tables
from anyformer.data.corpus import weights
from anyformer.data.mixing import shares
from anyformer.data.records import Row, Source, find, fingerprint, records
from anyformer.data.store import Example, Store, stored
from anyformer.train.tasks.encode import RowEncoder
from anyformer.train.tasks.registry import KINDS
from anyformer.train.tasks.splits import EVERY, _drawn

NO_TEXT = {"label", "labels", "image", "sound", "codes", "semantic", "features", "boxes"}


@dataclass(frozen=True)
class Table:
    """One source of rows, begun again whenever it is read; images of a folder are named and not opened."""

    source: Source
    fields: dict[str, str]
    weight: float = 1.0

    def columns(self) -> tuple[str, ...]:
        """Those of the first row.

        Raises:
            ValueError: if there is none. Others: see `records`.
        """
        first = next(self.rows(()), None)
        if first is None:
            raise ValueError(f"{self.source.name} holds no examples")
        return tuple(first)

    def rows(self, need: Sequence[str]) -> Iterator[Row]:
        """All rows with the columns in `need`; of a Parquet file only these are read."""
        if self.source.kind != "images":
            fields = {ours: theirs for ours, theirs in self.fields.items() if ours in need} or self.fields
            if self.source.kind == "parquet" and not fields:
                fields = {name: name for name in need}
            yield from records(self.source, fields, need)
            return
        for path, name in zip(self.source.files, tables.classes(self.source.root, self.source.files), strict=True):
            yield {"image": path.relative_to(self.source.root), "label": name}

    def key(self, columns: tuple[str, ...]) -> str:
        """Equal for equal rows. Of a folder of images, names and sizes decide, not the content."""
        if self.source.kind == "images":
            sizes = [(str(f.relative_to(self.source.root)), f.stat().st_size) for f in self.source.files]
            return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
        if self.source.files:
            return fingerprint(self.source, self.fields)
        digest = hashlib.sha256()
        for row in self.rows(columns):  # a published data set
            for name in columns:
                value = pictures.content(row[name]) if name == "image" else repr(row[name]).encode("utf-8", "replace")
                digest.update(f"{name} {len(value)} ".encode() + value)
        return digest.hexdigest()

    def store(self, encoder: RowEncoder, key: str, cache: str | Path | None) -> Store:
        """Its examples, encoded now or before."""
        root = self.source.root.absolute()
        encoder = replace(encoder, root=root)

        def examples() -> Iterator[Example | None]:
            return encoder.all(self.rows(encoder.columns), self.source.name)

        images = KINDS[encoder.task].media  # where they lie is a part of what is stored
        return stored(examples, f"{key} {root if images else ''} {encoder.fingerprint()}", cache)


def read(data: Any, fields: dict[str, str] | None) -> list[Table]:
    """The tables of `data`: a source, or several with weights, see `data.corpus.weights`."""
    wanted = weights(data)
    shares(tuple(wanted.values()))
    return [Table(find(name), dict(fields or {}), weight) for name, weight in wanted.items()]


def classes(tables: Sequence[Table], columns: tuple[str, ...], least: int = 2) -> tuple[str, ...]:
    """The names of all classes in the last of these columns, sorted, numbers as numbers. A class is its text: 1 and "1"
    are one, "7" and "007" two.

    Raises:
        ValueError: if there are fewer than `least`.
    """
    names: set[str] = set()
    for table in tables:
        for row in table.rows(columns[-1:]):
            label = row[columns[-1]]
            names.update(map(str, label if isinstance(label, list) else [label]))
    if len(names) < least:
        listed_names = ", ".join(map(repr, names))
        raise ValueError(f"the rows have one class only: every label is {listed_names}; classification needs two")
    return in_order(names)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes, sorted, numbers as numbers and first."""
    return tuple(sorted(names, key=_place))


def _place(name: str) -> tuple[bool, float, str]:
    """The sort key of a class: numbers first, by their size."""
    number = re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", name, re.ASCII | re.IGNORECASE)
    return number is None, float(name) if number else 0.0, name


def listed(names: Sequence[str]) -> str:
    """The number of classes and their names, as text; and a note about labels that are scores."""
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    scores = all(not _place(name)[0] for name in names) and any(float(name) % 1 for name in names)
    more = "; each number is a class of its own: regression is not supported" if scores else ""
    return f"{len(names)} classes: {shown}{more}"


def width(table: Table, column: str) -> int:
    """The numbers of an object in the first row.

    Raises:
        ValueError: if its value is no list of lists.
    """
    value = next(table.rows((column,)))[column]
    if not isinstance(value, list) or not value or not isinstance(value[0], list):
        raise ValueError(
            f"{table.source.name}: {column!r} must be a list of numbers for each object, got {value!r:.60}"
        )
    return len(value[0])


def has_text(columns: Sequence[str]) -> bool:
    """True if some of the columns hold text."""
    return not NO_TEXT.issuperset(columns)


def words(tables: Sequence[Table], columns: tuple[str, ...]) -> Iterator[str]:
    """All text of the rows that `one_in_ten` does not hold out, for a tokenizer."""
    texts = [name for name in columns if name not in NO_TEXT]
    for table in tables:
        every = iter(table.rows(columns))
        for number in itertools.count():
            block = list(itertools.islice(every, EVERY))
            if not block:
                break
            del block[int(_drawn(np.array(number), np.array(len(block))))]
            for value in (row[name] for row in block for name in texts):
                yield " ".join(map(str, value)) if isinstance(value, list) else str(value)
