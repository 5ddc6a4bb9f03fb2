"""The examples of evaluation and of a constitution, with tiny models: their files and their tables."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import anyformer as af
from anyformer.hub.text.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = ["bear", "boat", "book", "cake", "coat", "corn", "door", "duck", "fish", "frog", "gold", "hand", "lamp", "moon"]
RECORD = "Package: p{0}\nSection: {1}\nDescription: thing {0}\n of the {1} kind\n"


def model(folder: Path, page: str, **changes: Any) -> Path:
    made = af.build(page, "tiny", vocab=257, seed=0, **changes)
    made.tokenizer = Tokenizer.bytes_level()
    made.tokenizer.template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    made.tokenizer.roles["bos_token"] = "a"
    made.save(folder)
    return folder


def started(name: str, monkeypatch: pytest.MonkeyPatch, document: Path, words: list[str]) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module: dict[str, Any] = runpy.run_path(str(EXAMPLES / name))
    document.write_text("before\n{}\nold\n{}\nafter\n".format(*module["MARKS"]))
    monkeypatch.setattr(sys, "argv", [name, *words, "--doc", str(document)])
    return module


def test_the_evaluation_makes_its_files_measures_and_goes_on_after_a_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, document = tmp_path / "out", tmp_path / "doc.md"
    module = started("evaluation.py", monkeypatch, document, [str(out), "--count", "5", "--shots", "0", "1"])
    changed = module["main"].__globals__
    nouns = [(f"{a}{b}", f"the kind of {a} that has a {b}") for a in WORDS for b in WORDS]
    records = "\n".join(RECORD.format(i, module["SECTIONS"][i % 5]) for i in range(60))
    monkeypatch.setitem(changed, "nouns", lambda: nouns)
    monkeypatch.setitem(changed, "available", lambda: records)
    monkeypatch.setitem(changed, "JOBS", ("nurse", "pilot", "cook"))
    monkeypatch.setitem(changed, "WEAT", {name: module["WEAT"][name] for name in list(module["WEAT"])[:1]})

    def prose(out: Path, count: int) -> None:
        for name, rows in (("prose", [{"text": "a b " * 9}] * 2), ("prose-examples", [{"text": "a b c"}])):
            module["write"](out / f"{name}.jsonl", rows)

    monkeypatch.setitem(changed, "prose", prose)
    models = {"smollm2": model(tmp_path / "lm", "llama", context=1024), "minilm": model(tmp_path / "bert", "bert")}
    monkeypatch.setitem(changed, "find", lambda name: models[name])
    module["main"]()
    text = document.read_text()
    assert "\nold\n" not in text and text.count("| SmolLM2, 1 shots |") == 3 and "| all 3 jobs |" in text
    rows = [json.loads(line) for line in (out / "calibration.jsonl").read_text().splitlines()]
    unreal = [row["text"] for row in rows if row["label"] is None]
    assert len(rows) == 7 and len(unreal) == 2 and not {name.rstrip(":") for name in unreal} & {w for w, _ in nouns}
    (out / "result-weat-minilm.json").unlink()
    capsys.readouterr()
    module["main"]()
    assert document.read_text() == text and capsys.readouterr().out.count(" s\n") == 1  # one measured again


def test_the_constitution_runs_with_both_critics_and_fills_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, lm = tmp_path / "doc.md", model(tmp_path / "lm", "llama", context=1500)
    words = [str(tmp_path / "out"), "--model", str(lm), "--count", "20", "--steps", "1", "--tokens", "12"]
    module = started("principles.py", monkeypatch, document, words)
    monkeypatch.setitem(
        module["main"].__globals__, "PRINCIPLES", "- {name: low, text: No low letters., forbid: '[0-9a-m]'}\n"
    )
    module["main"]()
    text = document.read_text()
    assert "\nold\n" not in text and "| rules | low | " in text and "| rules | perplexity of plain English |" in text
    assert "rules: of 12 answers" in text and ("model: of 12" in text or "model: 0 pair(s) of 12" in text)
    judged = runpy.run_path(str(tmp_path / "out" / "judges.py"))["words_over"]
    assert judged("a " * 30) == 5 and judged("a b") == 0
