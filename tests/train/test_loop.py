"""The loop: exact resume, what may change, what is kept, what goes wrong, and every kind of model."""

import csv
import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import anyformer as af
from anyformer.train import Settings, checkpoint, fit, objectives

torch.set_num_threads(1)
QUICK = Settings(steps=12, lr=3e-3, warmup=3, accumulate=2, log_every=5, save_every=4, eval_every=3, keep_last=9)


def padded(number, batch=3, time=10):
    """A batch of rows of unequal length, which depends on its number alone."""
    draw = torch.Generator().manual_seed(number)
    ids = torch.randint(1, 128, (batch, time), generator=draw)
    lengths = torch.randint(2, time + 1, (batch, 1), generator=draw)
    mask = (torch.arange(time) < lengths).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": objectives.next_tokens(ids, mask)}


def gpt(seed=0, **changes):
    return af.build("gpt", "tiny", seed=seed, dropout=0.1, attention_dropout=0.1, **changes)


def losses(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]
    return [r for r in timeless if "loss" in r], [r for r in timeless if "held_out" in r]


def same(a, b):
    """Are all tensors of two checkpoints equal, bit for bit?"""
    for file in ("model.safetensors", "training.safetensors"):
        left, right = load_file(a / file), load_file(b / file)
        assert left.keys() == right.keys()
        for name in left:
            assert torch.equal(left[name], right[name]), (file, name)
    return True


def held_out(model):
    assert not model.training and not torch.is_grad_enabled()
    batch = padded(10_000)
    random.random(), np.random.rand(), torch.rand(1)  # a measure that draws must not change the run
    return float(objectives.causal_lm(model(batch["input_ids"], batch["attention_mask"]), batch["labels"], 10))


def interrupted(batches, *at):
    """The same batches; the process receives SIGINT before those numbers."""
    left = set(at)

    def give(number):
        if number in left:
            left.remove(number)
            os.kill(os.getpid(), signal.SIGINT)
        return batches(number)

    return give


# ------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("make", [gpt, lambda seed=0: af.build("mamba", "tiny", seed=seed)], ids=["gpt", "mamba"])
def test_straight_is_the_same_as_resumed_twice(tmp_path, make):
    def noisy(number):  # what a careless data set does
        return {**padded(number), "input_ids": (padded(number)["input_ids"] + random.randint(0, 3)) % 128}

    def run(folder, batches, resume=False):
        return fit(
            make(99 if resume else 0), batches, objectives.causal_lm, QUICK, folder, measure=held_out, resume=resume
        )

    straight = run(tmp_path / "a", noisy)
    stopped = run(tmp_path / "b", interrupted(noisy, 9))  # number 9 is in step 5
    assert stopped.stopped and stopped.step == 5
    again = run(tmp_path / "b", interrupted(noisy, 17), resume=True)
    assert again.stopped and again.step == 9
    done = run(tmp_path / "b", noisy, resume="auto")
    assert not done.stopped and done.step == straight.step == 12
    assert same(straight.checkpoint, done.checkpoint)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert (straight.loss, straight.held_out) == (done.loss, done.held_out)
    said = [json.loads((d.checkpoint / "training.json").read_text()) for d in (straight, done)]
    assert said[0] == said[1]


def test_iterable_of_batches_resumes_in_the_middle_of_a_round(tmp_path):
    items = [padded(i) for i in range(5)]
    settings = Settings(steps=9, warmup=0)
    straight = fit(gpt(), items, objectives.causal_lm, settings, tmp_path / "a")

    class Stops(list):
        def __iter__(self):
            for i, item in enumerate(super().__iter__()):
                if i == 3:
                    os.kill(os.getpid(), signal.SIGINT)
                yield item

    stopped = fit(gpt(), Stops(items), objectives.causal_lm, settings, tmp_path / "b")
    assert stopped.step == 4
    done = fit(gpt(7), items, objectives.causal_lm, settings, tmp_path / "b", resume=True)
    assert same(straight.checkpoint, done.checkpoint)


def test_accumulated_batches_are_one_large_batch(tmp_path):
    def large(number):
        return {k: torch.cat([padded(2 * number)[k], padded(2 * number + 1)[k]]) for k in padded(0)}

    one, two = af.build("gpt", "tiny", seed=0), af.build("gpt", "tiny", seed=0)
    fit(one, padded, objectives.causal_lm, Settings(steps=4, accumulate=2, warmup=0), tmp_path / "a")
    fit(two, large, objectives.causal_lm, Settings(steps=4, warmup=0), tmp_path / "b")
    first, second = losses(tmp_path / "a")[0], losses(tmp_path / "b")[0]
    assert [r["tokens"] for r in first] == [r["tokens"] for r in second]
    np.testing.assert_allclose([r["loss"] for r in first], [r["loss"] for r in second], rtol=1e-5)


def test_signal_in_the_last_step_does_not_leave_it_unmeasured(tmp_path):
    done = fit(gpt(), interrupted(padded, 23), objectives.causal_lm, QUICK, tmp_path, measure=held_out)
    assert done.step == 12 and not done.stopped and done.held_out is not None


