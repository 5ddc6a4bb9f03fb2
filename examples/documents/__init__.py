"""Tables that examples write into documents."""

from __future__ import annotations

from pathlib import Path


def put(document: Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between two marks of a document.

    Raises:
        ValueError: for a document without them.
    """
    before, mark, rest = document.read_text("utf-8").partition(begin)
    if not mark or end not in rest:
        raise ValueError(f"{document} has no lines {begin} and {end}, between which the table would stand")
    document.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", "utf-8")
