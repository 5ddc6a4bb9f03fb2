"""Rows from any source: text, folders, JSONL, CSV, Parquet, image folders, saved and published data sets.

```
book.txt  texts/            {"text": piece, "document": 0}     a long document: several rows with one number
a.jsonl   a.csv   a.tsv     {"text": …, "label": …, …}         one row a line
a.parquet                   {column: value}                    one row a row
a.fasta   a.fa    a.faa     {"name": …, "text": letters}       one row a chain of a protein
pictures/cat/1.png          {"image": PIL.Image, "label": 0, "class": "cat"}
talks/1.wav  talks/1.txt    {"sound": "1.wav", "text": …}       a sound beside its text
kaldi/wav.scp  kaldi/text   {"sound": …, "text": …}            Kaldi's two lists, of files and of texts
saved/ (datasets' own)      {column: value}                    `Dataset.save_to_disk`
hub:owner/name/config#test  {column: value}                    split `train` by default
```
.gz and .zst of the text formats are read too; `folder/*.jsonl` is all matching files, sorted; a folder of files of one
of these kinds is read as that kind. `fields` maps our names to the columns': `{"text": "content"}`. Reading streams:
no file is ever whole in memory.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core.value import nearest
from anyformer.data import files, sounds, sources, tables

Row = dict[str, Any]
NAMES = (  # the names that our own readers use
    "text", "label", "source", "target", "image", "messages", "prompt", "response", "anchor", "positive", "words",
    "labels", "states", "actions", "rewards", "sound", "codes", "semantic", "nodes", "edges", "smiles", "choices",
    "first", "second", "group",
)  # fmt: skip
KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".png": "images",
    ".fasta": "fasta", ".fa": "fasta", ".faa": "fasta",
    ".wav": "sounds", ".flac": "sounds", ".ogg": "sounds", ".mp3": "sounds",
    ".jpg": "images", ".jpeg": "images", ".webp": "images", ".bmp": "images", ".gif": "images",
}  # fmt: skip
HUB = "hub:"
HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Source:
    """A source of rows: its `kind`, its files in order, and their folder."""

    name: str
    kind: str
    files: tuple[Path, ...]
    root: Path


def find(source: str | Path) -> Source:
    """The source of that name; only folders are read.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: for an empty folder, or one that mixes kinds.
    """
    name = str(source)
    if name == "pydoc" and not Path(name).exists():
        return Source(name, "pydoc", (), Path())
    if name.startswith(HUB):
        return Source(name, "hub", (), Path())
    path = Path(source).expanduser()
    if path.is_file():
        kind = "jsonl" if files.suffix(path) == ".json" else KINDS.get(files.suffix(path), "text")
        if kind == "images":
            raise ValueError(f"{path} is one picture; pass the folder of its class folders, with class/name.png below")
        if kind == "sounds":
            raise ValueError(f"{path} is one sound; pass its folder, in which each sound has a text beside it")
        return Source(name, kind, (path,), path.parent)
    if path.is_dir():
        visible = [f for f in sorted(path.rglob("*")) if not any(p[0] == "." for p in f.relative_to(path).parts)]
        matches = tuple(f for f in visible if f.is_file())
        if {"state.json", "dataset_dict.json"} & {f.name for f in matches if f.parent == path}:
            return Source(name, "arrow", matches, path)
        return Source(name, _kind(path, matches), matches, path)
    if glob.has_magic(name):
        matching = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if matches := tuple(f for f in matching if f.is_file()):
            return Source(name, _kind(path, matches), matches, path.parent)
    raise FileNotFoundError(
        f"there is no file or folder {name!r}; pydoc is the built-in text, hub:owner/name a published data set"
    )


def _kind(path: Path, paths: Sequence[Path]) -> str:
    """The one kind of several files; texts beside sounds are theirs."""
    if {"wav.scp", "text"} <= {file.name for file in paths if file.parent == path}:
        return "kaldi"
    kinds: dict[str, Path] = {}
    for file in paths:
        kinds.setdefault(KINDS.get(files.suffix(file), "text"), file)
    if kinds.keys() == {"sounds", "text"}:
        return "sounds"
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} ({file.name} …)" for kind, file in kinds.items())
        raise ValueError(
            f"{path} mixes {listed}; choose one kind, e.g. '{path.parent if glob.has_magic(str(path)) else path}/**/*"
            f"{next(iter(kinds.values())).suffix}' (in quotes)"
        )
    return next(iter(kinds), "text")


def records(
    source: str | Path | Source, fields: Mapping[str, str] | None = None, need: Sequence[str] = ()
) -> Iterator[Row]:
    """The rows of a source, one after another.

    Args:
        source: see the table above, or a result of `find`.
        fields: our names -> columns. With it, a row has these only. Plain text has no columns, and is always `text`.
        need: names that every row must have.

    Raises:
        FileNotFoundError, ValueError: at once for an invalid source or field name; while reading, with file and row,
            for text that is not UTF-8 (with the byte), a damaged file, a line that is no row, a column that is missing,
            null or NaN. ImportError: naming the package to install for Parquet, images or data sets.
    """
    for name in fields or ():
        if name not in NAMES:
            raise ValueError(f"fields: no name {name!r}{nearest(name, NAMES, 1)}; there is {', '.join(NAMES)}")
    resolved = source if isinstance(source, Source) else find(source)
    columns = Columns(dict(fields or {}), tuple(need))
    if resolved.kind in ("text", "pydoc"):
        return _texts(resolved, columns)
    if resolved.kind == "images":
        return tables.images(resolved.root, resolved.files)
    if resolved.kind in ("sounds", "kaldi"):
        rows = (sounds.kaldi if resolved.kind == "kaldi" else sounds.beside)(resolved.root, resolved.files)
        return columns.of(resolved.name, rows)
    if resolved.kind == "hub":
        return columns.of(resolved.name, tables.hub(resolved.name.removeprefix(HUB)))
    if resolved.kind == "arrow":
        return columns.of(resolved.name, tables.arrow(resolved.root))
    read: dict[str, Callable[[Path], Iterator[Row]]] = {
        "jsonl": tables.jsonl,
        "csv": tables.csv_rows,
        "fasta": tables.proteins,
        "parquet": lambda file: tables.parquet(file, list(columns.fields.values())),
    }
    return (row for file in resolved.files for row in columns.of(file, read[resolved.kind](file)))


@dataclass(frozen=True)
class Columns:
    """The selected columns of a row, and their checks."""

    fields: dict[str, str]
    need: tuple[str, ...]

    def of(self, where: object, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows with our names, checked. `where` is named in errors."""
        for number, row in enumerate(rows):
            yield self.take(row, f"{where}, row {number + 1}")

    def take(self, row: Row, where: str) -> Row:
        """One row."""
        for column in self.fields.values():
            if column not in row:
                raise _missing(column, row, where, "")
        taken = {ours: row[theirs] for ours, theirs in self.fields.items()} if self.fields else row
        for name in self.need:
            if name not in taken:
                hint = f" If it is in another column: fields={{'{name}': 'COLUMN'}}, or --fields.{name} COLUMN"
                raise _missing(name, taken if self.fields else row, where, hint)
        for name in self.need or self.fields or taken:
            value = taken[name]
            if half(value):
                raise ValueError(
                    f"{where}: {name!r} has half a surrogate pair (a letter that was cut in two), which UTF-8 cannot "
                    "write; repair it, or leave the row out"
                )
            for item in value if isinstance(value, list) else (value,):
                if item is None and (name in self.need or name in self.fields):
                    raise ValueError(f"{where}: {name!r} has no value (null); fill it in, or leave the row out")
                if isinstance(item, float) and not math.isfinite(item):
                    raise ValueError(f"{where}: {name!r} is {item}; put a value there, or leave the row out")
        return taken


