"""A ladder: finished runs are kept, stopped ones go on, mistakes are found before training; and the verbs."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from anyformer.scale import climb, ladder, read
from anyformer.train.loop import Loop
from benchmarks.scaling import planted
from tests.cli.conftest import cli as cli

BOOK = "the cat sat on the mat and looked at the moon. " * 60
RUNS = [
    {"steps": steps, "overrides": {"dim": dim}, "seed": seed}
    for seed, (dim, steps) in enumerate([(8, 4), (8, 8), (8, 12), (16, 4), (24, 8), (16, 12)])
]


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    (tmp_path / "book.txt").write_text(BOOK)
    common = {
        "model": "llama", "size": "tiny", "data": str(tmp_path / "book.txt"), "tokenizer": "bytes", "context": 16,
        "batch": 2, "lr": "1e-3", "eval_every": 0, "save_every": 2,
        "overrides": {"depth": 1, "heads": 2, "kv_heads": 1, "context": 16},
    }  # fmt: skip
    content = {"out": str(tmp_path / "runs"), "train": common, "runs": RUNS}
    (tmp_path / "ladder.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "ladder.yaml"


def test_a_ladder_trains_each_run_once_and_goes_on_behind_a_signal(
    steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = ladder.train, []

    def trained(**options: Any) -> Any:
        calls.append(options["steps"])
        if len(calls) == 3:
            at_step(2)
        return real(**options)

    def at_step(number: int) -> None:
        """A signal, once, as from `timeout`."""
        advance = Loop.advance

        def stepped(loop: Loop) -> None:
            advance(loop)
            if loop.step == number:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Loop, "advance", stepped)

    monkeypatch.setattr(ladder, "train", trained)
    with pytest.raises(InterruptedError, match="run-03 stopped after step"):
        climb(steps, lambda _: None)
    rows = (steps.parent / "runs" / "runs.jsonl").read_text().splitlines()
    assert len(rows) == 2 and calls == [4, 8, 12]
    monkeypatch.undo()
    said: list[str] = []
    file = climb(steps, said.append)
    assert [line.startswith(f"run-0{i}: finished before") for i, line in enumerate(said, 1)] == [True] * 2 + [False] * 4
    assert file.read_text().splitlines()[:2] == rows
    found = read(file)
    assert found.tokens.tolist() == [2 * 16 * n for n in (4, 8, 12, 4, 8, 12)] and (found.loss > 0).all()
    first = json.loads(rows[0])
    assert first["tables"] == 8 * 257 and first["params"] > first["tables"]
    before = file.read_bytes()
    climb(steps, said.append)
    assert file.read_bytes() == before


def test_a_changed_run_does_not_go_on_from_another_ones_checkpoint(steps: Path) -> None:
    place = steps.parent / "runs" / "run-01"
    place.mkdir(parents=True)
    (place / "ladder.json").write_text(json.dumps({"steps": 5}))
    with pytest.raises(ValueError, match=r"run with other options: .*steps 5 there, 4 here"):
        climb(steps)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runs": RUNS[:2]}, "a ladder of 2 runs; a law of five numbers needs at least 6"),
        ({"runs": [*RUNS, RUNS[0]]}, "run 7 has the options of an earlier run"),
        ({"runs": [*RUNS, {"stepz": 3}]}, "run 7: stepz is no option of train (did you mean steps"),
        ({"runs": [*RUNS, {"out": "here"}]}, "run 7: out is set by the ladder"),
        ({"runs": [*RUNS, {"steps": 0}]}, "steps must be at least 1, got 0"),
        ({"runs": [*RUNS, 3]}, "got 3 as run 7"),
        ({"rungs": []}, "rungs: unknown (did you mean runs?)"),
        ({"runs": None}, "expected the keys out, train, runs"),
    ],
)
def test_a_ladder_with_a_mistake_trains_nothing(change: Any, said: str, steps: Path) -> None:
    steps.write_text(yaml.safe_dump(yaml.safe_load(steps.read_text()) | change))
    with pytest.raises(ValueError) as error:
        climb(steps)
    assert said in str(error.value) and not (steps.parent / "runs").exists()


def test_the_verb_fits_draws_and_foretells(cli: Any, tmp_path: Path) -> None:
    from anyformer.scale.laws import PUBLISHED

    runs = planted(PUBLISHED["besiroglu"], 0.005, 1)
    lines = (f"{n},{6 * n * d},{loss}" for n, d, loss in zip(runs.params, runs.tokens, runs.loss, strict=True))
    (tmp_path / "runs.csv").write_text("\n".join(["size,flops,val", *lines]))
    columns = ("--columns.params", "size", "--columns.loss", "val")
    code, out, _ = cli("scale", "fit", tmp_path / "runs.csv", *columns, "--draws", "20",
                         "--plot", tmp_path / "a.png", "--out", tmp_path / "a.json")  # fmt: skip
    assert code == 0 and "reached by 10 of 10 starts" in out and "2, parabolas" in out and "last loss carried on" in out
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    code, out, _ = cli("scale", "predict", "--params", "1b", "--tokens", "20b", "--law", tmp_path / "a.json")
    assert code == 0 and "90 % interval" in out and "warning" not in out
    code, out, _ = cli("scale", "optimal", "--flops", "5.76e23", "--law", tmp_path / "a.json", "--json")
    assert code == 0 and "times the most parameters" in json.loads(out)["warning"]
    assert "a parameter" in cli("scale", "optimal", "--params", "175b")[1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("fit",), "fit needs a file"),
        (("predict", "a.csv", "--params", "1b"), "predict takes no file"),
        (("predict", "--params", "1b"), "predict needs --params and --tokens"),
        (("predict", "--params", "0", "--tokens", "1b"), "--params must be a finite number above 0, got 0"),
        (("optimal",), "optimal needs one of --flops, --loss and --params"),
        (("optimal", "--loss", "1.2"), "loss 1.2 is not above E = 1.817"),
        (("optimal", "--flops", "1e21", "--law", "own.json"), "there is hoffmann, besiroglu, or the JSON file"),
        (("fit", "nowhere.csv"), "nowhere.csv"),
        (("fit", "nowhere.csv", "--draws", "3"), "--draws must be at least 20"),
        (("fit", "nowhere.csv", "--columns.size", "n"), "--columns.size: unknown"),
    ],
)
def test_mistakes_of_the_verb_are_named(argv: Any, said: str, cli: Any) -> None:
    code, _, err = cli("scale", *argv)
    assert code == 2 and said in err


def test_the_verb_plans(cli: Any) -> None:
    given = ("--tokens", "1b", "--gpus", "4xa100")
    code, out, _ = cli("plan", "llama", "--overrides.depth", "4", "--context", "64", *given, "--price", "2")
    assert code == 0 and "layouts that fit 4xa100" in out and "price" in out and "matters most" in out
    code, out, _ = cli("plan", "llama", *given, "--json", "--watts", "500")
    assert code == 0 and json.loads(out)["assumptions"]["watts"] == 500
    for argv, said in (
        (given, "plan needs a model or --params"),
        (("llama", "--params", "7b", *given), "plan needs a model or --params"),
        (("--params", "7b", "--size", "7b", *given), "--size and --overrides are for an architecture"),
        (("llama", *given, "--budget", "soon"), "expected a time such as 5days"),
        (("llama", *given, "--budget", "1e-9h"), "are allowed"),
        (("llama", "--tokens", "0", "--gpus", "4xa100"), "--tokens must be a finite number above 0"),
    ):
        code, _, err = cli("plan", *argv)
        assert code == 2 and said in err, err


def test_the_commands_of_the_document_run_and_its_ladder_is_one(cli: Any) -> None:
    root = Path(__file__).parents[2]
    blocks = re.findall(r"```sh\n(.*?)```", (root / "docs" / "scaling.md").read_text(), re.S)
    for command in blocks[0].splitlines():
        code, out, err = cli(*shlex.split(command, comments=True)[1:])
        assert code == 0 and out, err
    assert len(ladder.read(root / "examples" / "ladder.yaml")[1]) == 12
    rows = (root / "benchmarks" / "results" / "ladder.jsonl").read_text().splitlines()
    assert [json.loads(row)["options"] for row in rows] == ladder.read(root / "examples" / "ladder.yaml")[1]
