"""`train`: text in; a model directory, bits per byte, a sample out. And what it refuses."""

import csv
import json
import math
from typing import Any

import pytest
import torch
import yaml

import anyformer as af
from anyformer.core.recipe import Recipe
from anyformer.data import text
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import train
from anyformer.train.train import _sample

torch.set_num_threads(1)
SMALL: dict[str, Any] = {
    "size": "tiny",
    "context": 32,
    "batch": 4,
    "steps": 12,
    "warmup": 2,
    "eval_every": 6,
    "save_every": 6,
}


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """Some real English."""
    path = tmp_path_factory.mktemp("data") / "book.txt"
    path.write_text(text.read()[:30_000], encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def ran(book, tmp_path_factory):
    """A short run: its result and its folder."""
    out = tmp_path_factory.mktemp("run") / "gpt"
    options = {**SMALL, "steps": 120, "lr": 1e-2, "vocab": 300, "quiet": True}
    return train("gpt", data=book, out=out, **options), out


def test_result_says_how_good_the_model_is(ran):
    result, _ = ran
    assert result.steps == 120 and not result.stopped
    assert result.bits_per_byte is not None and 0 < result.bits_per_byte < 5 and result.loss < 0.8 * math.log(300)
    assert result.sample.startswith("The ") and len(result.sample) > 10


def test_small_model_beats_the_bigram_within_seconds(tmp_path):
    options: dict[str, Any] = {"context": 64, "lr": 1e-2, "warmup": 30, "eval_every": 0, "save_every": 0, "quiet": True}
    result = train("gpt", "tiny", overrides={"dim": 64}, out=tmp_path / "run", steps=200, vocab=512, **options)
    assert result.bits_per_byte is not None and result.bigram_bits_per_byte is not None
    assert result.bits_per_byte < result.bigram_bits_per_byte - 0.1


def test_checkpoint_is_a_model_directory(ran):
    result, out = ran
    model = af.load(result.checkpoint)
    ids = torch.tensor([model.tokenizer.encode("The reference manual")])
    assert torch.equal(model(ids).logits, result.model(ids).logits)
    assert model.tokenizer.vocab_size == model.embed.vocab == 300 and model.page == "gpt"
    assert sorted(f.name for f in out.iterdir()) == sorted(
        [
            ".lock",
            "config.yaml",
            "curves.html",
            "curves.png",
            "environment.json",
            "log.csv",
            "log.jsonl",
            result.checkpoint.name,
            *{f"step-{s:06d}" for s in kept(out)},
        ]
    )


def kept(out):
    """The other steps that a run keeps: the one before the last, and the best one."""
    best = json.loads((out / "step-000120/training.json").read_text())["best"]["step"]
    return {114, best} - {120}


def test_bits_per_byte_is_the_mean_over_the_held_out_text(ran, book):
    result, _ = ran
    model, (learn, held_out) = result.model, text.split(text.read(book))
    ids = model.tokenizer.encode(learn)[-1:] + model.tokenizer.encode(held_out)
    total = 0.0
    for place in range(1, len(ids)):  # every token alone, with the window that `sliding` gives it
        window = 0 if place <= 32 else (place - 17) // 16 * 16
        logits = model(torch.tensor([ids[window:place]])).logits[0, -1]
        total -= float(logits.log_softmax(-1)[ids[place]].detach())
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / len(held_out.encode()), rel=1e-4)


def test_log_has_every_step_and_every_evaluation(ran):
    result, out = ran
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert [int(r["step"]) for r in rows if r["loss"]] == list(range(1, 121))
    measured = [(int(r["step"]), float(r["held_out"])) for r in rows if r["held_out"]]
    assert [step for step, _ in measured] == list(range(6, 121, 6)) and measured[-1][1] == result.bits_per_byte
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [
        int(r["step"]) for r in rows
    ]


def test_config_repeats_the_run(ran, tmp_path):
    result, out = ran
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["context"] == 32 and config["lr"] == 0.01 and config["resume"] is False
    again = train(**{**config, "out": tmp_path / "again"})
    assert again.loss == result.loss and again.bits_per_byte == result.bits_per_byte and again.sample == result.sample


def test_resume_takes_up_model_tokenizer_and_place(book, tmp_path):
    options = {**SMALL, "data": book, "quiet": True, "vocab": 280, "accumulate": 2}
    straight = train("llama", out=tmp_path / "a", **options)
    train("llama", out=tmp_path / "b", **{**options, "steps": 6, "warmup": 2, "min_lr_ratio": 1.0, "lr": 1e-3})
    with pytest.raises(ValueError, match=r"min_lr_ratio was 1\.0 and is now 0\.1"):
        train("llama", out=tmp_path / "b", resume=True, **{**options, "lr": 1e-3})
    branch = train("llama", out=tmp_path / "c", resume=str(tmp_path / "a" / "step-000006"), **options)
    assert branch.loss == straight.loss and branch.bits_per_byte == straight.bits_per_byte
    assert branch.sample == straight.sample


def test_resume_with_other_text_or_tokenizer_is_refused(ran, book, tmp_path):
    _, out = ran
    other = tmp_path / "other.txt"
    other.write_text(text.read(book)[1:])
    options = {**SMALL, "vocab": 300, "steps": 120, "lr": 1e-2, "quiet": True, "out": out, "resume": True}
    with pytest.raises(ValueError, match="corpus was"):
        train("gpt", data=other, **options)
    with pytest.raises(ValueError, match="vocab was 300 and is now 400"):
        train("gpt", data=book, **{**options, "vocab": 400})


