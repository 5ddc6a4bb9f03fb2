"""What data, a config or a folder gets wrong, through the command: one line that names the thing, no step done."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.data import text
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train.tasks import registry
from tests.train.launched import ENVIRONMENT

pytestmark = pytest.mark.usefixtures("forked")

torch.set_num_threads(1)
TRAIN = ["train", "--size", "tiny", "--tokenizer", "bytes", "--context", "16"]
CLASSIFY = ["train", "--model", "bert", "--task", "classify", *TRAIN[1:]]
QUICK = ["--batch", "2", "--steps", "2", "--quiet"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data and models, good and bad."""
    home, words = tmp_path_factory.mktemp("bad"), text.read()
    good = [{"text": f"text {i}", "label": i % 2} for i in range(30)]

    def rows(name, rows):
        (home / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    (home / "good.txt").write_text(words[:4000])
    rows("texts.jsonl", [{"text": f"a text about {i}"} for i in range(30)])
    rows("three.jsonl", [{**row, "label": i % 3} for i, row in enumerate(good)])
    rows("nan-label.jsonl", [*good[:7], {"text": "x", "label": float("nan")}, *good])
    rows("nan-text.jsonl", [*good[:7], {"text": float("nan"), "label": 0}, *good])
    rows("null.jsonl", [*good[:7], {"text": None, "label": 0}, *good])
    rows("null-tag.jsonl", [{"words": ["a", "b"], "labels": ["x", tag]} for tag in ("y", None)])
    rows("one.jsonl", good[:1])
    rows("one-pair.jsonl", [{"source": "x", "target": "y"}])
    rows("half.jsonl", [{"words": ["a", "b"], "labels": ["x"]}, {"words": ["c"], "labels": ["y"]}] * 4)
    rows("short.jsonl", [{"text": "one document, and a short one"}])
    with (home / "nan.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *[(r["text"], r["label"]) for r in good], ("x", "nan")])
    for name in ("empty.txt", "empty.jsonl", "empty.csv"):
        (home / name).write_text("")
    (home / "blank.txt").write_text("\n \n")
    (home / "folder").mkdir()
    (home / "mixed").mkdir()
    (home / "mixed/a.txt").write_text("Größe. " * 200, encoding="utf-8")
    (home / "mixed/b.txt").write_text("Größe. " * 200, encoding="latin1")
    (home / "both.txt").write_bytes("Größe. ".encode() * 200 + "Größe. ".encode("latin1") * 200)
    (home / "wide.txt").write_text("Größe. " * 200, encoding="utf-16")
    for name, line in {
        "typo": "setps: 3",
        "deep": "overrides: {dpeth: 3}",
        "broken": "steps: [3",
        "type": "lr: fast",
    }.items():
        (home / f"{name}.yaml").write_text(line + "\n")

    bytes_, longer = Tokenizer.bytes_level(), Tokenizer.train_bpe([words[:20_000]], 400)
    longer.save(home / "tokens")
    gpt = af.build("gpt", "tiny", vocab=257, seed=0)
    gpt.tokenizer = bytes_
    gpt.save(home / "gpt")
    shutil.copytree(home / "tokens", home / "strangers")  # a model's weights beside another one's tokenizer
    for name in ("config.json", "model.safetensors"):
        shutil.copy(home / "gpt" / name, home / "strangers")
    tokenizer = registry.add_special_tokens(Tokenizer.bytes_level(), "classify")
    bert = af.build("bert", "tiny", task="classify", classes=2, vocab=tokenizer.vocab_size, seed=0)
    bert.tokenizer = tokenizer
    bert.save(home / "bert")
    return home


LIST = {
    "labels out of range": [
        (["train", "--model", "bert/", "--task", "classify", "--data", "three.jsonl", "--context", "16"],
         "the data has 3 classes, the model's head 2"),
        (["train", "--model", "bert", "--task", "tag", *TRAIN[1:], "--data", "half.jsonl"],
         "half.jsonl, row 1: it has 2 words and 1 labels: 'a b'"),
    ],
    "an empty file": [
        ([*TRAIN, "--data", "empty.txt"], "empty.txt holds no text"),
        ([*TRAIN, "--data", "blank.txt"], "blank.txt holds no text"),
        ([*TRAIN, "--data", "empty.jsonl"], "empty.jsonl holds no text"),
        ([*TRAIN, "--data", "empty.csv"], "empty.csv holds no text"),
        ([*TRAIN, "--data", "folder"], "folder holds no text (0 files)"),
        (["finetune", "--model", "gpt/", "--data", "empty.jsonl"], "empty.jsonl holds no examples"),
    ],
    "one document": [
        ([*CLASSIFY, "--data", "one.jsonl"], "the rows have one class only: every label is '0'"),
        (["train", "--model", "t5", "--task", "seq2seq", *TRAIN[1:], "--data", "one-pair.jsonl"], "at least 2 rows"),
        (["finetune", "--model", "gpt/", "--data", "short.jsonl"], "short.jsonl: expected at least 2 rows"),
        ([*TRAIN, "--data", "short.jsonl", "--context", "64"], "needs 65; use more text or a shorter context"),
    ],
    "mixed encodings": [
        ([*TRAIN, "--data", "mixed"], "b.txt is not UTF-8: byte 2 is 0xf6"),
        ([*TRAIN, "--data", "both.txt"], "both.txt is not UTF-8: byte 1802 is 0xf6"),
        ([*TRAIN, "--data", "wide.txt"], "wide.txt is not UTF-8 but UTF-16"),
    ],
    "a typo in a config": [
        ([*TRAIN, "--data", "good.txt", "--config", "typo.yaml"], "setps: unknown, did you mean steps?"),
        ([*TRAIN, "--data", "good.txt", "--config", "deep.yaml"], "gpt has no hyperparameter 'dpeth'"),
        ([*TRAIN, "--data", "good.txt", "--config", "broken.yaml"], "Problems parsing config"),
        ([*TRAIN, "--data", "good.txt", "--config", "type.yaml"], "lr: expected a number, got 'fast'"),
    ],
    "options that contradict each other": [
        ([*TRAIN, "--data", "good.txt", "--compile", "--statistics_every", "5"], "statistics_every hooks every module"),
        ([*TRAIN, "--data", "good.txt", "--patience", "2", "--eval_every", "0"], "patience=2 counts evaluations, and"),
        ([*TRAIN, "--data", "good.txt", "--vocab", "400"], "vocab=400 is for a new bpe tokenizer; tokenizer='bytes'"),
        ([*TRAIN, "--data", "good.txt", "--communication.every", "3"], "ddp has no such numbers; got 'every'"),
        ([*TRAIN, "--data", "good.txt", "--init", "mup"], "init=mup and base belong together"),
        ([*TRAIN, "--data", "good.txt", "--model", "linear", "--order", "packed"], "cannot keep packed documents"),
        ([*CLASSIFY, "--data", "good.txt", "--order", "packed"], "order=packed is for text, and classify reads"),
        (["finetune", "--model", "gpt/", "--data", "texts.jsonl", "--epochs", "2"], "and steps=2 contradict each"),
        ([*TRAIN, "--data", "good.txt", "--clusters", "7"], "clusters=7 is read by the task units, and this"),
        ([*CLASSIFY, "--data", "good.txt", "--codes", "x"], "codes='x' is read by the task draw or compose or stage"),
        (["finetune", "--model", "gpt/", "--data", "texts.jsonl", "--index", "x"], "is read by the task retrieve"),
    ],
    "NaN in data": [
        ([*CLASSIFY, "--data", "nan-label.jsonl"], "nan-label.jsonl, row 8: 'label' is nan; put a value there"),
        ([*CLASSIFY, "--data", "nan-text.jsonl"], "nan-text.jsonl, row 8: 'text' is nan"),
        ([*TRAIN, "--data", "nan-text.jsonl"], "nan-text.jsonl, row 8: 'text' is nan"),
        ([*TRAIN, "--data", "null.jsonl"], "null.jsonl, row 8: 'text' has no value"),
        (["train", "--model", "bert", "--task", "tag", *TRAIN[1:], "--data", "null-tag.jsonl"],
         "null-tag.jsonl, row 2: 'labels' has no value"),
        ([*CLASSIFY, "--data", "nan.csv"], "nan.csv, row 31: 'label' is nan"),
        (["finetune", "--model", "bert/", "--data", "nan-label.jsonl"], "nan-label.jsonl, row 8: 'label' is nan"),
    ],
    "a tokenizer that is not the model's": [
        (["train", "--model", "gpt/", "--tokenizer", "tokens", "--data", "good.txt", "--context", "16"],
         "the tokenizer has 400 tokens, the model has 257"),
        (["train", "--model", "strangers", "--data", "good.txt", "--context", "16"],
         "the tokenizer has 400 tokens, the model has 257"),
        (["finetune", "--model", "strangers", "--data", "texts.jsonl"],
         "the tokenizer has 400 tokens, the model has 257"),
        (["train", "--model", "bert", "--size", "tiny", "--tokenizer", "tokens", "--data", "good.txt"],
         "the task masked needs a tokenizer with a cls_token"),
    ],
}  # fmt: skip
CASES = [pytest.param(a, s, id=f"{what} {i}") for what, cases in LIST.items() for i, (a, s) in enumerate(cases)]


def command(argv, home, out):
    """The words of a command, with the files of `home`."""
    there = {file.name for file in home.iterdir()} | {"gpt/", "bert/"}
    words = [str(home / word) if word in there and word not in ("gpt", "bert") else word for word in argv]
    return [*words, *QUICK, "--out", str(out)]


def steps(out):
    """Steps that a run has done."""
    log = out / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize(("argv", "said"), CASES)
def test_the_thing_is_named_before_the_first_step(argv, said, home, tmp_path, capsys):
    assert main(command(argv, home, tmp_path / "run")) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told and told.startswith(f"anyformer {argv[0]}: ")
    assert not steps(tmp_path / "run") and not [*tmp_path.glob("run/step-*")]


def test_what_is_right_is_trained_on(home, tmp_path, capsys):
    """The same commands without a mistake: what is refused above is refused for the mistake."""
    for i, argv in enumerate(([*TRAIN, "--data", "good.txt"], [*TRAIN, "--data", "short.jsonl"],
                              ["finetune", "--model", "gpt/", "--data", "texts.jsonl"])):  # fmt: skip
        assert main(command(argv, home, tmp_path / str(i))) == 0, capsys.readouterr().err
        assert [row["step"] for row in steps(tmp_path / str(i)) if "loss" in row] == [1, 2]


def test_a_damaged_cache_is_named_and_made_again(home, tmp_path, capsys):
    argv = [*command([*TRAIN, "--data", "good.txt"], home, tmp_path / "a"), "--cache", str(tmp_path / "tokens")]
    assert main(argv) == 0
    for ids in (tmp_path / "tokens").rglob("ids.bin"):
        ids.write_bytes(ids.read_bytes()[:-1] + b"\x07")
    assert main([*argv, "--out", str(tmp_path / "b")]) == 0
    assert "is damaged (the checksum of ids.bin differs" in capsys.readouterr().err
    assert steps(tmp_path / "a")[0]["loss"] == steps(tmp_path / "b")[0]["loss"]


POWERLESS = """
import ctypes, os, sys
if os.geteuid() == 0:  # root may write everywhere, as long as it has its capabilities
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0
from anyformer.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_folder_that_cannot_be_written_is_named(home, tmp_path):
    (tmp_path / "mine").mkdir(mode=0o500)
    argv = command([*TRAIN, "--data", "good.txt"], home, tmp_path / "mine/run")
    run = subprocess.run([sys.executable, "-c", POWERLESS, *argv], env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert "cannot write a run there: Permission denied; choose another out" in run.stderr
    assert str(tmp_path / "mine/run") in run.stderr and not [*(tmp_path / "mine").iterdir()]
