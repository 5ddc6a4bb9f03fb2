"""A design, from rows to a folder that runs without torch; what does not fit is said, and nothing is half-written."""

from __future__ import annotations

import itertools
import json
import random
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.core import pages
from anyformer.edge import artefact, design, finish, learn
from anyformer.edge.design import Design, Infeasible
from anyformer.edge.finish import designed
from anyformer.edge.shared import Shared, sandwich
from anyformer.edge.space import key
from anyformer.edge.wish import Wish
from anyformer.hub.text.tokenizer import Tokenizer
from tests.edge.bare import bare
from tests.later import needs

needs("optuna", reason="the search needs the extra anyformer[edge]")
SPACE: dict[str, list[Any]] = {
    "dim": [16, 32], "depth": [1, 2], "vocab": [96, 160], "pool": ["additive"], "bits": [8],
    "mixer": ["own", "convolution"], "heads": [2], "kv_heads": [0], "hidden": [1],
}  # fmt: skip
GOOD, BAD = ["good", "great", "lovely", "nice", "fine", "happy"], ["bad", "awful", "sad", "poor", "ugly", "dull"]
FILLER = ["the", "film", "was", "a", "very", "day", "at", "night", "with", "people", "and", "music", "in", "town"]


def silent(_: str) -> None:
    """Says nothing."""


def written(path: Path, label: Any = lambda n: n - 2, count: int = 300) -> str:
    noise, rows = random.Random(0), []
    for _ in range(count):
        n = noise.randint(0, 4)
        words = [noise.choice(FILLER) for _ in range(noise.randint(3, 9))]
        words += [noise.choice(GOOD) for _ in range(n)] + [noise.choice(BAD) for _ in range(4 - n)]
        rows.append({"text": " ".join(noise.sample(words, len(words))), "label": label(n)})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def wish(tmp_path_factory: pytest.TempPathFactory) -> Wish:
    rows = written(tmp_path_factory.mktemp("rows") / "rows.jsonl")
    return Wish(rows, "pearson", 90_000, 5.0, hours=6 / 3600, tokens=16, of="tiny", values=SPACE, trials=4)


