"""The examples run, from the data to the scores, on a book of two pages."""

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_translation(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sacrebleu")
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    for language, words in (
        ("en-US", ("The house", "is old", "and new")),
        ("de-DE", ("Das Haus", "ist alt", "und neu")),
    ):
        folder = tmp_path / "debian-handbook" / language
        folder.mkdir(parents=True)
        paragraphs = (f'<div class="para">{words[i % 3]} {i}. {words[i // 3 % 3]} {i}!</div>' for i in range(60))
        (folder / "a.html").write_text("".join(paragraphs))
    out = tmp_path / "run"
    small = ["--steps", "3", "--dim", "16", "--depth", "1", "--vocab", "280", "--tokens", "300", "--beams", "2"]
    monkeypatch.setattr(sys, "argv", ["translation.py", "--out", str(out), *small])
    runpy.run_path(str(EXAMPLES / "translation.py"), run_name="__main__")
    scores = json.loads((out / "scores.json").read_text())["scores"]
    assert set(scores) == {"copy of the source", "word by word", "transformer, greedy", "transformer, 2 beams"}
    assert scores["word by word"]["chrf"] > scores["copy of the source"]["chrf"]
    assert "held out" in capsys.readouterr().out
