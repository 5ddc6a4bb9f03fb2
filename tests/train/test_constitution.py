"""A constitution: the steps and their files, a run that is killed, judges, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import principles
from anyformer.train.constitution import Constituted, constitution
from anyformer.train.revising import Steps, fingerprint, self_judged

torch.set_num_threads(1)
JUDGES = """
import os, pathlib, signal
def low(text):
    print("what a program prints harms nothing")
    kill = pathlib.Path(__file__).with_name("kill")
    if kill.exists() and len(text) > 8 :
        kill.unlink()
        os.kill(os.getppid(), signal.SIGKILL)
    return sum(c in "0123456789abcdefghijklm" for c in text)
def broken(text):
    return 1 / 0
def words(text):
    return "many"
def nothing(text):
    return float("nan")
def endless(text):
    while len(text) > 0:
        pass
def never(text):
    return 1
def always(text):
    return 0
"""
LOW = {"name": "low", "text": "No low letters.", "program": "judges.py:low"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA of bytes, judges and prompts."""
    place = tmp_path_factory.mktemp("home")
    model = af.build("llama", "tiny", vocab=257, context=1024, seed=0)
    model.tokenizer = Tokenizer.bytes_level()
    model.tokenizer.template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    model.save(place / "model")
    (place / "judges.py").write_text(JUDGES)
    (place / "p.txt").write_text("".join(f"say {i}\n" for i in range(20)) + "\n  \nsay 3\n")
    return place


def options(home: Path, out: Path, rules: Any = None, **changes: Any) -> dict[str, Any]:
    file = home / f"{out.name}.yaml"
    file.write_text(json.dumps(rules or [LOW, {"name": "x", "text": "No x.", "forbid": "x"}, "Be kind."]))
    given = {"model": str(home / "model"), "principles": str(file), "prompts": str(home / "p.txt"), "out": out}
    return {
        **given,
        "max_new_tokens": 12,
        "steps": 2,
        "batch": 2,
        "context": 64,
        "device": "cpu",
        "quiet": True,
        **changes,
    }


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_bytes().decode().split("\n")[:-1]]


@pytest.fixture(scope="module")
def done(home: Path) -> Constituted:
    return constitution(**options(home, home / "whole"))


def test_every_row_says_where_it_comes_from(home: Path, done: Constituted) -> None:
    out, prompts = home / "whole", {f"say {i}" for i in range(20)}
    made_by = fingerprint(af.load(home / "model"))
    held = {row["prompt"] for row in rows(out, "held-before")}
    assert len(held) == 2
    for name in ("1-sample", "2-critique", "3-revise"):
        assert {row["prompt"] for row in rows(out, name)} == prompts - held
        assert all(
            row["model"] == made_by and row["step"] == name and isinstance(row["seed"], int) for row in rows(out, name)
        )
    assert {row["model"] for row in rows(out, "held-before")} == {made_by}
    assert {row["model"] for row in rows(out, "held-dpo")} == {fingerprint(af.load(done.folder))}
    for name in ("4-pairs", "4-learn"):
        assert all({"prompt", "principle", "model", "seed"} <= row.keys() for row in rows(out, name))
        assert not held & {row["prompt"] for row in rows(out, name)}


def test_what_breaks_a_principle_is_revised_and_the_original_is_never_lost(home: Path, done: Constituted) -> None:
    out = home / "whole"
    sampled = {row["prompt"]: row["answer"] for row in rows(out, "1-sample")}
    low = re.compile("[0-9a-m]")
    for row in rows(out, "2-critique"):
        assert row["scores"]["low"] == len(low.findall(row["answer"])) and row["answer"] == sampled[row["prompt"]]
        assert ("low" in row["principle"]) == (row["scores"]["low"] > 0)
    revised = rows(out, "3-revise")
    assert all(row["answer"] == sampled[row["prompt"]] for row in revised)
    assert all((row["became"] == "kept") == (not row["principle"]) for row in revised)
    pairs = {row["prompt"]: row for row in rows(out, "4-pairs")}
    assert len(pairs) == done.counts["revised"] >= 2
    for row in revised:
        if row["became"] == "revised":
            pair = pairs[row["prompt"]]
            assert (pair["chosen"], pair["rejected"]) == (row["revision"], row["answer"])
            assert len([n for n, v in row["after"].items() if v > 0]) < len(row["principle"])
    learned = {row["prompt"]: row["response"] for row in rows(out, "4-learn")}
    kept = {row["prompt"]: row["answer"] for row in revised if row["became"] == "kept" and row["answer"]}
    assert learned == kept | {prompt: pair["chosen"] for prompt, pair in pairs.items()}
    assert sum(done.counts.values()) == 18


