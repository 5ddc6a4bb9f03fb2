"""The examples run, from the data to the scores, on a book of two pages."""

import json
import runpy
import sys
from pathlib import Path

import pytest

import anyformer as af
from anyformer.hub.text.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


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
    small = [
        "--corpus",
        "handbook",
        "--language",
        "de-DE",
        "--steps",
        "3",
        "--dim",
        "16",
        "--depth",
        "1",
        "--vocab",
        "280",
        "--tokens",
        "300",
        "--beams",
        "2",
    ]
    monkeypatch.syspath_prepend(EXAMPLES)  # as `python examples/translation.py` has it
    monkeypatch.setattr(sys, "argv", ["translation.py", "--out", str(out), *small])
    runpy.run_path(str(EXAMPLES / "translation.py"), run_name="__main__")
    scores = json.loads((out / "scores.json").read_text())["scores"]
    assert set(scores) == {"copy of the source", "word by word", "transformer, greedy", "transformer, 2 beams"}
    assert scores["word by word"]["chrf"] > scores["copy of the source"]["chrf"]
    assert "held out" in capsys.readouterr().out


def test_grouped_heads(tmp_path, monkeypatch, capsys):
    model = af.build("llama", "tiny", vocab=257, context=512, kv_heads=4, seed=0)
    model.tokenizer = Tokenizer.bytes_level()
    model.save(tmp_path / "model")
    small = ["--steps", "2", "--windows", "2", "--batch", "1", "--kv-heads", "2", "--out", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["grouped_heads.py", "--model", str(tmp_path / "model"), *small])
    runpy.run_path(str(EXAMPLES / "grouped_heads.py"), run_name="__main__")
    whole, pooled = json.loads((tmp_path / "found.json").read_text())["perplexity"].values()
    assert pooled["parameters"] < whole["parameters"] and 2 * pooled["state"] == whole["state"]
    assert all(100 < row[when] < 500 for row in (whole, pooled) for when in ("before", "after"))
    assert "2 key and value head" in capsys.readouterr().out
