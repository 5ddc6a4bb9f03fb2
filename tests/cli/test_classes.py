"""`classify` and `tag`: texts, files, standard input and pictures; tables for people, JSON for machines."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.generate import classify, tag
from anyformer.hub.processors import trained
from anyformer.hub.text.tokenizer import Tokenizer

TEXTS = ["good film", "a waste of time", "neither"]
NAMES = ["person", "place", "other"]


def tokenizer() -> Tokenizer:
    """Bytes, with the tokens that stand around a text."""
    made = Tokenizer.bytes_level()
    made.core.add_special_tokens(["[CLS]", "[SEP]"])
    return Tokenizer(made.core, {**made.roles, "cls_token": "[CLS]", "sep_token": "[SEP]"}, None, made.config)


def named(model, folder: Path) -> Path:
    model.origin = {"config": {}, "classes": NAMES}
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = af.build("bert", "tiny", vocab=259, task="classify", classes=3, seed=0)
    model.tokenizer = tokenizer()
    return named(model, tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = af.build("bert", "tiny", vocab=259, task="tag", classes=3, context=64, seed=0)
    model.tokenizer = tokenizer()
    return named(model, tmp_path_factory.mktemp("tagger"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = af.build("vit", "tiny", classes=3, seed=0)
    front: Any = model.entrances()[0].front
    model.processor = trained("ViTImageProcessor", front.grid * front.patch, front.grid * front.patch, front.channels)
    return named(model, tmp_path_factory.mktemp("pictures"))


def test_texts_are_classified_from_words_files_and_standard_input(
    cli, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [{"item": t, "classes": c} for t, c in zip(TEXTS, classify(af.load(texts), TEXTS), strict=True)]
    (tmp_path / "t.txt").write_text("\n".join([TEXTS[0], "", *TEXTS[1:]]) + "\n")
    (tmp_path / "t.csv").write_text("label,text\n" + "".join(f"0,{t}\n" for t in TEXTS))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS)))
    ways: list[list[Any]] = [TEXTS, [tmp_path / "t.txt"], [tmp_path / "t.csv"], [tmp_path / "t.jsonl"], ["-"]]
    for words in ways:
        code, out, err = cli("classify", texts, *words, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert [f["item"] for f in found] == TEXTS
        for f, e in zip(found, expected, strict=True):
            assert list(f["classes"]) == list(e["classes"]) and set(f["classes"]) == set(NAMES)
            assert f["classes"] == pytest.approx(e["classes"], abs=1e-6) and sum(
                f["classes"].values()
            ) == pytest.approx(1)


def test_classes_for_people_are_a_table_of_probabilities(cli, texts: Path) -> None:
    code, out, _ = cli("classify", texts, TEXTS[0], "--top", 2)
    best = list(classify(af.load(texts), TEXTS[:1])[0].items())
    assert code == 0
    assert out.splitlines() == [TEXTS[0], *(f"  {share:.1%}  {name}" for name, share in best[:2])]


def test_pictures_are_classified_from_files_and_standard_input(
    cli, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO((tmp_path / "a.png").read_bytes())))
    expected = classify(af.load(pictures), [tmp_path / "a.png"])[0]
    for word in (tmp_path / "a.png", "-"):
        code, out, err = cli("classify", pictures, word, "--json")
        assert code == 0, err
        assert json.loads(out) == [{"item": str(word), "classes": pytest.approx(expected)}]


def test_words_are_tagged_one_by_one_and_in_batches(cli, tagger: Path, tmp_path: Path) -> None:
    sentences = ["Ada lives in Turin .", "So", "A much longer text than the others"]
    model = af.load(tagger)
    together, alone = tag(model, sentences), [tag(model, [s])[0] for s in sentences]
    for text, one, other in zip(sentences, together, alone, strict=True):
        assert [word for word, _ in one] == text.split()
        for (_, a), (_, b) in zip(one, other, strict=True):
            assert a == pytest.approx(b, abs=1e-5) and list(a.values()) == sorted(a.values(), reverse=True)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"words": s.split()}) + "\n" for s in sentences))
    for words in (sentences, [tmp_path / "t.jsonl"]):
        code, out, err = cli("tag", tagger, *words, "--json")
        assert code == 0, err
        found = [[(w["word"], w["labels"]) for w in text["words"]] for text in json.loads(out)]
        assert [[w for w, _ in text] for text in found] == [s.split() for s in sentences]
        assert found[0][3][1] == pytest.approx(together[0][3][1], abs=1e-5)
    code, out, _ = cli("tag", tagger, *sentences)
    label, share = next(iter(together[0][3][1].items()))
    assert code == 0 and out.splitlines()[3].split() == ["Turin", label, f"{share:.1%}"]
    assert len(out.strip().split("\n\n")) == 3


def test_a_word_has_the_labels_of_its_first_token(tagger: Path) -> None:
    model, words = af.load(tagger), ["", "Ada", "lives", "here"]
    t = model.tokenizer
    ids = [t.role_id("cls_token"), *t.encode("Ada lives here", special=False), t.role_id("sep_token")]
    logits = model(input_ids=torch.tensor([ids])).logits.softmax(-1)[0]
    found = tag(model, [words])[0]
    at = {"Ada": 1, "lives": 4, "here": 10}  # [CLS], then bytes; the space belongs to its word
    assert found[0] == ("", {})
    for word, labels in (pair for pair in found if pair[0]):
        assert [labels[name] for name in NAMES] == pytest.approx(logits[at[word]].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["x" * 100], "text 0 has 102 tokens, and the model reads 64; split the text"),
        (["good", "  "], "text 1 has no words"),
        (["EMPTY"], "every line is blank"),
        (["NAMELESS"], "row 1: no column 'text' or 'words'"),
        (["LATIN"], "is not UTF-8: byte 1 cannot be read"),
    ],
)
def test_texts_that_cannot_be_tagged_are_named(cli, tagger: Path, tmp_path: Path, words: list[str], says: str) -> None:
    files = {"EMPTY": ("e.txt", b"\n \n"), "NAMELESS": ("n.csv", b"label\na\n"), "LATIN": ("l.txt", b"a\xe9\n")}
    given = []
    for word in words:
        name, content = files.get(word, ("", b""))
        if name:
            (tmp_path / name).write_bytes(content)
        given.append(tmp_path / name if name else word)
    code, _, err = cli("tag", tagger, *given)
    assert code == 2 and says in err and "Traceback" not in err


def test_a_model_without_the_head_is_refused_with_what_makes_one(cli, texts: Path, tagger: Path, decoder: Path) -> None:
    for verb, model, says in (
        ("classify", tagger, "no classification head"),
        ("tag", texts, "no token classification head"),
        ("tag", decoder, "the tokenizer needs a cls_token"),
    ):
        code, _, err = cli(verb, model, "a")
        assert code == 2 and says in err
