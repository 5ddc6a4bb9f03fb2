"""The words of a command line as items of a model: texts, files of texts, standard input, files of pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def texts_of(words: Sequence[str]) -> list[Any]:
    """Texts, and in place of the name of a file its texts: each line of .txt, each row of .jsonl, .csv, .tsv, .parquet
    (its `text`, or its `words`, a list). - is standard input, line by line. Blank lines are left out.

    Raises:
        ValueError: for a file that is not UTF-8 or has no such column; if nothing is left.
    """
    items: list[Any] = []
    for word in words:
        if word == "-":
            items += _lines(sys.stdin.read())
        elif Path(word).suffix in (".txt", ".jsonl", ".csv", ".tsv", ".parquet") and Path(word).is_file():
            items += _read(Path(word))
        else:
            items.append(word)
    if not items:
        raise ValueError(f"no text in {' '.join(words)}: every line is blank")
    return items


def items_of(model: Any, words: Sequence[str]) -> tuple[list[str], list[Any]]:
    """The names of the items and the items: texts, or for a model that sees the files of pictures (- is the picture on
    standard input). A model of both (CLIP) takes words that are no files for texts.

    Raises:
        ValueError: for a model that reads text and has no tokenizer. Others as `texts_of`.
    """
    if "pixel_values" in model.inputs():
        return list(words), [_picture(model, word) for word in words]
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer, which texts need; add its tokenizer.json to the folder")
    texts = [" ".join(map(str, t)) if isinstance(t, list) else str(t) for t in texts_of(words)]
    return texts, texts


def _picture(model: Any, word: str) -> Any:
    if word == "-":
        return sys.stdin.buffer.read()
    return Path(word) if model.vocab is None or Path(word).is_file() else word


def _read(file: Path) -> list[Any]:
    if file.suffix != ".txt":
        from anyformer.data.records import records

        rows = [row.get("words", row.get("text")) for row in records(file)]
        if None in rows:
            raise ValueError(f"{file}, row {rows.index(None) + 1}: no column 'text' or 'words'")
        return rows
    try:
        return _lines(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: byte {error.start} cannot be read; convert it") from None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