@pytest.mark.parametrize("model", ["llama", "mamba"])
def test_other_architectures_and_bytes(model, book, tmp_path):
    result = train(model, data=book, out=tmp_path / "run", tokenizer="bytes", quiet=True, **SMALL)
    assert af.load(result.checkpoint).embed.vocab == 257
    assert result.bits_per_byte is not None and result.bits_per_byte < 8


def test_recipe_that_nobody_published(book, tmp_path):
    recipe = af.recipe("llama", "tiny", depth=3).but({"blocks.2::3.mixer": af.parts.Mamba.of(state=4)})
    options = {**SMALL, "data": book, "quiet": True, "vocab": 300}
    del options["size"]
    result = train(recipe, out=tmp_path / "a", **options)
    assert type(result.model.blocks[2].mixer).__name__ == "Mamba" and result.model.embed.vocab == 300
    config = yaml.safe_load((tmp_path / "a/config.yaml").read_text())
    assert Recipe.from_json(json.loads((tmp_path / "a/recipe.json").read_text())) == recipe
    again = train(**{**config, "out": tmp_path / "b"})  # the model is now the path of recipe.json
    assert again.loss == result.loss
    changed = train(config["model"], out=tmp_path / "c", overrides={"blocks.0.ffn.hidden": 20}, **options)
    assert changed.model.blocks[0].ffn.up.out_features == 20


def test_training_goes_on_from_a_model_directory(ran, book, tmp_path):
    result, _ = ran
    options = {**SMALL, "data": book, "quiet": True, "lr": 1e-4, "steps": 3}
    del options["size"]
    tuned = train(str(result.checkpoint), out=tmp_path / "tuned", **options)
    assert tuned.steps == 3 and abs(tuned.bits_per_byte - result.bits_per_byte) < 0.1
    assert tuned.model.tokenizer.encode("The manual") == result.model.tokenizer.encode("The manual")
    with pytest.raises(ValueError, match="the tokenizer has 400 tokens, the model has 300"):
        train(str(result.checkpoint), tokenizer="bpe", vocab=400, out=tmp_path / "x", **options)


def test_without_out_a_new_folder_is_made_each_time(book, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt-1", "gpt-2"):
        result = train("gpt", data=book, vocab=260, quiet=True, **{**SMALL, "steps": 2})
        assert result.checkpoint.parent.name == name and result.checkpoint.is_dir()


def test_screen_shows_the_run_in_plain_lines(book, tmp_path, capsys):
    train("gpt", data=book, out=tmp_path / "run", vocab=260, **{**SMALL, "log_every": 3})
    shown = capsys.readouterr().out
    for words in ("parameters", "step 6/12  loss", "lr ", "grad ", "tokens/s", " left", "bits per byte (bigram: "):
        assert words in shown
    assert "\x1b" not in shown


def test_quiet_prints_nothing(book, tmp_path, capsys):
    train("gpt", data=book, out=tmp_path / "run", vocab=260, quiet=True, **{**SMALL, "steps": 2})
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    "options, said",
    [
        ({"size": "small-ish"}, r"gpt has no size 'small-ish' \(did you mean small"),
        ({"overrides": {"deph": 3}}, r"no hyperparameter 'deph'.*did you mean depth"),
        ({"overrides": {"vocab": 300}}, "set vocab instead"),
        ({"model": "bert", "task": "causal"}, r"bert \(Encoder\) cannot be trained on the task 'causal'"),
        ({"context": 65}, "context=65 must be from 1 to the context of the model, 64"),
        ({"context": 0}, "context=0 must be from 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"tokenizer": "sentences"}, "tokenizer must be bpe, chars, bytes, or a folder"),
        ({"tokenizer": "bytes", "vocab": 300}, "vocab=300 is for a new bpe"),
        ({"vocab": 10}, "at least 257"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"prompt": ""}, "prompt is empty"),
        ({"resume": "auto", "out": None}, "resume needs out"),
        ({"resume": True}, "holds no checkpoint"),
    ],
    ids=str,
)
def test_mistakes_are_named_before_training(options, said, book, tmp_path):
    given = {**SMALL, "data": book, "out": tmp_path / "run", "quiet": True, **options}
    with pytest.raises(ValueError, match=said):
        train(given.pop("model", "gpt"), **given)
    assert not list(tmp_path.glob("run/step-*"))


def test_text_that_is_not_utf8_or_too_short_is_an_error(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Öl\n".encode("latin1") * 500)
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8: byte 0"):
        train("gpt", data=tmp_path / "latin.txt", out=tmp_path / "run", quiet=True, **SMALL)
    (tmp_path / "short.txt").write_text("too short " * 3)
    with pytest.raises(ValueError, match="tokens, and one window of context=32 needs 33"):
        train("gpt", data=tmp_path / "short.txt", out=tmp_path / "run", quiet=True, **SMALL)
    (tmp_path / "one.txt").write_text("x")
    with pytest.raises(ValueError, match="empty"):
        train("gpt", data=tmp_path / "one.txt", out=tmp_path / "run", quiet=True, **SMALL)


def test_folder_with_another_run_is_left_alone(ran, book):
    _, out = ran
    before = sorted(out.rglob("*"))
    with pytest.raises(ValueError, match="holds a run, up to step-000120: it is not overwritten"):
        train("gpt", data=book, out=out, quiet=True, **SMALL)
    assert sorted(out.rglob("*")) == before


def test_tokenizer_of_a_folder(book, tmp_path):
    Tokenizer.train_bpe([text.read(book)], 270).save(tmp_path / "tok")
    result = train("gpt", data=book, out=tmp_path / "run", tokenizer=str(tmp_path / "tok"), quiet=True, **SMALL)
    assert result.model.embed.vocab == 270


def test_prompt_longer_than_the_model_reads_is_cut(ran):
    result, _ = ran
    assert len(_sample(result.model, "word " * 200, 0)) > 40
