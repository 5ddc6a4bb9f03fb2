"""The example of folding: alignments of its fingers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anyformer.media.proteins import read_alignment


def test_others_are_aligned_with_a_protein(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    example: Any = __import__("fold")
    place = tmp_path / "a.a3m"
    place.write_text(example.aligned("ACDEFG", ["ACEFG", "ACWDEFG", "MMMM", "ACDEFG"]))
    rows = read_alignment(place)
    assert rows[0] == "ACDEFG" and rows[1] == "AC-EFG" and rows[2] == rows[4] == "ACDEFG"
    assert all(len(row) == 6 for row in rows)