@pytest.fixture(scope="module")
def made(wish: Wish, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One whole run; all that it measures of this machine is kept for the other tests."""
    out = tmp_path_factory.mktemp("edge") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(out.parent / "cache"))
        patch.setattr(design, "BEST", 2)
        return designed(wish, out, say=silent), out


@pytest.fixture(autouse=True)
def _cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = request.getfixturevalue("made")[1].parent / "cache" if "made" in request.fixturenames else tmp_path / "cache"
    monkeypatch.setenv("ANYFORMER_CACHE", str(kept))


def test_the_budget_holds_on_the_files_and_the_size_was_foreseen(wish: Wish, made: tuple[dict[str, Any], Path]) -> None:
    report, out = made
    files = list((out / "model").iterdir())
    assert {f.name for f in files} == {"model.onnx", "tokenizer.json", "run.py"}
    size = sum(f.stat().st_size for f in files)
    assert size == report["chosen"]["real_size"] <= wish.size
    assert size == pytest.approx(report["chosen"]["size"], rel=0.04)
    assert len(report["chosen"]["real"]) == 3 and all(p50 <= wish.latency for p50, _, _ in report["chosen"]["real"])
    assert report["value"] > 0.8 and report["interval"][0] < report["value"] < report["interval"][1]
    assert report["difference"] < 1e-4 and report["used"]["size"] == pytest.approx(size / wish.size)
    assert set(report["matrices"].values()) <= {4, 8, None}


def test_the_script_runs_where_neither_torch_nor_anyformer_can_be_imported(
    wish: Wish, made: tuple[dict[str, Any], Path]
) -> None:
    _, out = made
    assert len((out / "model" / "run.py").read_text(encoding="utf-8").splitlines()) <= 40
    texts = [
        "good great lovely film",
        "bad",
        "the film was awful and dull at night with people and people and people in a town at night",
    ]
    call = bare(out / "model" / "run.py", "onnx")
    done = subprocess.run([*call, *texts], capture_output=True, text=True, check=True)
    scores = [float(line.split("\t")[0]) for line in done.stdout.splitlines()]
    piped = subprocess.run(call, input="\n".join(texts), capture_output=True, text=True, check=True)
    assert piped.stdout == done.stdout
    model = af.load(out / "trained").eval()
    facts = Design(wish, out, say=silent).task
    ids, mask = model.tokenizer.batch(texts)
    logits = model(input_ids=ids[:, :16], attention_mask=mask[:, :16]).logits[:, 0]
    assert len(texts[2].split()) > 16  # cut by both, though not at the same end token
    ours = (logits * facts.deviation + facts.mean).tolist()
    assert scores[:2] == pytest.approx(ours[:2], abs=0.15) and scores[0] > 0.5 > -0.5 > scores[1]


def test_the_page_holds_every_point_and_fetches_nothing(made: tuple[dict[str, Any], Path]) -> None:
    report, out = made
    text = (out / "front.html").read_text(encoding="utf-8")
    assert "src=" not in text and "href=" not in text and "import(" not in text
    shown = json.loads(text.partition("const d = ")[2].partition("\n")[0])
    assert shown == report and len(shown["points"]) >= 1
    assert any(p["choice"] == report["chosen"]["choice"] for p in shown["points"])


def test_whole_numbers_stay_in_the_file_only_where_they_are_faster_and_right(
    wish: Wish, made: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, out = made
    done, choice = Design(wish, out, say=silent), report["chosen"]["choice"]
    small, _ = finish.stored(af.load(out / "trained").eval(), done.task, choice, 0)
    test, vocab, file = done.task.parts["test"], choice["vocab"], tmp_path / "model.onnx"
    before = done.task.answers(learn.logits_of(small), test, vocab)
    exact, _ = finish._write(done, small, vocab, tmp_path)
    written = file.read_bytes()

    def tried(milliseconds: float) -> tuple[torch.Tensor, float, str]:
        times = {"model.onnx": 1.0, "int8.onnx": milliseconds}
        monkeypatch.setattr(artefact, "measured", lambda path, *_: [[times[path.name], 0.0, 0.0]])
        return finish.in_whole_numbers(done, small, vocab, tmp_path, before, exact)

    answers, off, said = tried(2.0)
    assert said == "float32: int8 takes 2.000 ms in place of 1.000" and answers is before and off < 1e-4
    with monkeypatch.context() as patch:
        patch.setattr(finish, "LOST", {8: 0.0})
        assert tried(0.5)[2].startswith("float32: int8 moves the answers by")
    assert file.read_bytes() == written and not (tmp_path / "int8.onnx").exists()
    answers, off, said = tried(0.5)
    assert re.fullmatch(r"int8 of \d+ matrices, 8-bit inputs: int8 takes 0.500 ms in place of 1.000", said)
    assert b"MatMulInteger" in file.read_bytes() and not (tmp_path / "int8.onnx").exists()
    assert 0 < finish.moved(done.task, answers, before) < 0.01 and 1e-4 < off < 0.1


def test_a_run_that_is_done_is_read_again_and_another_wish_is_refused(
    wish: Wish, made: tuple[dict[str, Any], Path]
) -> None:
    report, out = made
    before = (out / "model" / "model.onnx").stat().st_mtime_ns
    assert designed(wish, out, say=silent) == report
    assert (out / "model" / "model.onnx").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds a run with size=90000, and this one has 80000: choose another --out"):
        designed(replace(wish, size=80_000), out, say=silent)
    with pytest.raises(ValueError, match="holds other files"):
        designed(wish, out / "model", say=silent)


def test_a_killed_run_goes_on(wish: Wish, made: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    report, out = made
    shutil.copytree(out, tmp_path / "again")
    (tmp_path / "again" / "report.json").unlink()  # killed behind the search
    said: list[str] = []
    one = Design(wish, tmp_path / "again", say=said.append)
    weights = one._prepared()
    one._search(weights)
    assert any("going on with shared.pt" in line for line in said) and "  0 steps" not in said
    assert {key(p.choice) for p in one.points()} >= {key(p["choice"]) for p in report["points"]}
    state = torch.load(out / "shared.pt", weights_only=True)["weights"]
    assert all(
        torch.equal(state[n], t) for n, t in weights.state_dict().items()
    )  # the time was up: nothing was learned again


def test_the_largest_model_learns_alone_at_first_and_then_with_others(wish: Wish, made: Any, tmp_path: Path) -> None:
    one = Design(wish, tmp_path / "out", say=silent)
    weights, seen = Shared(one.space), list[Any]()
    run = weights.run

    def watched(choice: Any) -> Any:
        seen.append(choice)
        return run(choice)

    weights.run = watched  # type: ignore[assignment,method-assign]
    for alone, models in ((True, 1), (False, 4)):
        seen.clear()
        sandwich(weights, one.task, one.task.parts["learn"], [0, 1], random.Random(0), alone).backward()
        assert len(seen) == models and (seen[0]["dim"], seen[0]["depth"]) == (32, 2)


def test_two_processes_share_one_search(wish: Wish, made: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    shutil.copytree(made[1], tmp_path / "both")
    (tmp_path / "both" / "study.db").unlink()
    two = [Design(replace(wish, trials=3), tmp_path / "both", say=silent) for _ in range(2)]
    weights = two[0]._prepared()
    for one in two:
        one.left = 1e4
        one._search(weights)
    assert len(two[0]._trials()) == len(two[1]._trials()) == 3


@pytest.mark.parametrize("budget", [{"size": 4_000}, {"latency": 1e-4}])
def test_what_does_not_fit_names_the_nearest_two(
    budget: dict, wish: Wish, made: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    with pytest.raises(Infeasible) as nothing:
        designed(replace(wish, **budget), tmp_path / "out", say=silent)
    first, second = nothing.value.nearest
    assert 0 < first.over(replace(wish, **budget)) <= second.over(replace(wish, **budget))
    assert str(nothing.value).count("over") == 2 and "bytes" in str(nothing.value)
    assert not (tmp_path / "out" / "model").exists()


def test_the_command_ends_with_3_if_nothing_fits(
    wish: Wish, made: tuple[dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["edge", "--task", wish.task, "--metric", "pearson", "--latency", "5ms", "--tokens", "16", "--of", "tiny"]
    call += [part for name, values in SPACE.items() for part in (f"--space.{name}", json.dumps(values))]
    assert main([*call, "--size", "1kB", "--out", str(tmp_path / "out")]) == 3
    err = capsys.readouterr().err
    assert (
        "no model that was tried has at most 1,000 bytes and 5 ms; the nearest are" in err and err.count("% over") == 2
    )


def test_the_commands_of_the_document_are_understood(
    wish: Wish, made: tuple[dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "edge.md").read_text(encoding="utf-8")
    commands = re.findall(r"^anyformer (edge (?:.*\\\n)*.*)$", text, re.M)
    texts = [command for command in commands if "--model" not in command]
    assert len(texts) == 5
    for command in texts:
        args = shlex.split(command.replace("\\\n", " "))
        for name, value in {"--task": wish.task, "--size": "1kB", "--out": str(tmp_path / "out")}.items():
            args[args.index(name) + 1] = value
        if "--target" in args:  # files of others take long to write; tests/edge/test_targets.py
            args[args.index("--target") + 1] = "onnx"
        if "--teacher" in args:
            at = args.index("--teacher")
            del args[at : at + 2]
        small = [part for name, values in SPACE.items() for part in (f"--space.{name}", json.dumps(values))]
        assert main([*args, "--tokens", "16", "--of", "tiny", *small]) == 3, capsys.readouterr().err
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": 0}, "--size must be above 0, got 0"), ({"latency": 0.0}, "--latency must be above 0"),
        ({"hours": 0.0}, "--hours must be above 0"), ({"memory": 0}, "--memory must be above 0"),
        ({"target": "gguf"}, "--target gguf: --metric pearson: a file for llama.cpp is written of language models"),
        ({"model": "llama"}, "--metric pearson needs labels, and the model continues text"),
    ],
)  # fmt: skip
def test_a_wish_that_is_none_writes_nothing(change: dict, says: str, wish: Wish, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        designed(replace(wish, **change), tmp_path / "out", say=silent)
    assert says in str(error.value) and not (tmp_path / "out").exists()


def test_a_task_of_one_class_or_one_row_writes_nothing(wish: Wish, tmp_path: Path) -> None:
    one = written(tmp_path / "one.jsonl", lambda _: "a")
    with pytest.raises(ValueError, match="one class only"):
        designed(replace(wish, task=one, metric="f1"), tmp_path / "out", say=silent)
    single = written(tmp_path / "single.jsonl", count=1)  # a calibration of one sample
    with pytest.raises(ValueError, match="has 1 rows"):
        designed(replace(wish, task=single), tmp_path / "out", say=silent)
    assert not (tmp_path / "out").exists()


def teacher(classes: int | None) -> Any:
    task = {"task": "none"} if classes is None else {"task": "classify", "classes": classes}
    model = af.build("bert", "tiny", vocab=257, seed=0, **task)
    model.tokenizer = Tokenizer.bytes_level()  # another vocabulary than the students': both read the text
    return model


def test_a_teacher_of_another_vocabulary_teaches_and_one_of_other_classes_does_not(
    wish: Wish, made: Any, tmp_path: Path
) -> None:
    one = Design(replace(wish, teacher="t", more=1), tmp_path / "out", teacher(1), say=silent)
    one._prepared()
    learned = one.task.parts["learn"]
    assert learned.soft is not None and len(learned.soft) == len(learned.items) > len(learned.labels) == 240
    assert (tmp_path / "out" / "soft.pt").exists() and -1 <= one.taught["score"] <= 1
    with pytest.raises(ValueError, match="the teacher has 5 outputs, and the task 1"):
        Design(replace(wish, teacher="t"), tmp_path / "two", teacher(5), say=silent)._prepared()
    mute = teacher(1)
    mute.tokenizer = None
    with pytest.raises(ValueError, match="the teacher has no tokenizer"):
        Design(replace(wish, teacher="t"), tmp_path / "three", mute, say=silent)._prepared()


def test_a_piece_that_the_teacher_does_not_come_to_is_no_row(
    wish: Wish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, seconds = Design(replace(wish, teacher="t"), tmp_path / "out", teacher(1), say=silent), itertools.count()
    monkeypatch.setattr(learn, "clock", lambda: next(seconds))
    learn.teach(one.task, one.teacher, 6, 3, tmp_path / "teacher", silent)
    part = one.task.parts["learn"]
    assert part.soft is not None and 240 == len(part.labels) < len(part.items) == len(part.soft) < 4 * 240
    assert bool(part.soft[240:].isfinite().all()) and not bool(part.soft[:240].isfinite().all())


def test_a_teacher_without_time_costs_none_and_one_that_has_read_is_not_asked_again(
    wish: Wish, made: Any, tmp_path: Path
) -> None:
    said: list[str] = []
    quick = Design(replace(wish, teacher="t", hours=1e-6), tmp_path / "quick", teacher(None), say=said.append)
    quick._prepared()
    assert any(line.startswith("no teacher: to learn from each text once takes") for line in said)
    assert quick.task.parts["learn"].soft is None and quick.taught["score"] is None
    first, second, longer = (
        Design(replace(wish, teacher="t", seed=5, hours=hours), tmp_path / name, teacher(1), say=said.append)
        for name, hours in (("one", wish.hours), ("two", wish.hours / 2), ("three", wish.hours * 2))
    )
    for one in (first, second, longer):
        one._teach()
    soft = [torch.as_tensor(one.task.parts["learn"].soft) for one in (first, second)]
    assert torch.equal(soft[0].nan_to_num(9), soft[1].nan_to_num(9)) and second.left == second.seconds
    assert sum("of an earlier run" in line for line in said) == 1  # a longer run asks again


def test_the_largest_uniform_model_is_measured_and_a_poor_teacher_is_not_heard(
    wish: Wish, made: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    shutil.copytree(made[1], tmp_path / "again")
    one = Design(wish, tmp_path / "again", say=silent)
    weights, largest = one._prepared(), key(one.plain()[0].choice)
    assert largest in {key(p.choice) for p in one.points()} & {key(p["choice"]) for p in made[0]["points"] if p["real"]}
    one.taught, learned = {"score": 0.9, "choose": -1.0}, one.task.parts["learn"]
    learned.items, learned.soft = [*learned.items, "more"], torch.zeros(len(learned.items) + 1, 1)
    finalists = one._measured(weights)
    chosen, model = finish.race(one, weights, finalists)
    assert key(chosen.choice) in {key(p.choice) for p in finalists}
    assert learned.soft is None and len(learned.items) == len(learned.labels)
    before = weights.standing(chosen.choice).state_dict()
    assert any(not torch.equal(t, before[n]) for n, t in model.state_dict().items())  # what the race taught is kept


def test_matrices_in_4_bits_have_8_where_it_matters_and_there_is_room(wish: Wish, made: Any, tmp_path: Path) -> None:
    one = Design(wish, tmp_path / "out", say=silent)
    choice = {**one.space.end(True, random.Random(0)), "bits": 4}
    model = pages.build(one.space.recipe(choice), seed=0).eval()
    _, tight = finish.stored(model, one.task, choice, 0)
    small, wide = finish.stored(model, one.task, choice, 1_500)
    four = [{e.path for e in work.entries if e.bits == 4} for work in (tight, wide)]
    assert four[1] < four[0] and len(four[1]) > 0
    inputs = one.task.medium.batch(one.task.parts["learn"], choice["vocab"], list(range(200)))
    with torch.no_grad():
        before = model(**inputs).logits
        assert finish.moved(one.task, small(**inputs).logits, before) < 0.1
    model.embed.positions.weight = torch.nn.Parameter(torch.zeros(20_000, choice["dim"]))
    with pytest.raises(
        ValueError, match=r"of the matrices' numbers are in few bits, 90% is the least: .*embed\.positions"
    ):
        finish.stored(model, one.task, choice, 0)
