"""Explaining what small models say: the command, what it prints, and the pages, between the marks of a document."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import anyformer as af
from anyformer.hub.text.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_explained(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    import explained

    model = af.build("llama", "tiny", vocab=257, seed=0)
    model.tokenizer = Tokenizer.bytes_level()
    model.save(tmp_path / "model")
    doc = tmp_path / "doc.md"
    doc.write_text(f"before\n{explained.MARKS[0]}\n{explained.MARKS[1]}\nafter\n")
    cases = [("a model on bytes", [str(tmp_path / "model"), "a cat", "--method", "grad"])]
    monkeypatch.setattr(explained, "PARTS", {"bytes": lambda out: cases})
    monkeypatch.setattr(sys, "argv", ["explained.py", "--out", "runs", "--only", "bytes", "--doc", str(doc)])
    explained.main()
    text = doc.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "A model on bytes:" in text
    assert f"$ anyformer explain {tmp_path / 'model'} 'a cat' --method grad" in text and "score" in text
    assert {f.name for f in (tmp_path / "runs").iterdir()} == {"bytes-0.html", "bytes-0.png"}
    assert text.split("```text\n")[1].split("```")[0] in capsys.readouterr().out
