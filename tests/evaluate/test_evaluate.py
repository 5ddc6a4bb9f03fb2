"""`anyformer eval`: figures of each task, examples in prompts, baselines, two models, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.evaluate import evaluate
from anyformer.evaluate.answering import shares
from anyformer.evaluate.items import Item, read, task_of
from anyformer.evaluate.shots import Form
from anyformer.generate import classify, generate
from anyformer.hub.text.tokenizer import Tokenizer

torch.set_num_threads(1)
CHOICES: list[dict[str, Any]] = [{"text": f"the {a} cat", "choices": [" sat", "ran away", "é"], "label": i % 3}
           for i, a in enumerate(["old", "new", "big", "red", "wet", "sad"])]  # fmt: skip
LABELLED = [
    {"text": f"{word} film {i}", "label": kind} for i in range(6) for word, kind in (("fine", "good"), ("dull", "bad"))
]
ASKED = [{"prompt": f"say {i}", "response": [f"it is {i}", "yes"]} for i in range(5)]


@pytest.fixture(scope="module")
def decoder() -> Any:
    return made("llama", 1)


def made(page: str, seed: int, **changes: Any) -> Any:
    model = af.build(page, "tiny", vocab=257, seed=0, **changes).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3, generator=draw)
    model.tokenizer = Tokenizer.bytes_level()
    return model


def write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def whole(model: Any, text: str, choice: str) -> float:
    ids, first = model.tokenizer.encode(text + choice), len(model.tokenizer.encode(text))
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(scores[i - 1, ids[i]]) for i in range(first, len(ids)))


def test_choices_are_compared_plainly_by_character_and_by_byte(decoder: Any, tmp_path: Path) -> None:
    result = evaluate(decoder, write(tmp_path, CHOICES), separator="|")
    right = {"acc": 0, "acc_norm": 0, "acc_bytes": 0}
    for row in CHOICES:
        logs = np.array([whole(decoder, row["text"], "|" + c) for c in row["choices"]])
        for name, sizes in (("acc", [1, 1, 1]), ("acc_norm", [4, 8, 1]), ("acc_bytes", [4, 8, 2])):
            right[name] += int(np.argmax(logs / np.array(sizes)) == row["label"])
    assert {n: e.value for n, e in result.metrics.items()} == {n: k / 6 for n, k in right.items()}
    assert result.task == "choice" and result.baselines["acc, chance"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize("page", ["llama", "t5", "bert", "mamba", "switch"])
def test_every_kind_of_model_chooses(page: str, tmp_path: Path) -> None:
    model = made(page, 2)
    model.tokenizer.roles |= {"mask_token": "~", "cls_token": "<", "sep_token": ">"} if page == "bert" else {}
    result = evaluate(model, write(tmp_path, CHOICES), shots=1)
    assert result.count == 6 and all(math.isfinite(v) for row in result.rows for v in row["log_likelihoods"])


def test_examples_are_drawn_by_the_seed_and_never_hold_the_item(tmp_path: Path) -> None:
    items = read(write(tmp_path, [*CHOICES, {**CHOICES[0], "text": "The  OLD cat"}]), "choice")
    form = Form(count=3, seed=1, pool=items)
    for item in items:
        prompt = form.prompt(item)
        again = Form(count=3, seed=1, pool=items[::-1]).prompt(item)  # the order of the file does not matter
        assert " ".join(prompt.lower().split()) == " ".join(again.lower().split())
        shown = prompt.split("\n\n")
        assert len(shown) == 4 and shown[-1] == item.text
        assert len(set(shown)) == 4 and not any(" ".join(s.casefold().split()).startswith(item.key) for s in shown[:-1])
    assert Form(count=3, seed=2, pool=items).prompt(items[1]) != form.prompt(items[1])
    assert "6 of 7 examples repeat" not in form.notes(items, True)
    assert any("1 of 7 examples repeat another one" in note for note in form.notes(items, True))
    (note,) = [n for n in form.notes(items[:2], False) if "also items" in n]
    assert "2 of 6 examples are also items" in note


def test_a_prompt_holds_examples_answers_and_the_item(tmp_path: Path) -> None:
    items = read(write(tmp_path, LABELLED[:2]), "classification")
    assert Form("Q: {text}\nA:", " ", 1, 0, items).prompt(items[0]) == "Q: dull film 0\nA: bad\n\nQ: fine film 0\nA:"


def test_classes_by_likelihood_are_shares_of_it(decoder: Any, tmp_path: Path) -> None:
    file = write(tmp_path, LABELLED)
    result = evaluate(decoder, file, template="{text} is")
    items = read(file, "classification")
    names, found = shares(decoder, items, Form("{text} is"))
    logs = np.array([[whole(decoder, f"{i.text} is", f" {name}") for name in names] for i in items])
    assert found == pytest.approx(np.exp(logs) / np.exp(logs).sum(1, keepdims=True), abs=1e-4)
    guess = [names[i] for i in logs.argmax(1)]
    assert result.metrics["acc"].value == pytest.approx(
        np.mean([g == i.label for g, i in zip(guess, items, strict=True)])
    )
    assert np.sum(result.details["confusion"]) == 12 and result.details["classes"] == ("bad", "good")
    assert result.baselines["acc, majority"].value == 0.5


def test_classes_by_a_head_are_those_of_classify(tmp_path: Path) -> None:
    model = made("bert", 3, task="classify", classes=2)
    model.origin = {"classes": ["bad", "good"]}
    result = evaluate(model, write(tmp_path, LABELLED))
    guess = [next(iter(ranked)) for ranked in classify(model, [row["text"] for row in LABELLED])]
    right = [g == row["label"] for g, row in zip(guess, LABELLED, strict=True)]
    assert result.metrics["acc"].value == pytest.approx(np.mean(right)) and "head" in result.notes[0]
    with pytest.raises(ValueError, match="classification head reads no examples"):
        evaluate(model, tmp_path / "rows.jsonl", shots=1)
    with pytest.raises(ValueError, match="row 1: label 'fair' is no class of the model: bad, good"):
        evaluate(model, write(tmp_path, [{"text": "a", "label": "fair"}, {"text": "b", "label": "good"}]))


def test_answers_are_those_of_generate_up_to_an_empty_line(decoder: Any, tmp_path: Path) -> None:
    result = evaluate(decoder, write(tmp_path, ASKED), max_new_tokens=6, regex="[a-z]")
    written = [generate(decoder, row["prompt"], max_new_tokens=6, stop="\n\n").strip() for row in ASKED]
    assert [row["written"] for row in result.rows] == written
    assert result.metrics["regex"].value == np.mean([any("a" <= c <= "z" for c in text) for text in written])
    assert result.baselines["exact_match, the most frequent answer"].value == 0.2
    right = write(tmp_path, [{"prompt": r["prompt"], "response": w} for r, w in zip(ASKED, written, strict=True) if w])
    again = evaluate(decoder, right, max_new_tokens=6)
    assert again.metrics["exact_match"].value == 1.0 and again.metrics["chrf"].value == pytest.approx(100)


def test_two_models_are_compared_on_the_same_items(decoder: Any, tmp_path: Path) -> None:
    other = made("llama", 9)
    file = write(tmp_path, CHOICES)
    result, alone = evaluate(decoder, file, against=other), evaluate(other, file)
    assert {n: e.value for n, e in result.against.items()} == {n: e.value for n, e in alone.metrics.items()}
    a, b = ([float(np.argmax(row["log_likelihoods"]) == row["label"]) for row in r.rows] for r in (result, alone))
    d = np.array(a) - np.array(b)
    found = result.differences["acc"]
    assert found.value == pytest.approx(d.mean()) and found.high == pytest.approx(d.mean() + 2 * d.std(ddof=1) / 6**0.5)
    (tmp_path / "docs").mkdir()
    for i in range(3):
        (tmp_path / "docs" / f"{i}.txt").write_text("the cat " * (i + 2))
    both = evaluate(decoder, tmp_path / "docs", against=other)
    assert set(both.differences) == {"bits_per_byte"} and both.count == 3
    assert both.differences["bits_per_byte"].how == "± 2 paired s.e."


def test_invented_questions_count_as_errors_at_every_confidence(decoder: Any, tmp_path: Path) -> None:
    rows = [*CHOICES, *({**row, "text": f"the {i} dog", "label": None} for i, row in enumerate(CHOICES))]
    result = evaluate(decoder, write(tmp_path, rows), "calibration")
    assert result.details["risk"][-1]["risk"]["value"] == pytest.approx(1 - result.metrics["acc"].value / 2)
    assert sum(b["count"] for b in result.details["reliability"]) == 6
    assert any("6 invented questions" in note for note in result.notes)
    logs = np.array(evaluate(decoder, write(tmp_path, CHOICES), "choice").rows[0]["log_likelihoods"])
    assert result.rows[0]["confidence"] == pytest.approx(
        float(np.exp(logs - logs.max()).max() / np.exp(logs - logs.max()).sum())
    )


def test_perplexity_of_responses_and_its_bigram(decoder: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "say", "response": "hello"}, {"prompt": "and", "response": "bye now"}]
    train = tmp_path / "train.txt"
    train.write_text("hello there and bye now " * 30)
    result = evaluate(decoder, write(tmp_path, rows), "perplexity")
    nats = -sum(whole(decoder, r["prompt"], " " + r["response"]) for r in rows)
    assert result.metrics["token_perplexity"].value == pytest.approx(math.exp(nats / 14), rel=1e-4)
    (tmp_path / "test.txt").write_text("hello there now")
    beside = evaluate(decoder, tmp_path / "test.txt", examples=train)
    assert 0.5 < beside.baselines["bits_per_byte, bigram of bytes"].value < 4 < beside.metrics["bits_per_byte"].value


def test_the_command_writes_json_and_prints_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("one", 1), ("two", 5)):
        made("llama", seed).save(tmp_path / name)
    file, train = write(tmp_path, CHOICES), write(tmp_path, CHOICES[:3], "train.jsonl")
    words = ["eval", str(tmp_path / "one"), str(file), "--shots", "2", "--from", str(train), "--against",
             str(tmp_path / "two"), "--out", str(tmp_path / "r.json")]  # fmt: skip
    assert main(words) == 0
    said, result = capsys.readouterr().out, json.loads((tmp_path / "r.json").read_text())
    assert "acc, bigram of the examples' answers" in said and "± 2 paired s.e." in said and "chance" in said
    assert "3 of 3 examples are also items" in said
    assert result["settings"]["shots"] == 2 and len(result["rows"]) == 6
    assert result["metrics"]["acc"]["interval"] == "95 % Wilson"
    assert (
        main([*words[:3], "--out", str(tmp_path / "none" / "r.json")]) == 2
        and "there is no folder" in capsys.readouterr().err
    )
    assert main([*words[:3], "--json"]) == 0 and json.loads(capsys.readouterr().out)["items"] == 6
    assert main([*words[:3], "--task", "calibration"]) == 0 and "reliability" in capsys.readouterr().out


@pytest.mark.parametrize("rows, options, said", [
    ([{"a": 1}], {}, "the columns a belong to no task"),
    ([{"text": "a", "choices": ["b", "c"], "label": 2}], {}, "row 1: label is 2; it must be 0 … 1"),
    ([{"text": "a", "choices": ["b", "c"], "label": True}], {}, "row 1: label is True"),
    ([{"text": "a", "choices": ["b", "b"], "label": 0}], {}, "row 1: a choice comes twice"),
    ([{"text": "a", "choices": ["b"], "label": 0}], {}, "row 1: choices is"),
    ([{"text": "a", "choices": "b|c", "label": 0}], {}, "in a table write JSON"),
    ([{"text": "a", "choices": ["b", "c"]}], {}, "row 1: no label"),
    ([{"text": " ", "choices": ["b", "c"], "label": 0}], {}, "row 1: text is ' '"),
    ([{"text": "a", "label": "x"}], {}, "classification needs two classes"),
    ([{"prompt": "a", "response": []}], {}, "row 1: response is an empty list"),
    ([{"prompt": "a", "response": "b"}], {"regex": "("}, "regex is no regular expression"),
    ([{"prompt": "a", "response": "b"}], {"max_new_tokens": 900}, "row 1: the prompt with its answer has 901 tokens"),
    (CHOICES[:2], {"shots": 2}, "row 1: 2 shots need as many examples, and there are 1"),
    (CHOICES[:2], {"shots": -1}, "shots must be 0 or more"),
    (CHOICES[:2], {"template": "x"}, "template is 'x'; it needs {text}"),
    (CHOICES[:2], {"regex": "a"}, "regex is for generation"),
    (CHOICES[:2], {"task": "best"}, "task must be auto or one of"),
    ([{"text": "a b c"}], {"shots": 1}, "shots are for choice"),
    ([{"text": "a b c"}], {"window": 1}, "window=1 must be from 2"),
    ([{"text": "a b c"}], {"window": 8, "stride": 9}, "stride=9 must be from 1 to the window"),
    ([{**CHOICES[0], "label": None}], {"task": "calibration"}, "every label is null"),
    (CHOICES[:2], {"fields": {"txt": "text"}}, "fields: no name 'txt'"),
])  # fmt: skip
def test_what_makes_no_sense_is_named(
    rows: Any, options: dict[str, Any], said: str, decoder: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace("|", r"\|")):
        evaluate(decoder, write(tmp_path, rows), **options)


def test_the_columns_decide_and_can_have_other_names(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('question,options,label\nwho?,"[""he"", ""she""]",1\n')
    fields = {"text": "question", "choices": "options", "label": "label"}
    assert task_of(tmp_path / "c.csv", fields) == "choice"
    assert read(tmp_path / "c.csv", "choice", fields)[0].right == "she"
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no row"):
        task_of(tmp_path / "empty.jsonl", None)
    assert Item("", "A  b").key == "a b"