def test_checkpoint_is_the_model(tmp_path):
    model = gpt()
    done = fit(model, padded, objectives.causal_lm, QUICK, tmp_path / "a")
    ids = padded(0)["input_ids"]
    torch.testing.assert_close(af.load(done.checkpoint)(ids).logits, model.eval()(ids).logits)


def test_torch_is_told_when_to_stop_only_while_training(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    fit(gpt(), padded, objectives.causal_lm, Settings(steps=1), tmp_path / "a")
    assert signal.getsignal(signal.SIGINT) is before


# ------------------------------------------------------------------------------------------- resuming


@pytest.fixture
def finished(tmp_path):
    fit(gpt(), padded, objectives.causal_lm, QUICK, tmp_path / "run", facts={"data": "mine"})
    return tmp_path / "run"


def resumed(folder, resume, settings=QUICK, facts=None, model=None):
    return fit(
        model or gpt(), padded, objectives.causal_lm, settings, folder, resume=resume, facts=facts or {"data": "mine"}
    )


def test_a_run_is_not_overwritten(finished):
    with pytest.raises(ValueError, match=r"holds a run, up to step-000012: it is not overwritten.*resume=true"):
        resumed(finished, False)


def test_other_files_are_not_written_among(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for resume in (False, "auto"):
        with pytest.raises(ValueError, match=r"holds other files \(thesis\.tex\)"):
            resumed(tmp_path, resume)


def test_nothing_to_resume_is_an_error_unless_auto(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        resumed(tmp_path / "new", True)
    with pytest.raises(ValueError, match="is no checkpoint and no run"):
        resumed(tmp_path / "new", str(tmp_path))
    assert resumed(tmp_path / "new", "auto").step == 12


def test_killed_before_the_first_checkpoint_begins_again_with_auto(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "lo')
    (tmp_path / ".step-000004.tmp").mkdir()
    assert resumed(tmp_path, "auto").step == 12
    assert [r["step"] for r in losses(tmp_path)[0]] == list(range(1, 13))
    assert not list(tmp_path.glob(".step-*"))


def test_finished_run_resumes_to_the_same_result(finished):
    assert resumed(finished, True).step == 12
    assert len(losses(finished)[0]) == 12


def test_other_settings_or_facts_are_refused(finished):
    with pytest.raises(ValueError, match=r"lr was 0\.003 and is now 0\.1"):
        resumed(finished, True, Settings(**{**vars(QUICK), "lr": 0.1}))
    with pytest.raises(ValueError, match=r"data was 'mine' and is now 'yours'"):
        resumed(finished, True, facts={"data": "yours"})


def test_other_model_is_refused(finished):
    with pytest.raises(ValueError, match="holds another model"):
        resumed(finished, True, model=gpt(depth=3))


def test_more_steps_go_on(finished):
    assert resumed(finished, True, Settings(**{**vars(QUICK), "steps": 14})).step == 14


def test_path_branches_off_into_another_folder(finished, tmp_path):
    with pytest.raises(ValueError, match="already continues to step-000012"):
        resumed(finished, str(finished / "step-000008"))
    branch = resumed(tmp_path / "branch", str(finished / "step-000008"))
    assert same(branch.checkpoint, finished / "step-000012")
    assert [r["step"] for r in losses(tmp_path / "branch")[0]] == [9, 10, 11, 12]


def test_rows_after_the_checkpoint_are_dropped_from_the_log(finished):
    with (finished / "log.jsonl").open("a") as log:
        log.write('{"step": 13, "loss": 1.0}\n{"step": 14, "lo')
    resumed(finished, True)
    rows = list(csv.DictReader((finished / "log.csv").open()))
    assert [int(row["step"]) for row in rows if row["loss"]] == list(range(1, 13))
    assert all(float(row["lr"]) > 0 and float(row["tokens_per_second"]) > 0 for row in rows if row["loss"])


def test_folder_in_use_is_refused(tmp_path):
    with checkpoint.Run(tmp_path / "a"), pytest.raises(ValueError, match="is being written by another process"):
        checkpoint.Run(tmp_path / "a")
    lock = checkpoint.Run(tmp_path / "a").lock
    assert lock is not None
    lock.release()


# ------------------------------------------------------------------------------------------- keeping


def test_newest_and_best_are_kept(tmp_path):
    values = iter([3.0, 1.0, 2.0, 2.5, 2.25, 2.25])
    settings = Settings(steps=12, save_every=2, eval_every=2, keep_last=2)
    fit(gpt(), padded, objectives.causal_lm, settings, tmp_path, measure=lambda m: next(values))
    assert [c.name for c in checkpoint.checkpoints(tmp_path)] == ["step-000004", "step-000010", "step-000012"]
    assert json.loads((tmp_path / "step-000012/training.json").read_text())["best"] == {"step": 4, "held_out": 1.0}


def test_checkpoint_is_there_before_the_evaluation_that_fails(tmp_path):
    def out_of_memory(model):
        raise MemoryError

    with pytest.raises(MemoryError):
        fit(gpt(), padded, objectives.causal_lm, QUICK, tmp_path, measure=out_of_memory)
    assert not checkpoint.checkpoints(tmp_path)  # step 3: no checkpoint is due
    settings = Settings(**{**vars(QUICK), "eval_every": 4})
    with pytest.raises(MemoryError):
        fit(gpt(), padded, objectives.causal_lm, settings, tmp_path, measure=out_of_memory, resume="auto")
    assert [c.name for c in checkpoint.checkpoints(tmp_path)] == ["step-000004"]


def test_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tmp_path):
    model = gpt()

    def broken(number):
        if number == 10:
            with torch.no_grad():
                model.embed.tokens.weight.fill_(float("nan"))
        return padded(number)

    with pytest.raises(FloatingPointError, match=r"step 6: loss nan.*Last good checkpoint: .*step-000004"):
        fit(model, broken, objectives.causal_lm, QUICK, tmp_path)
    assert [c.name for c in checkpoint.checkpoints(tmp_path)] == ["step-000004"]


# ----------------------------------------------------------------------------------------- other models


def classify(number):
    """Which half of the vocabulary do the tokens come from?"""
    draw = torch.Generator().manual_seed(number)
    labels = torch.randint(0, 2, (8,), generator=draw)
    ids = torch.randint(1, 60, (8, 12), generator=draw) + 60 * labels[:, None]
    lengths = torch.randint(3, 13, (8, 1), generator=draw)
    return {"input_ids": ids, "attention_mask": (torch.arange(12) < lengths).long(), "labels": labels}


def translate(number):
    """A row of one token becomes a row of the next one."""
    ids = torch.randint(2, 10, (8, 1), generator=torch.Generator().manual_seed(number)).expand(8, 5)
    start = torch.zeros(8, 1, dtype=torch.long)
    return {"input_ids": ids, "decoder_input_ids": torch.cat([start, ids[:, 1:] + 1], 1), "labels": ids + 1}


def hidden(number):
    """All tokens of a row are the same; every third one is hidden by id 1."""
    labels = torch.randint(2, 10, (8, 1), generator=torch.Generator().manual_seed(number)).expand(8, 12)
    masked = torch.arange(12).expand(8, -1) % 3 == 0
    return {"input_ids": labels.masked_fill(masked, 1), "labels": labels.masked_fill(~masked, -100)}


def bright(number):
    """Which half of the picture is bright?"""
    draw = torch.Generator().manual_seed(number)
    model = af.page("vit").sizes["tiny"]
    pixels, labels = torch.randn(8, 3, model.image, model.image, generator=draw), torch.arange(8) % 2
    pixels[labels == 0, :, :, : model.image // 2] += 3
    return {"pixel_values": pixels, "labels": labels}


@pytest.mark.parametrize(
    "model, batches, objective, chance",
    [
        (lambda: af.build("bert", "tiny", task="classify", seed=0), classify, objectives.classification, 0.69),
        (lambda: af.build("bert", "tiny", seed=0), hidden, objectives.masked_lm, 2.08),
        (lambda: af.build("vit", "tiny", seed=0), bright, objectives.classification, 0.69),
        (lambda: af.build("t5", "tiny", seed=0), translate, objectives.causal_lm, 2.08),
    ],
    ids=["bert classify", "bert masked", "vit", "t5"],
)
def test_every_kind_of_model_learns_from_batches_of_ones_own(tmp_path, model, batches, objective, chance):
    settings = Settings(steps=150, lr=1e-2, warmup=5, save_every=75)
    done = fit(model(), batches, objective, settings, tmp_path)
    assert done.loss < 0.5 * chance
    assert af.load(done.checkpoint) is not None


# --------------------------------------------------------------------------------------------- mistakes


def test_labels_that_are_the_inputs_are_refused(tmp_path):
    def wrong(number):
        return {"input_ids": padded(number)["input_ids"], "labels": padded(number)["input_ids"].clone()}

    with pytest.raises(ValueError, match="labels are the inputs themselves"):
        fit(gpt(), wrong, objectives.causal_lm, QUICK, tmp_path)


def test_batch_without_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a batch needs labels; it has input_ids"):
        fit(gpt(), [{"input_ids": torch.ones(2, 3, dtype=torch.long)}], objectives.causal_lm, QUICK, tmp_path)


@pytest.mark.parametrize(
    "option, value, said",
    [("steps", 0, "at least 1"), ("lr", 0.0, "above 0"), ("grad_clip", 0.0, "above 0"), ("warmup", -1, "at least 0"),
     ("accumulate", 0, "at least 1"), ("keep_last", 0, "at least 1"), ("seed", -3, "at least 0"),
     ("lr", float("nan"), "above 0")],
)  # fmt: skip
def test_settings_are_checked(option, value, said):
    with pytest.raises(ValueError, match=f"{option} must be {said}"):
        Settings(**{"steps": 5, option: value})


def test_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another out"):
        fit(gpt(), padded, objectives.causal_lm, QUICK, tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_is_write_protected_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="choose another out"):
        fit(gpt(), padded, objectives.causal_lm, QUICK, tmp_path / "run")
