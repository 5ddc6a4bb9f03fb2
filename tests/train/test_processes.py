"""What a run may be asked for beside weights and gradients, in two processes against one: the mean of the weights, half
precision and its scale, recomputing, accumulation, compiling; and `train` itself, with everything, moved between one
process and two."""

import json
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.data import text
from anyformer.train import train
from anyformer.train.train import _sample
from tests.train import distributed_worker as worker
from tests.train.launched import close, files, launch, rows, same

torch.set_num_threads(1)
KINDS = ("ddp", "fsdp")
pytestmark = (
    pytest.mark.slow
)  # two processes are one, in full precision and for LoRA: test_distributed.py, test_tuning.py
FULL: dict[str, dict[str, Any]] = {
    "everything": {"ema": 0.8, "activation_checkpointing": ["blocks.*"], "accumulate": 5, "steps": 20},
    "ema": {"ema": 0.9, "steps": 8},
}
HALF: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16", "ema": 0.9, "accumulate": 2, "steps": 8},
    "fp16": {"precision": "fp16", "ema": 0.9, "activation_checkpointing": ["blocks.*"], "steps": 8},
}
RESUMED: dict[str, Any] = {"what": "dropped", "ema": 0.9, "precision": "fp16", "steps": 12, "save_every": 8}
RESUMED["activation_checkpointing"] = ["blocks.0"]


both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Of `train`: two sources by weight, in epochs that end within a step; workers, accumulation, a mean of weights."""
    home = tmp_path_factory.mktemp("data")
    words = text.read()
    for name, part in (("a.txt", words[:4000]), ("b.txt", words[50_000:52_000])):
        (home / name).write_text(part)
    given: dict[str, Any] = {"size": "tiny", "tokenizer": "bytes", "context": 16, "batch": 3, "accumulate": 2}
    given |= {"data": {str(home / "a.txt"): 0.7, str(home / "b.txt"): 0.3}, "order": "epochs", "workers": 2}
    given |= {"steps": 20, "save_every": 10, "eval_every": 7, "keep_last": 9, "ema": 0.98, "lr": 3e-3, "warmup": 2}
    return {**given, "min_lr_ratio": 1.0}  # a mean of weights that still move is not the last of them


@pytest.fixture(scope="module")
def alone(tmp_path_factory, options):
    folder = tmp_path_factory.mktemp("alone")
    for name, settings in {**FULL, **HALF}.items():
        worker.job(folder / name, "gpt", **settings)
    worker.heard(folder / "steep", "steep", precision="fp16")
    worker.command(folder / "train", **options)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory, alone, options):
    """All in one launch; then, in one process, what goes on from two."""
    folder = tmp_path_factory.mktemp("two")
    jobs: list[dict[str, Any]] = [{"what": "gpt", "parallel": "tp", "out": "tp-ema", **FULL["ema"]}]
    for kind in KINDS:
        common = {"what": "gpt", "parallel": kind}
        jobs += [{**common, "out": f"{kind}-{n}", **FULL.get(n, HALF.get(n, {}))} for n in ("everything", *HALF)]
        jobs.append({**common, "by": "heard", "what": "steep", "out": f"{kind}-steep", "precision": "fp16"})
        jobs.append({**common, **RESUMED, "out": f"{kind}-straight"})
        jobs.append({**jobs[-1], "out": f"{kind}-again", "resume": str(folder / f"{kind}-straight/step-000008")})
    middle, by = str(alone / "train/step-000010"), {"by": "command", **options}
    jobs.append({**by, "parallel": "fsdp", "out": "two"})
    jobs.append({**by, "parallel": "ddp", "out": "grown", "resume": middle})
    jobs.append({**by, "parallel": "diloco", "out": "diloco", "communication": {"every": 2}, "steps": 2})
    jobs.append({**by, "parallel": "diloco", "out": "refused", "resume": middle, "refused": True})
    jobs.append({**by, "batch": 1, "out": "few", "refused": True})
    launch(folder, 2, [{**job, "out": str(folder / job["out"])} for job in jobs])
    worker.command(folder / "shrunk", resume=str(folder / "two/step-000010"), **options)
    return folder


@pytest.mark.parametrize(("kind", "name"), [("ddp", "everything"), ("fsdp", "everything"), ("tp", "ema")])
def test_in_full_precision_two_processes_are_one(kind, name, alone, two):
    assert close(two / f"{kind}-{name}", alone / name)
    assert "ema/model.safetensors" in files(two / f"{kind}-{name}")


@both
@pytest.mark.parametrize("name", HALF)
def test_in_half_precision_two_processes_are_one_but_for_its_rounding(kind, name, alone, two):
    """Gradients of parts of a batch are rounded before they are added up, to 8 and 11 bits; weights whose gradient is
    nothing but rounding (the bias of keys) go where that leads."""
    ours, theirs, full = (rows(run) for run in (two / f"{kind}-{name}", alone / name, alone / "ema"))
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-5)  # before the first update
    assert ours[0]["loss"] != full[0]["loss"]  # it is half precision
    assert close(two / f"{kind}-{name}", alone / name, room={"bf16": 2.0**-10, "fp16": 2.0**-12}[name], weights=False)


@both
def test_an_overflow_in_one_process_skips_the_step_in_all(kind, alone, two):
    """Batch 9, of step 5, has a slope in the second process's rows alone that fp16 cannot hold."""
    said = [json.loads(file.read_text()) for file in sorted((two / f"{kind}-steep-said").iterdir())]
    said = [[line for line in each if line.startswith("step")] for each in said]  # a slow processor is told, too
    assert said == [["step 5: overflow in fp16, no weight was changed; the scale of the loss is now 32768"]] * 2
    skipped = [row["step"] for row in rows(two / f"{kind}-steep") if row["grad_norm"] is None]
    assert skipped == [5]
    assert close(two / f"{kind}-steep", alone / "steep", room=2.0**-10, weights=False)
    first, second = (worker.steep(9)["labels"] == 102).tensor_split(2)
    assert second.any() and not first.any()


