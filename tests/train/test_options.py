"""Options of `train` and `finetune`: each is written once, has its type, and is read by its former name, too."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml

import anyformer as af
from anyformer.cli import main, verb
from anyformer.cli.options import Parser
from anyformer.core.options import current
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import Settings, finetune, renamed, train
from anyformer.train.options import FinetuneOptions, TrainOptions
from anyformer.train.settings import CommonSettings

torch.set_num_threads(1)
SMALL: dict[str, Any] = {"size": "tiny", "batch": 2, "context": 16, "tokenizer": "bytes", "eval_every": 0}
# former name -> a value other than the default, as a command line has it, and as the present option holds it
FORMER: dict[str, tuple[str, Any]] = {
    "final_lr": ("0.5", 0.5),
    "clip": ("0.25", 0.25),
    "rates.embed.*": ("0.5", {"embed.*": 0.5}),
    "changes.depth": ("1", {"depth": 1}),
    "rows": ("drawn", "random"),
    "recompute": ("blocks.*", ["blocks.*"]),
    "exchange": ("{}", {}),
    "learn": ("norm", ["norm"]),
}
OF_FINETUNE = ("learn",)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("the cat sat on the mat. " * 300)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model and examples to fine-tune it on."""
    folder = tmp_path_factory.mktemp("base")
    model = af.build("gpt", "tiny", vocab=300, seed=0)
    model.tokenizer = Tokenizer.train_bpe(["the cat sat on the mat"], 270)
    model.save(folder / "model")
    (folder / "texts.jsonl").write_text('{"text": "the cat sat on the mat"}\n' * 20)
    return str(folder / "model"), str(folder / "texts.jsonl")


@pytest.mark.parametrize("options", [Settings, TrainOptions, FinetuneOptions])
def test_an_option_is_written_again_only_where_its_type_or_default_differs(options: Any) -> None:
    for cls in options.__mro__[:-1]:
        for parent in cls.__mro__[1:-1]:
            again = inspect.get_annotations(cls).keys() & inspect.get_annotations(parent).keys()
            ours, theirs = ({f.name: f for f in dataclasses.fields(c)} for c in (cls, parent))
            for name in again:
                same = get_type_hints(cls)[name] == get_type_hints(parent)[name]
                assert not same or ours[name].default != theirs[name].default, f"{cls.__name__}.{name}"


def test_every_former_name_is_tried_here() -> None:
    assert {name.partition(".")[0] for name in FORMER} == renamed.RENAMED.keys()
    options = {f.name for cls in (TrainOptions, FinetuneOptions) for f in dataclasses.fields(cls)}
    assert set(renamed.RENAMED.values()) <= options and not renamed.RENAMED.keys() & options


@pytest.mark.parametrize(("former", "present"), renamed.RENAMED.items())
def test_a_former_name_is_refused_in_python_with_the_present_one(former: str, present: str) -> None:
    functions: list[Any] = [train, finetune]
    if present in {f.name for f in dataclasses.fields(CommonSettings)}:
        functions.append(lambda **option: Settings(1, **option))
    for function in functions:
        with pytest.raises(TypeError, match=f"'{former}' is now called '{present}'"):
            function(**{former: 1})
    if former == "changes":
        with pytest.raises(TypeError, match="'changes' of build is now called 'overrides'"):
            af.build("gpt", changes={"depth": 1})


@pytest.mark.parametrize("way", ["words", "equals", "hyphens", "file"])
@pytest.mark.parametrize("former", FORMER)
def test_a_former_name_is_read_on_the_command_line_and_in_files(
    former: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word, value = FORMER[former]
    name, _, inner = former.partition(".")
    if way == "file":
        held = yaml.safe_load(word)
        (tmp_path / "old.yaml").write_text(yaml.safe_dump({name: {inner: held} if inner else value_of(name, held)}))
        words = ["--config", str(tmp_path / "old.yaml")]
    else:
        option = former.replace("_", "-") if way == "hyphens" else former
        words = [f"--{option}={word}"] if way == "equals" else [f"--{option}", word]
    command = "finetune" if name in OF_FINETUNE else "train"
    parser = Parser(command, "", "")
    verb(command).options(parser)
    present = renamed.RENAMED[name]
    assert parser.parse_args(words)[present] == value
    assert f"{name} is now called {present}" in capsys.readouterr().err


def test_a_config_with_former_names_repeats_its_run(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {**SMALL, "data": str(book), "steps": 1, "quiet": True, "out": str(tmp_path / "run")}
    options |= {"rows": "drawn", "final_lr": 0.5, "changes": {"depth": 1}, "rates": {"embed.*": 0.5}}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(options))
    assert main(["train", "--config", str(tmp_path / "old.yaml")]) == 0, capsys.readouterr().err
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written == written | current(options, renamed.RENAMED, renamed.VALUES) | {"order": "random"}
    assert not renamed.RENAMED.keys() & written.keys()


@pytest.mark.parametrize("former", FORMER)
def test_a_file_with_both_names_of_an_option_is_refused(
    former: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = former.partition(".")[0]
    present = renamed.RENAMED[old]
    command = "finetune" if old in OF_FINETUNE else "train"
    parser = Parser(command, "", "")
    verb(command).options(parser)
    (tmp_path / "both.yaml").write_text(f"{present}: 1\n{old}: 2\n")
    with pytest.raises(SystemExit):
        parser.parse_args(["--config", str(tmp_path / "both.yaml")])
    assert f"{present} and {old} are names of one option: keep {present}" in capsys.readouterr().err


def value_of(name: str, held: Any) -> Any:
    """The value of an option as older versions wrote it into config.yaml."""
    return [held] if name in ("recompute", "learn") else held


def former_names(checkpoint: Path) -> None:
    """Rewrites training.json as versions with the former names wrote it."""
    former = {new: old for old, new in renamed.RENAMED.items()}
    facts = json.loads((checkpoint / "training.json").read_text())
    for part in ("settings", "facts"):
        facts[part] = {former.get(name, name): value for name, value in facts[part].items()}
    if "rows" in facts["facts"]:
        facts["facts"]["rows"] = "drawn"
    (checkpoint / "training.json").write_text(json.dumps(facts))


def test_a_checkpoint_with_former_names_goes_on(book: Path, base: tuple[str, str], tmp_path: Path) -> None:
    options: dict[str, Any] = {**SMALL, "data": book, "out": tmp_path / "a", "quiet": True, "overrides": {"depth": 1}}
    options |= {"min_lr_ratio": 0.5, "grad_clip": 0.5, "activation_checkpointing": ["blocks.*"], "warmup": 0}
    former_names(train(**options, lr_multipliers={"embed.*": 0.5}, steps=2).checkpoint)
    assert train(**options, lr_multipliers={"embed.*": 0.5}, steps=3, resume=True).steps == 3
    with pytest.raises(ValueError, match="order was 'random' and is now 'epochs'"):
        train(**options, lr_multipliers={"embed.*": 0.5}, steps=4, resume=True, order="epochs")
    tuned: dict[str, Any] = {"batch": 2, "context": 16, "quiet": True, "out": tmp_path / "b", "trainable": ["norm"]}
    former_names(finetune(base[0], base[1], steps=2, warmup=0, overrides={"dropout": 0.1}, **tuned).checkpoint)
    assert finetune(base[0], base[1], steps=3, warmup=0, overrides={"dropout": 0.1}, resume=True, **tuned).steps == 3
