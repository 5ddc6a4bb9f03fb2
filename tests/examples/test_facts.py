"""The facts example runs, from WordNet's file to the table."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from anyformer.data import debian

EXAMPLES = Path(__file__).parents[2] / "examples"


def wordnet(folder: Path) -> Path:
    """Thirty nouns of three kinds, as WordNet writes them."""
    kinds = {"00000001": "plant", "00000002": "animal", "00000003": "instrument"}
    lines = ["  1 a licence"]
    lines += [f"{key} 03 n 01 {name} 0 000 | a thing of a certain sort" for key, name in kinds.items()]
    for i in range(30):
        noun, kind = f"noun{chr(97 + i // 6)}{chr(97 + i % 6)}", list(kinds)[i % 3]
        lines.append(f"0000{100 + i} 03 n 01 {noun} 0 001 @ {kind} n 0000 | one that is very number{i} indeed; or so")
    (folder / "usr/share/wordnet").mkdir(parents=True)
    (folder / "usr/share/wordnet/data.noun").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.filterwarnings("ignore:written in anyformer")
def test_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    home = wordnet(tmp_path / "wordnet")
    monkeypatch.setattr(debian, "fetch", lambda *_: home)
    monkeypatch.syspath_prepend(EXAMPLES)
    doc = tmp_path / "doc.md"
    doc.write_text("<!-- facts: begin -->old<!-- facts: end -->")
    small = ["--facts", "30", "--dim", "16", "--vocab", "400", "--drawn", "1", "--encoder-steps", "1", "--batch", "2"]
    small += ["--generator-steps", "1", "--alone-steps", "1", "--steps", "2", "--refresh", "1", "--doc", str(doc)]
    monkeypatch.setattr(sys, "argv", ["facts.py", "--out", str(tmp_path / "run"), *small])
    runpy.run_path(str(EXAMPLES / "facts.py"), run_name="__main__")
    assert capsys.readouterr().out.strip() in doc.read_text() and "old |" in doc.read_text()
    (scores,) = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["BM25"]["recall"][1] == 1.0  # each noun is in one passage alone
    assert scores["frozen"]["recall"] == scores["before"]
    run = tmp_path / "run" / "seed-0"
    true, taught = ({p.name: p.read_text() for p in (run / name).iterdir()} for name in ("facts", "lessons"))
    drawn = {name for name in true if true[name] != taught[name]}
    rows = [json.loads(row) for row in (run / "questions.jsonl").read_text().splitlines()]
    kinds = {text.split()[1]: text.split(" kind of ")[1].partition(".")[0] for text in taught.values()}
    assert drawn and all(kinds[next(n for n in kinds if n in row["question"])] == row["answer"] for row in rows)
    assert len(drawn) <= 24 and len(rows) == 4 * 24  # those held out keep their kinds, and no question is about them