def half(value: Any) -> bool:
    """True if this text, or a text inside, has half a surrogate pair."""
    if isinstance(value, str):
        return not value.isascii() and HALF.search(value) is not None
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(half(item) for item in inside)


def _missing(name: str, row: Row, where: str, hint: str) -> ValueError:
    has = ", ".join(map(repr, row)) or "no column"
    return ValueError(f"{where}: no column {name!r}{nearest(name, list(row), 1)}; it has {has}.{hint}")


def _texts(source: Source, columns: Columns) -> Iterator[Row]:
    """Documents in pieces; blank ones are left out."""
    other = [name for name in (*columns.need, *columns.fields) if name != "text"]
    if other:
        raise ValueError(f"{source.name} is plain text and has only 'text', not {other[0]!r}")
    number = 0
    for parts in [[sources.text("pydoc")]] if source.kind == "pydoc" else map(files.decoded, source.files):
        blank: list[str] = []  # pieces before the first that is not
        seen = False
        for piece in files.pieces(parts):
            if not seen and not piece.strip():
                blank.append(piece)
                continue
            for text in (*blank, piece):
                yield {"text": text, "document": number}
            seen, blank = True, []
        number += seen


def texts(source: str | Path | Source, fields: Mapping[str, str] | None = None) -> Iterator[tuple[int, str]]:
    """(number of the document, piece of it): the `text` of all rows, long ones in pieces, blank ones left out.

    Raises:
        ValueError: as `records`; for a `text` that is not a str; and when there is no text at all.
    """
    resolved, number = source if isinstance(source, Source) else find(source), -1
    for row in records(resolved, fields, need=("text",)):
        text = row["text"]
        if not isinstance(text, str):
            raise ValueError(f"{resolved.name}: 'text' must be text, got {type(text).__name__}: {str(text)[:60]!r}")
        if "document" in row and resolved.kind in ("text", "pydoc"):
            number = row["document"]
            yield number, text
        elif text.strip():
            number += 1
            yield from ((number, piece) for piece in files.pieces([text]))
    if number < 0:
        many = f" ({len(resolved.files)} files)" if len(resolved.files) != 1 else ""
        raise ValueError(f"{resolved.name} holds no text{many}")


def fingerprint(source: Source, fields: Mapping[str, str] | None = None) -> str:
    """SHA-256 of a source's content and of the reading options: equal content, equal text, whatever the file paths.

    Files are hashed without being parsed; a published data set row by row.
    """
    digest = hashlib.sha256(json.dumps([source.kind, sorted((fields or {}).items())]).encode())
    if not source.files:
        for number, text in texts(source, fields):
            digest.update(f"{number} {len(text)} ".encode() + text.encode("utf-8", "surrogatepass"))
    for file in source.files:
        digest.update(f"{files.suffix(file)} {file.stat().st_size} ".encode())
        with file.open("rb") as content:
            while chunk := content.read(files.READ):
                digest.update(chunk)
    return digest.hexdigest()
