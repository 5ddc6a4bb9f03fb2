"""The example of preferences: its pairs, a run, and the table in a document."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import anyformer as af
from anyformer.hub.text.tokenizer import Tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "preferences.py"
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


def test_the_example_writes_pairs_learns_and_fills_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = af.build("llama", "tiny", vocab=257, context=256, seed=0)
    model.tokenizer = Tokenizer.bytes_level()
    model.tokenizer.template = TEMPLATE
    model.save(tmp_path / "model")
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    module: dict[str, Any] = runpy.run_path(str(EXAMPLE))
    changed = module["main"].__globals__
    monkeypatch.setitem(changed, "THINGS", ("a kite", "a rose", "an owl"))
    monkeypatch.setitem(changed, "HELD", 1)
    long = "One more! " * 30
    monkeypatch.setitem(changed, "answered", lambda model, asked, tokens: [f"It is {q[8:]} {long}" for q in asked])
    document = tmp_path / "doc.md"
    document.write_text("before\n{}\nold\n{}\nafter\n".format(*module["MARKS"]))
    words = [
        str(tmp_path / "out"),
        "--model",
        str(tmp_path / "model"),
        "--sft",
        "1",
        "--steps",
        "2",
        "--doc",
        str(document),
    ]
    monkeypatch.setattr(sys, "argv", ["preferences.py", *words])
    module["main"]()
    learned = [json.loads(line) for line in (tmp_path / "out/learn.jsonl").read_text().splitlines()]
    held = [json.loads(line) for line in (tmp_path / "out/held.jsonl").read_text().splitlines()]
    assert len(learned) == 12 and len(held) == 6 and not {r["prompt"] for r in learned} & {r["prompt"] for r in held}
    kept = list(module["KEPT"].values())
    broken = [[not keeps(row["rejected"]) for keeps in kept] for row in learned]
    assert sorted(map(tuple, broken)) == sorted(4 * [(True, False, False), (False, True, False), (False, False, True)])
    assert all(keeps(row["chosen"]) for row in learned for keeps in kept)
    text = document.read_text()
    assert "old" not in text and "| | before | after 1 steps of sft | after 2 steps of dpo |" in text
    assert "held-out answers that keep all three | 0% | 0% | 0% |" in text and text.strip() and capsys.readouterr().out
