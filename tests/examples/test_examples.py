"""The examples run, from the data to the scores, on a book of two pages."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.data import captions, debian
from anyformer.data.captions import Captioned
from anyformer.generate import draw
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


def pictured(count: int) -> list[Captioned]:
    """Pictures of one colour with its name, of two kinds."""
    colours = {"red": (220, 30, 30), "green": (20, 190, 40), "blue": (20, 40, 210), "grey": (128, 128, 128)}
    made = []
    for i in range(count):
        name, colour = list(colours.items())[i % 4]
        image = Image.new("RGB", (20 + i % 3, 24), colour)
        made.append(Captioned(image, f"{name} thing {i}", "emoji" if i % 2 else "things"))
    return made


def test_fewshot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(captions, "captions", lambda: pictured(200))
    monkeypatch.syspath_prepend(EXAMPLES)
    doc = tmp_path / "doc.md"
    doc.write_text("before\n<!-- fewshot: begin -->\nold\n<!-- fewshot: end -->\nafter\n")
    small = ["--lm-steps", "2", "--steps", "2", "--batch", "2", "--dim", "16", "--depth", "2", "--doc", str(doc)]
    monkeypatch.setattr(sys, "argv", ["fewshot.py", "--out", str(tmp_path / "run"), *small])
    runpy.run_path(str(EXAMPLES / "fewshot.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "equal, bit for bit" in said and said.count("\n| ") == 4
    assert doc.read_text() == f"before\n<!-- fewshot: begin -->\n{said.strip()}\n<!-- fewshot: end -->\nafter\n"
    model = af.load(tmp_path / "run")
    text = model.generate(
        "<image>red thing<|endoftext|><image>", images=[p.image for p in pictured(2)], max_new_tokens=3
    )
    assert isinstance(text, str)


def test_fewshot_on_a_language_model_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(captions, "captions", lambda: pictured(400))
    monkeypatch.syspath_prepend(EXAMPLES)
    words = Tokenizer.train_bpe([one.text for one in pictured(400)], 300, ["<image>"])
    lm: Any = af.build("llama", "tiny", vocab=words.vocab_size, context=512, seed=0)
    lm.tokenizer = words
    lm.save(tmp_path / "lm")
    doc = tmp_path / "doc.md"
    doc.write_text("<!-- fewshot, real: begin -->\nold\n<!-- fewshot, real: end -->\n")
    small = ["--text", str(tmp_path / "lm"), "--steps", "2", "--batch", "2", "--held", "20", "--doc", str(doc)]
    monkeypatch.setattr(sys, "argv", ["fewshot.py", "--out", str(tmp_path / "run"), "--dim", "16", *small])
    runpy.run_path(str(EXAMPLES / "fewshot.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "equal, bit for bit" in said and said.strip() in doc.read_text()
    made = af.load(tmp_path / "run").state_dict()
    assert all(torch.equal(made[name], value) for name, value in lm.state_dict().items())  # it stayed as it was
    lm.tokenizer = Tokenizer.bytes_level()
    lm.save(tmp_path / "lm", overwrite=True)
    with pytest.raises(ValueError, match="must be special tokens"):
        runpy.run_path(str(EXAMPLES / "fewshot.py"), run_name="__main__")


def test_drawing(tmp_path, monkeypatch, capsys):
    flags = tmp_path / "flags" / "usr/share/iso-flags-png-320x240"
    flags.mkdir(parents=True)
    for i, letters in enumerate(("de", "fr", "it")):
        Image.new("RGB", (32, 24), (80 * i, 200, 90)).save(flags / f"{letters}.png")
    monkeypatch.setattr(captions, "emoji", lambda: pictured(150))
    monkeypatch.setattr(debian, "fetch", lambda *_: tmp_path / "flags")
    doc = tmp_path / "doc.md"
    doc.write_text("<!-- drawing: begin --><!-- drawing: end -->")
    small = ["--steps", "2", "--decoder-steps", "2", "--batch", "4", "--doc", str(doc)]
    monkeypatch.setattr(sys, "argv", ["drawing.py", "--out", str(tmp_path / "run"), *small])
    runpy.run_path(str(EXAMPLES / "drawing.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert all(f"| {name}" in said for name in ("PCA, ", "dVAE, 64 codes of 256", "DALL-E, another text"))
    assert said.strip() in doc.read_text()
    dvae, dalle = (af.load(tmp_path / "run" / name) for name in ("dvae", "dalle"))
    assert dvae.decode(draw(dalle, ["red thing"], seed=0)).shape == (1, 3, 32, 32)