@both
def test_straight_is_the_same_as_resumed_with_mean_and_scale(kind, two):
    assert same(two / f"{kind}-again", two / f"{kind}-straight")


@pytest.mark.slow
def test_compiled_processes_are_one_that_is_not(tmp_path):
    launch(tmp_path, 2, [{"what": "gpt", "compile": True, "steps": 6, "out": str(tmp_path / "two")}])
    worker.job(tmp_path / "alone", "gpt", steps=6)
    assert close(tmp_path / "two", tmp_path / "alone")


# ------------------------------------------------------------------------------------ `train`, with everything


def said(run, rank=0):
    return json.loads((run.with_name(f"{run.name}-said") / f"{rank}.json").read_text())


@pytest.mark.parametrize("run", ["two", "grown", "shrunk"])
def test_the_command_in_other_processes_has_the_same_data_in_the_same_order(run, alone, two):
    assert close(two / run, alone / "train")
    steps = [row["step"] for row in rows(two / run) if "loss" in row]
    assert steps == list(range(1 if run == "two" else 11, 21))
    found, wanted = said(two / run), said(alone / "train")
    assert found["bits"] == pytest.approx(wanted["bits"], rel=1e-5) and found["step"] == wanted["step"] == 20


@pytest.mark.parametrize("run", ["train", "two", "grown"])
def test_the_sample_is_written_by_what_was_measured(run, alone, two):
    """By the mean of the weights, also where processes hold parts of it."""
    folder = (alone if run == "train" else two) / run
    mean, plain = (af.load(folder / "step-000020" / part) for part in ("ema", ""))
    assert said(folder)["sample"] == _sample(mean, "The ", 0) != _sample(plain, "The ", 0)


def test_what_cannot_go_on_in_another_number_of_processes_is_refused_with_the_reason(two, options, tmp_path):
    for rank in (0, 1):
        assert "the checkpoint holds the weights of 1 processes" in said(two / "refused", rank)["refused"]
        assert "a batch of 1 rows cannot be shared by 2 processes" in said(two / "few", rank)["refused"]
    assert not [*two.glob("refused/step-*"), *two.glob("few/step-*")]
    with pytest.raises(ValueError, match="the checkpoint holds states of several processes"):
        train(out=tmp_path, quiet=True, resume=str(two / "diloco/step-000002"), **options)
