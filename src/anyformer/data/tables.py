"""One reader for each format, file to rows, for `records`. A reader imports the packages of its format."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anyformer.core.value import nearest
from anyformer.data import files
from anyformer.media.picture import coloured, picture
from anyformer.media.proteins import fasta, sequence

FIELD = 1 << 30  # characters of one CSV field; Python's own limit of 131,072 is less than a long article
ROWS = 64  # rows of a Parquet file that are in memory at once


def jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line; blank lines are left out."""
    for number, line in enumerate(files.lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deeply nested"
            what = (
                "a JSON array over several lines" if number == 1 and line.lstrip()[0] == "[" else f"not JSON: {reason}"
            )
            raise ValueError(f"{path}, line {number} is {what}. {_ONE}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is a {type(row).__name__}, not an object. {_ONE}")
        yield row


_ONE = 'One object a line is read, e.g. {"text": "…"}; an array becomes that with jq -c \'.[]\''


def proteins(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a FASTA file: the name of a protein, and a chain's letters in capitals, rare ones as they are."""
    for name, letters in fasta(files.lines(path), path):
        sequence(letters, f"{path}: {name}")  # refuses what is no residue
        for chain in letters.upper().removesuffix("*").split(":"):
            yield {"name": name, "text": "".join(chain.split())}


def csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a table with a line of names; .tsv has tabs. All values are text, except a `label` in the usual form of a
    whole number."""
    csv.field_size_limit(FIELD)
    reader = csv.reader(files.lines(path), delimiter="\t" if files.suffix(path) == ".tsv" else ",", strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: a column name comes twice in {', '.join(map(repr, names))}")
        for cells in reader:
            if len(cells) != len(names) and cells:
                raise ValueError(
                    f"{path}, line {reader.line_num} has {len(cells)} cells and the first line {len(names)} names; "
                    "a cell with a comma or a line end stands in quotes"
                )
            if cells:
                row: dict[str, Any] = dict(zip(names, cells, strict=True))
                if "label" in row:
                    row["label"] = _class(row["label"])
                yield row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV: {error}") from None


def _class(cell: str) -> int | float | str | None:
    """A class from a cell: "007", "1_0" and "7.0" unchanged, 7 as a number; None for an empty cell, NaN and infinity
    for the marks of missing values in tables."""
    if re.fullmatch(r"0|-?[1-9]\d{0,17}", cell, re.ASCII):
        return int(cell)
    return float(cell) if cell.lower() in ("nan", "inf", "-inf") else cell or None


def parquet(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file; of `columns`, if any."""
    pyarrow, pq = module("pyarrow", "Parquet"), module("pyarrow.parquet", "Parquet")
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # else the whole file is read ahead
            names = file.schema_arrow.names
            for name in columns:
                if name not in names:
                    has = ", ".join(map(repr, names))
                    raise ValueError(f"{path}: no column {name!r}{nearest(name, names, 1)}; it has {has}")
            for batch in file.iter_batches(ROWS, columns=list(columns) or None):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from None


def classes(root: Path, paths: Sequence[Path]) -> list[str]:
    """The class of each of these files: `root/CLASS/NAME`.

    Raises:
        ValueError: for a file in no class folder.
    """
    below = [path.relative_to(root).parts for path in paths]
    if flat := next((path for path, parts in zip(paths, below, strict=True) if len(parts) < 2), None):
        raise ValueError(f"{flat} is not in a class folder; images are read from {root}/CLASS/NAME")
    return [parts[0] for parts in below]


def images(root: Path, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Rows of `root/class/name.png`: image (PIL, RGB), label (index of the class among the sorted ones), class."""
    folders = classes(root, paths)
    names = sorted(set(folders))
    for path, name in zip(paths, folders, strict=True):
        yield {"image": coloured(picture(path), 3), "label": names.index(name), "class": name}


def arrow(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of a folder that `datasets.Dataset.save_to_disk` wrote; memory-mapped."""
    datasets = module("datasets", "a saved data set")
    if (folder / "dataset_dict.json").exists():
        splits = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir()))
        raise ValueError(f"{folder} holds several data sets: {splits}; choose one, e.g. {folder}/train")
    try:
        rows = datasets.load_from_disk(str(folder))
    except Exception as error:  # any error of a damaged Arrow file
        raise ValueError(f"{folder} cannot be read as a data set: {error}") from None
    yield from rows


def hub(name: str) -> Iterator[dict[str, Any]]:
    """Rows of a published data set, `owner/name`, `owner/name/config`, `…#split`; or of a folder laid out like one."""
    datasets = module("datasets", "a published data set")
    place, _, split = name.partition("#")
    path, config = place, None
    if not Path(place).exists() and place.count("/") > 1:
        owner, title, config = place.split("/", 2)
        path = f"{owner}/{title}"
    try:
        rows = datasets.load_dataset(path, config, split=split or "train", streaming=True)
    except Exception as error:  # of the network, the hub, the loader: `datasets` raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the data set hub:{name} cannot be opened: {type(error).__name__}: {reason}") from None
    yield from rows


def module(name: str, what: str, package: str = "") -> Any:
    """A module of an optional dependency; ImportError in one line if it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f"{what} needs `pip install {package or name.partition('.')[0]}`") from None
