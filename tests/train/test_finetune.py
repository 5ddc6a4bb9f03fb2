"""`finetune`: examples in; a model directory, adapters for PEFT, measures before and after out. And what it refuses."""

import csv
import json
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import anyformer as af
from anyformer.data import text
from anyformer.data.store import stored
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import adapters, lora, model_setup
from anyformer.train import finetune as typed
from anyformer.train.objectives import IGNORE
from anyformer.train.tasks import encode, rows, splits
from anyformer.train.tasks.base import collate

torch.set_num_threads(1)
finetune: Any = typed  # called with options from tables
GOOD, BAD = ("fine", "lovely", "great", "warm"), ("poor", "dull", "awful", "cold")
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUICK: dict[str, Any] = {"steps": 4, "batch": 8, "quiet": True}
METHODS = ("full", "lora", "dora", "qlora")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder, a decoder, and examples for each."""
    folder = tmp_path_factory.mktemp("finetune")
    lines = [(f"a {word} film number {i}", word in GOOD) for i in range(20) for word in (*GOOD, *BAD)]
    write(folder / "reviews.csv", [{"text": t, "label": "good" if g else "bad"} for t, g in lines])
    pairs = [{"prompt": f"say {i}", "response": f"number {i}."} for i in range(40)]
    write(folder / "pairs.jsonl", pairs)
    write(folder / "texts.jsonl", [{"text": f"a text about {i}"} for i in range(40)])
    words = " ".join([t for t, _ in lines] + [p["prompt"] + p["response"] for p in pairs])
    for name in ("bert", "llama", "gpt"):
        made = af.build(name, "tiny", seed=0, vocab=300)
        made.tokenizer = Tokenizer.train_bpe([words], 300)
        made.tokenizer.template = CHAT if name == "llama" else None
        made.save(folder / name)
    return folder


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_learns_to_classify(method, place, tmp_path):
    options: dict[str, Any] = {"steps": 80, "batch": 16, "lr": 1e-2, "quiet": True}
    done = finetune(str(place / "bert"), place / "reviews.csv", method, out=tmp_path / "run", **options)
    assert done.classes == ("bad", "good") and done.after == 0.0 < done.before and not done.stopped
    assert (done.learned == done.parameters) == (method == "full")
    opened = af.load(done.folder)
    assert opened.page == "bert" and opened.config.task == "classify" and opened.config.classes == 2
    ids, keep = opened.tokenizer.batch(["a lovely film number 77", "a awful film number 8"])
    logits = opened(ids, keep).logits
    assert torch.equal(logits, done.model(ids, keep).logits) and logits.argmax(-1).tolist() == [1, 0]

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(done.folder).eval()
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    torch.testing.assert_close(theirs(ids, keep).logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["llama", "gpt"])  # with a chat template, and without
def test_a_decoder_learns_to_answer(model, place, tmp_path):
    options: dict[str, Any] = {"epochs": 20, "batch": 8, "lr": 1e-2, "quiet": True, "eval_every": 30, "save_every": 30}
    done = finetune(str(place / model), place / "pairs.jsonl", "lora", out=tmp_path / "run", **options)
    assert done.steps == 90 and done.after is not None and done.after < done.before - 0.3
    assert af.load(done.folder).page == model
    config = json.loads((done.checkpoint / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and config["r"] in (8, 24)
    again = af.load(place / model)
    adapters.read(again, done.checkpoint)
    lora.merge(again)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(again(ids).logits, done.model(ids).logits, rtol=1e-4, atol=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in lines if "held_out" in r] == [30, 60, 90] and lines[-1]["held_out"] == done.after


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_resumes_is_the_run_that_did_not_stop(method, place, tmp_path):
    """Bit for bit, with dropout in the adapters and a batch that reaches into the next epoch."""
    options: dict[str, Any] = {"steps": 6, "save_every": 3, "batch": 24, "accumulate": 2, "quiet": True, "lr": 1e-3}
    options |= {} if method == "full" else {"dropout": 0.2}
    given: Any = (str(place / "gpt"), place / "pairs.jsonl", method)
    straight = finetune(*given, out=tmp_path / "a", **options)
    resumed = finetune(*given, out=tmp_path / "b", resume=str(tmp_path / "a" / "step-000003"), **options)
    assert resumed.loss == straight.loss and resumed.after == straight.after
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    with pytest.raises(ValueError, match="lr was"):
        finetune(*given, out=tmp_path / "c", resume=str(tmp_path / "a" / "step-000003"), **{**options, "lr": 1.0})


def test_config_repeats_the_run(place, tmp_path):
    done = finetune(str(place / "gpt"), place / "texts.jsonl", out=tmp_path / "run", rank=2, **QUICK)
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    again = finetune(**{**config, "out": tmp_path / "again"})
    assert again.loss == done.loss and again.after == done.after and config["rank"] == 2


def test_only_what_is_named_learns(place, tmp_path):
    before = af.load(place / "gpt").state_dict()
    given: Any = (str(place / "gpt"), place / "texts.jsonl", "full")
    done = finetune(*given, out=tmp_path / "a", trainable=["blocks.-1.ffn", "norm"], **QUICK)
    moved = {n.rpartition(".")[0] for n, t in done.model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {"blocks.1.ffn.up", "blocks.1.ffn.down", "norm"}
    assert done.learned == sum(p.numel() for m in (done.model.blocks[1].ffn, done.model.norm) for p in m.parameters())
    done = finetune(*given[:2], "lora", out=tmp_path / "b", trainable=["norm"], targets=["**.mixer.q"], **QUICK)
    moved = {n.rpartition(".")[0] for n, t in done.model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {"blocks.0.mixer.q", "blocks.1.mixer.q", "norm"}
    with pytest.raises(ValueError, match=r"'blokcs\.1'"):
        finetune(*given, out=tmp_path / "c", trainable=["blokcs.1"], **QUICK)


def test_an_encoder_learns_which_texts_belong_together(place, tmp_path):
    numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight")
    lines = [{"anchor": f"{word} is {i}", "positive": f"{i} and {word}"} for i in range(5) for word in numbers]
    write(tmp_path / "pairs.jsonl", lines)
    base = af.load(place / "bert")
    options = {"steps": 60, "batch": 10, "lr": 5e-3, "quiet": True}
    done = finetune(str(place / "bert"), tmp_path / "pairs.jsonl", "lora", out=tmp_path / "run", **options)
    assert done.after < done.before - 0.2 and done.classes == () and af.load(done.folder).config == base.config


def part(folder, examples, pair=False):
    """All examples of a store, as a task has them."""
    store = stored(lambda: examples, str(folder), folder)
    subset = splits.Subset(len(store) // (1 + pair), lambda i: i)
    return rows.StoredExamples(store, subset, af.build("gpt", "tiny"), pair)


def example(ids, labels):
    return {"input_ids": np.array(ids), "labels": np.array(labels)}


def test_pairs_stand_side_by_side_and_share_a_number(tmp_path):
    each = ([1], 0), ([2, 3], 0), ([4], 1), ([5], 1), ([6], 0), ([7], 0)
    made = part(tmp_path, [example(*e) for e in each], pair=True)
    batch = collate(made.examples(np.array([2, 0])), 9)
    assert batch["input_ids"].tolist() == [[6, 9], [7, 9], [1, 9], [2, 3]] and batch["labels"].tolist() == [0] * 4
    taught = rows.TableRows((made,), (1.0,), seed=0, pad=9)
    seen = [taught.rows(2 * i, 2)["labels"].tolist() for i in range(3)]
    assert all(labels[::2] == labels[1::2] for labels in seen) and sum(map(sum, seen)) == 4
    assert [len(b["labels"]) for b in made.in_order(2, 9)] == [4, 2]


def test_a_composition_gets_a_head_too(place, tmp_path):
    recipe = af.load(place / "bert").recipe.but({"blocks.*.mixer.positions": af.parts.Rotary.of(), "pool": None})
    made = af.build(recipe, seed=0)
    made.tokenizer = Tokenizer.load(place / "bert")
    made.save(tmp_path / "model")
    done = finetune(str(tmp_path / "model"), place / "reviews.csv", out=tmp_path / "run", **QUICK)
    opened = af.load(done.folder)
    assert list(opened.heads) == ["classes"] and opened.heads["classes"].proj.out_features == 2


def test_a_head_for_the_same_classes_stays_and_another_makes_room(place):
    model, fresh = model_setup.with_classifier(af.load(place / "bert"), "classify", ["a", "b"], 0)
    assert fresh == ["heads.classes.proj.weight", "heads.classes.proj.bias"]  # the pooler was there
    same, fresh = model_setup.with_classifier(model, "classify", ["a", "b"], 1)
    assert fresh == [] and torch.equal(same.heads["classes"].proj.weight, model.heads["classes"].proj.weight)
    others = (model_setup.with_classifier(model, "classify", names, 1)[1] for names in (["b", "c"], ["a", "b", "c"]))
    assert next(others) == next(others) != []


def shown(tokenizer, ids, labels):
    """What is counted, as text; each label must be the token that comes next."""
    assert len(ids) == len(labels)
    assert all(label in (IGNORE, following) for label, following in zip(labels, ids[1:], strict=False))
    return tokenizer.decode([label for label in labels if label != IGNORE], skip_special=False)


def test_only_what_the_assistant_says_is_counted(place):
    tokenizer = Tokenizer.load(place / "llama")
    talk = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "ein s"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "zwei"},
    ]
    ids, labels = encode.written(tokenizer, {"messages": talk}, "messages", 999)
    assert ids == tokenizer.chat_ids(talk, add_generation_prompt=False)
    assert shown(tokenizer, ids, labels) == "ein s<|endoftext|>zwei<|endoftext|>"
    pair = {"prompt": "one", "response": "eins"}
    assert shown(tokenizer, *encode.written(tokenizer, pair, "prompt", 999)) == "eins<|endoftext|>"
    tokenizer.template = None
    ids, labels = encode.written(tokenizer, pair, "prompt", 999)
    assert tokenizer.decode(ids, skip_special=False) == "one\neins<|endoftext|>"
    assert shown(tokenizer, ids, labels) == "eins<|endoftext|>"
    ids, labels = encode.written(tokenizer, {"text": "one two"}, "text", 999)
    assert labels[:-1] == ids[1:] and ids[-1] == tokenizer.role_id("eos_token")
    ids, labels = encode.written(tokenizer, {"text": "one two"}, "text", 3)
    assert len(ids) == 3 and labels == [*ids[1:], IGNORE]


def test_a_template_that_writes_the_past_anew_is_refused(place):
    tokenizer = Tokenizer.load(place / "llama")
    tokenizer.template = "{{ messages | length }}" + CHAT
    with pytest.raises(ValueError, match="rewrites earlier messages"):
        encode.written(tokenizer, {"prompt": "a", "response": "b"}, "prompt", 99)


def test_every_example_comes_once_in_each_epoch(tmp_path):
    whole = part(tmp_path, [example([i, i + 100], i) for i in range(10)])
    made = rows.TableRows((whole,), (1.0,), seed=1, pad=0)
    seen = [int(i) for number in range(5) for i in made.rows(4 * number, 4)["labels"]]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    batch = made.rows(12, 4)
    assert batch["labels"].tolist() == seen[12:16] and batch["input_ids"][:, 0].tolist() == seen[12:16]
    other = rows.TableRows((whole,), (1.0,), seed=2, pad=0)
    assert [int(i) for i in other.rows(0, 4)["labels"]] != seen[:4]


@pytest.mark.parametrize("share, out", [(0.1, 3), (0.001, 1), (0.999, 24)])
def test_a_share_is_held_out(share, out):
    learn, held = splits.random_share(share, 5)("x", 25)
    both = [*learn.of(np.arange(learn.size)).tolist(), *held.of(np.arange(held.size)).tolist()]
    assert held.size == pytest.approx(out, abs=1) and 1 <= held.size <= 24 and sorted(both) == list(range(25))
    assert both != [*splits.random_share(share, 6)("x", 25)[0].of(np.arange(learn.size)).tolist(), *both[learn.size :]]


def test_padding_and_measuring(tmp_path):
    each = ([5], [IGNORE]), ([6, 7, 8], [7, 8, IGNORE]), ([9, 1], [1, IGNORE])
    first, second = part(tmp_path, [example(*e) for e in each]).in_order(2, 3)
    assert first["input_ids"].tolist() == [[6, 7, 8], [9, 1, 3]] and second["input_ids"].tolist() == [[5]]
    assert first["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert first["labels"].tolist() == [[7, 8, IGNORE], [1, IGNORE, IGNORE]]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"model": ""}, "model is missing"),
        ({"model": "bert"}, "an architecture, without weights"),
        ({"epochs": 2}, "epochs=2 and steps=4 contradict"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"held_out": 1.0}, "held_out must be a share between 0 and 1"),
        ({"method": "full", "rank": 4}, "rank=4 is for adapters, which method=full has not"),
        ({"rank": 0}, "rank must be 1 or more"),
        ({"targets": ["**.mixer.query"]}, r"'\*\*\.mixer\.query'.*did you mean"),
        ({"context": 9999}, "context=9999 must be from 8 to the context of the model, 64"),
        ({"task": "write"}, "task=write is asked for, and .* fit write or classify"),
        ({"model": "gpt"}, "can be tuned to write, and the columns .* fit classify"),
        ({"data": "pairs.jsonl"}, r"\(Encoder\) can be tuned to classify, tag, embed, and .* fit write or seq2seq"),
        ({"data": "pairs.jsonl", "task": "classify"}, "task=classify is asked for, and .* fit write or seq2seq"),
        ({"held_out": "pairs.jsonl"}, "pairs.jsonl, row 1: no column 'text'"),
        ({"held_out": "other.csv"}, "the label 'ugly' is in the held-out part only"),
        ({"data": "same.csv"}, "every label is 'good'; classification needs two"),
        (
            {"data": "columns.csv"},
            "columns of the examples, 'lable', 'txt', match no task: .*'text' and 'label'",
        ),
        ({"data": "gap.csv"}, r"gap\.csv, row 2: 'label' has no value"),
        ({"data": "broken.jsonl", "model": "gpt"}, r"broken\.jsonl, line 2 is not JSON"),
        ({"data": "list.jsonl"}, "line 1 is a list, not an object"),
        ({"data": "empty.jsonl"}, "holds no examples"),
        ({"data": "one.jsonl", "model": "gpt"}, "at least 2 rows with a label"),
        ({"data": "latin.jsonl"}, "is not UTF-8: byte 11"),
        ({"resume": "auto", "out": None}, "resume needs out"),
    ],
    ids=str,
)
def test_mistakes_are_named_before_the_first_step(options, said, place, tmp_path):
    write(tmp_path / "other.csv", [{"text": "x", "label": "ugly"}])
    write(tmp_path / "same.csv", [{"text": "x", "label": "good"}] * 9)
    write(tmp_path / "one.jsonl", [{"text": "one two"}])
    write(tmp_path / "columns.csv", [{"txt": "x", "lable": "good"}])
    write(tmp_path / "gap.csv", [{"text": "x", "label": "good"}, {"text": "x", "label": ""}])
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes('{"text": "aÖl"}\n'.encode("latin1"))
    given: dict[str, Any] = {"model": "bert!", "data": "reviews.csv", "out": tmp_path / "run", **QUICK, **options}
    given["model"] = str(place / given["model"].strip("!")) if given["model"] in ("bert!", "gpt") else given["model"]
    for name in ("data", "held_out"):
        if isinstance(given.get(name), str):
            given[name] = str(next(p for p in (place / given[name], tmp_path / given[name]) if p.exists()))
    with pytest.raises(ValueError, match=said):
        finetune(**given)
    assert not list(tmp_path.glob("run/step-*"))


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(place, tmp_path):
    Tokenizer.train_bpe([text.read()[:20_000]], 400).save(tmp_path / "t")
    options = {**QUICK, "out": tmp_path / "run"}
    with pytest.raises(ValueError, match="the tokenizer has 400 tokens, the model has 300"):
        finetune(str(place / "gpt"), place / "texts.jsonl", tokenizer=str(tmp_path / "t"), **options)


def test_what_is_cut_or_left_out_is_said(place, tmp_path, capsys):
    lines = [
        {"prompt": "long " * 60, "response": "yes"},
        {"prompt": "x", "response": "long " * 60},
        *({"prompt": f"{i}", "response": "no"} for i in range(20)),
    ]
    write(tmp_path / "pairs.jsonl", lines)
    options = {**QUICK, "quiet": False, "held_out": str(place / "pairs.jsonl")}
    finetune(str(place / "gpt"), tmp_path / "pairs.jsonl", out=tmp_path / "run", **options)
    said = capsys.readouterr().out
    assert "1 of 22 examples are cut to 64 tokens" in said and "1 examples are left out" in said
    assert "parameters are trained (lora of rank 8 on 12 layers)" in said and "perplexity" in said


def test_a_folder_with_another_run_is_left_alone(place, tmp_path):
    given = (str(place / "gpt"), place / "texts.jsonl")
    finetune(*given, out=tmp_path / "run", **QUICK)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="it is not overwritten"):
        finetune(*given, out=tmp_path / "run", **QUICK)
    assert sorted(tmp_path.rglob("*")) == before
