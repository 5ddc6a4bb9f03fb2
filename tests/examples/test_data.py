"""The files of examples/data.py that need no download."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "data.py"
RECORD = "Package: p{0}\nSection: {1}\nDescription: thing {0}\n of the kind\n .\n more\n"


def test_sections_are_those_of_packages_each_text_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: dict[str, Any] = runpy.run_path(str(EXAMPLE))
    records = [RECORD.format(n % 12, "contrib/games" if n % 12 < 10 else "rare") for n in range(24)] + [
        "Package: none\n"
    ]
    monkeypatch.setitem(module["sections"].__globals__, "available", lambda: "\n".join(records))
    module["sections"](tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "sections.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{"text": f"thing {n}. of the kind", "label": "games"} for n in range(10)]
