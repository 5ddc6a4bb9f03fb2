"""Tables that examples write into documents."""

from __future__ import annotations

from pathlib import Path


def put(document: Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between two marks of a document."""
    before, _, rest = document.read_text("utf-8").partition(begin)
    document.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", "utf-8")