def test_violations_are_counted_on_answers_to_held_out_prompts(home: Path, done: Constituted) -> None:
    report = json.loads((home / "whole" / "report.json").read_text())
    for stage in ("before", "sft", "dpo"):
        answers = [row["answer"] for row in rows(home / "whole", f"held-{stage}")]
        share = sum(bool(re.search("[0-9a-m]", text)) for text in answers) / 2
        assert done.violations[stage]["low"].value == share == report["violations"][stage]["low"]["value"]
    assert set(done.violations["dpo"]) == {"low", "x", "principle 3", "any"} and done.folder.is_dir()


@pytest.mark.usefixtures("forked")
def test_a_run_that_is_killed_at_any_step_ends_with_the_same_files(home: Path, done: Constituted) -> None:
    out = home / "killed"
    given = options(home, out, quiet=False)
    words = ["align", "constitution", given.pop("model"), "--quiet"]
    given.pop("quiet")
    words += [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    code = "import sys; from anyformer.cli import main; sys.exit(main(sys.argv[1:]))"
    path = os.pathsep.join([str(Path(af.__file__).parents[1]), *filter(None, sys.path)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, *words], env=environment, stderr=subprocess.PIPE)

    (home / "kill").touch()  # the judge kills the run in the critique
    process = start()
    assert process.wait(60) == -signal.SIGKILL, process.stderr.read() if process.stderr else ""
    assert rows(out, "1-sample") == rows(home / "whole", "1-sample") and not (out / "3-revise.jsonl").exists()
    content = (out / "1-sample.jsonl").read_bytes()
    (out / "1-sample.jsonl").write_bytes(content[: len(content) * 2 // 3])  # as if in the middle of a line
    for step in ("5-sft", "6-dpo"):
        process = start()
        while not (out / step).exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)
    again = constitution(**options(home, out))
    for file in sorted((home / "whole").glob("*.jsonl")):
        assert (out / file.name).read_bytes() == file.read_bytes(), file.name
    assert again.counts == done.counts and again.violations == done.violations
    assert fingerprint(af.load(again.folder)) == fingerprint(af.load(done.folder))


@pytest.mark.parametrize("name", ["1-sample", "2-critique", "3-revise", "held-before", "held-dpo"])
def test_rows_that_are_missing_are_made_again(name: str, home: Path, done: Constituted, tmp_path: Path) -> None:
    out = tmp_path / "whole"
    shutil.copytree(home / "whole", out)
    content = (out / f"{name}.jsonl").read_bytes()
    (out / f"{name}.jsonl").write_bytes(content[:-20])
    again = constitution(**{**options(home, home / "whole"), "out": out})
    assert (out / f"{name}.jsonl").read_bytes() == content and again.counts == done.counts


def test_an_answer_may_hold_any_character(tmp_path: Path) -> None:
    run = Steps(SimpleNamespace(seed=0), None, [], "hash", tmp_path)
    made = run.step("a", [1, 2], lambda some, seeds: iter([{"answer": "a\u2028b\x85c\x1c\n🙂"} for _ in some]))
    assert run.rows("a") == made and run.step("a", [1, 2], lambda some, seeds: iter(())) == made


def test_the_model_can_be_the_only_critic(home: Path) -> None:
    model, rule = af.load(home / "model"), principles.Principle("kind", "Be kind.")
    value = self_judged(model, rule, "say 1", "no")
    asked = (
        "Question: say 1\nAnswer: no\nPrinciple: Be kind.\n\nDoes the answer break the principle? Reply with Yes or No"
    )
    text = f"{asked}, and say why in one sentence.\n"  # as the template writes it
    scores = []
    for word in ("Yes", "No"):
        ids, first = model.tokenizer.encode(text.rstrip() + "\n" + word), len(model.tokenizer.encode(text.rstrip()))
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        scores.append(sum(float(logs[i - 1, ids[i]]) for i in range(first, len(ids))))
    assert value == pytest.approx(scores[0] - scores[1], abs=1e-3)
    try:
        constitution(**options(home, home / "own", critic="model", revisions=1))
    except ValueError as error:  # an untrained critic may find nothing to prefer
        assert "pair(s) of 18 answers" in str(error)
    judged = rows(home / "own", "2-critique")
    assert set(judged[0]["judges"].values()) == {"model"} and len(judged) == 18


@pytest.mark.parametrize("program, said", [
    ("broken", r"principle 'p': .*judges.py:broken raised ZeroDivisionError: division by zero, for the text 'A text.'"),
    ("words", "returned 'many', which is no number"),
    ("nothing", "returned nan, which is no number"),
    ("missing", r"failed: AttributeError: .*missing"),
    ("endless", "did not end within 1 s for 1 texts"),
])  # fmt: skip
def test_a_program_that_is_no_judge_is_named_before_the_first_step(
    program: str, said: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if program == "endless":
        monkeypatch.setattr(principles, "SECONDS", 1.0)
    rules = [{"name": "p", "text": "A rule.", "program": f"judges.py:{program}"}]
    with pytest.raises(ValueError, match=said):
        constitution(**options(home, home / f"out-{program}", rules))
    assert not (home / f"out-{program}").exists()


@pytest.mark.parametrize("rules, said", [
    ([{"name": "a", "text": " "}], "principle 1 is empty: it needs a text"),
    (["Be kind.", ""], "principle 2 is empty"),
    ([{"text": "a", "programm": "x"}], r"unknown key 'programm' \(did you mean program\?\)"),
    ([{"text": "a", "forbid": "x", "require": "y"}], "two judges, forbid and require"),
    ([{"text": "a", "forbid": "("}], "forbid is no regular expression"),
    ([{"text": "a", "program": "none.py:f"}], "it must be FILE.py:FUNCTION"),
    ([{"name": "a", "text": "b"}, {"name": "a", "text": "c"}], "the name 'a' comes twice"),
    ({"text": "a"}, "holds no principle"),
])  # fmt: skip
def test_principles_that_are_none_are_named(rules: Any, said: str, home: Path) -> None:
    with pytest.raises(ValueError, match=said):
        constitution(**options(home, home / "refused", rules))
    assert not (home / "refused").exists()


@pytest.mark.parametrize("changes, said", [
    ({"prompts": "EMPTY"}, r"0 prompt\(s\) left of 2 lines, without empty and repeated ones"),
    ({"max_new_tokens": 400}, "no prompt left: with the principles, an answer of 400 tokens"),
    ({"out": None}, "out is missing"),
    ({"principles": ""}, "principles is missing"),
    ({"data": "x.jsonl"}, "constitution makes its pairs"),
    ({"loss": "kto"}, "a constitution ends with dpo"),
    ({"held_out": "other.txt"}, "held_out must be a share"),
    ({"revisions": 0}, "revisions and max_new_tokens must be at least 1"),
])  # fmt: skip
def test_options_that_make_no_sense_are_named(changes: dict[str, Any], said: str, home: Path) -> None:
    (home / "empty.txt").write_text("\n \n")
    given = {**options(home, home / "refused"), **changes}
    given["prompts"] = str(home / "empty.txt") if given["prompts"] == "EMPTY" else given["prompts"]
    with pytest.raises(ValueError, match=said):
        constitution(**given)
    assert not (home / "refused").exists()


@pytest.mark.parametrize("program, said", [
    ("always", r"0 pair\(s\) of 18 answers: 18 broke no principle"),
    ("never", r"0 pair\(s\) of 18 answers: 0 broke no principle, 0 revisions changed nothing, 18 were no better"),
])  # fmt: skip
def test_without_a_pair_there_is_nothing_to_learn_and_the_steps_stay(program: str, said: str, home: Path) -> None:
    out = home / f"pairs-{program}"
    with pytest.raises(ValueError, match=said):
        constitution(**options(home, out, [{"text": "A rule.", "program": f"judges.py:{program}"}], revisions=1))
    assert len(rows(out, "3-revise")) == 18 and not (out / "4-pairs.jsonl").exists()


def test_a_revision_that_changes_nothing_is_counted(home: Path) -> None:
    """At temperature 0, a model without layers that looks at the last token only answers every question alike."""
    rules, out = [{"text": "A rule.", "program": "judges.py:never"}], home / "same"
    folder = home / "bigram"
    model = af.build("llama", "tiny", vocab=257, context=1024, depth=1, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("mixer.o.weight", "mixer.out.weight")) or "down" in name:
                weight.zero_()
    model.tokenizer = Tokenizer.bytes_level()
    model.tokenizer.template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    model.save(folder)
    with pytest.raises(ValueError, match="18 revisions changed nothing, 0 were no better"):
        constitution(**options(home, out, rules, model=str(folder), temperature=0.0))
    assert all(row["became"] == "unchanged" and row["revision"] is None for row in rows(out, "3-revise"))


def test_the_principles_of_the_document_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "alignment.md").read_text()
    (tmp_path / "c.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.S)[0])
    (tmp_path / "judges.py").write_text("def words_over(text):\n    return max(0, len(text.split()) - 40)\n")
    short, calm, sourced, polite = principles.read(tmp_path / "c.yaml")
    texts = ["Fine! Oh!", "word " * 43, "So.\nSource: a book."]
    assert short.scores(texts) == [0, 3, 0] and calm.scores(texts) == [2, 0, 0] and sourced.scores(texts) == [1, 1, 0]
    assert polite.judge == "model"


def test_a_folder_of_another_run_is_left_alone(home: Path, done: Constituted, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a run with seed=0, and this one has 1"):
        constitution(**options(home, home / "whole", seed=1))
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        constitution(**{**options(home, home / "whole"), "out": tmp_path})
    assert os.listdir(tmp_path) == ["note.txt"]


def test_the_command_keeps_the_options_of_both_apart(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", "dpo", str(home / "model"), "--data", "x.jsonl", "--principles", "c.yaml"]) == 2
    assert "--principles is for constitution; dpo learns from --data" in capsys.readouterr().err
    assert main(["align", "constitution", str(home / "model"), "--prompts", "p.txt", "--out", "o"]) == 2
    assert "principles is missing" in capsys.readouterr().err
