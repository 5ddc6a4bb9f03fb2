"""N steps = k + resume + (N - k), bit for bit, with everything that has a state; and runs that end early."""

import dataclasses
import json
import os
import random
import signal

import pytest
import torch
from safetensors.torch import load_file

import anyformer as af
from anyformer.train import Settings, fit, objectives

torch.set_num_threads(1)
BASE = Settings(steps=10, lr=3e-3, warmup=2, accumulate=2, log_every=3, save_every=4, eval_every=3, keep_last=9)


def batches(number):
    """Rows of unequal length that depend on the number, and a draw that a careless data set makes."""
    draw = torch.Generator().manual_seed(number)
    ids = (torch.randint(1, 125, (3, 10), generator=draw) + random.randint(0, 2)).clamp(max=127)
    mask = (torch.arange(10) < torch.randint(2, 11, (3, 1), generator=draw)).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": objectives.next_tokens(ids, mask)}


def gpt(seed=0):
    return af.build("gpt", "tiny", seed=seed, dropout=0.1, attention_dropout=0.1)


def measure(model):
    batch = {k: v for k, v in batches(10_000).items() if k != "labels"}
    return float(model(**batch).logits.square().mean())


def run(folder, settings, stop=(), resume=False, seed=0, make=gpt):
    left = set(stop)

    def interrupted(number):
        if number in left:
            left.remove(number)
            os.kill(os.getpid(), signal.SIGINT)
        return batches(number)

    return fit(make(seed), interrupted, objectives.causal_lm, settings, folder, measure=measure, resume=resume)


def same(a, b):
    files = sorted(str(f.relative_to(a)) for f in a.rglob("*.safetensors"))
    assert files == sorted(str(f.relative_to(b)) for f in b.rglob("*.safetensors"))
    for file in files:
        left, right = load_file(a / file), load_file(b / file)
        assert left.keys() == right.keys()
        for name in left:
            assert torch.equal(left[name], right[name]), (file, name)
    assert (a / "training.json").read_text() == (b / "training.json").read_text()
    return files


VARIANTS = {
    "ema": {"ema": 0.9},
    "muon": {"optimizer": "muon", "schedule": "wsd"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "ema": 0.5},
    "recompute": {"activation_checkpointing": ("blocks.*",)},
    "lr_multipliers": {"lr_multipliers": {"embed.*": 0.1, "blocks.1.*": 0.5}, "schedule": "linear"},
    "patience": {"patience": 100, "schedule": "constant"},
    "statistics": {"statistics_every": 2, "schedule": "inverse_sqrt"},
    "aware": {"aware": 4, "ema": 0.5},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_straight_is_the_same_as_resumed_twice(tmp_path, changes):
    settings = dataclasses.replace(BASE, **changes)
    straight = run(tmp_path / "a", settings)
    assert run(tmp_path / "b", settings, stop=[7]).step == 4  # batch 7 is the second one of step 4
    assert run(tmp_path / "b", settings, stop=[13], resume=True, seed=5).step == 7
    done = run(tmp_path / "b", settings, resume="auto", seed=6)
    assert done.step == straight.step == 10
    files = same(straight.checkpoint, done.checkpoint)
    assert ("ema/model.safetensors" in files) == bool(settings.ema)
    assert (straight.loss, straight.held_out) == (done.loss, done.held_out)
    rows = [[json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in "ab"]
    for row in rows[0] + rows[1]:
        row.pop("tokens_per_second", None)
    assert rows[0] == rows[1]
    if settings.statistics_every:
        sizes = [(tmp_path / n / "statistics.jsonl").read_text() for n in "ab"]
        assert sizes[0] == sizes[1] and len(sizes[0].splitlines()) == 5


def test_same_run_twice_is_the_same(tmp_path):
    settings = dataclasses.replace(BASE, optimizer="muon", ema=0.9, precision="fp16")
    same(run(tmp_path / "a", settings).checkpoint, run(tmp_path / "b", settings).checkpoint)


def test_recomputing_and_listening_change_no_bit(tmp_path):
    plain = run(tmp_path / "a", BASE)
    for name, changes in (("b", {"activation_checkpointing": ("blocks.*",)}), ("c", {"statistics_every": 1})):
        other = run(tmp_path / name, dataclasses.replace(BASE, **changes))
        for file in ("model.safetensors", "training.safetensors"):
            left, right = load_file(plain.checkpoint / file), load_file(other.checkpoint / file)
            assert all(torch.equal(left[k], right[k]) for k in left)


# --------------------------------------------------------------------------------------- the mean of the weights


def test_mean_of_the_weights_is_the_formula_and_is_what_is_evaluated(tmp_path):
    model, seen, mean = gpt(), [], None
    settings = Settings(steps=6, warmup=0, ema=0.6, eval_every=1, save_every=1, keep_last=9)

    def note(model):
        seen.append(model.blocks[0].mixer.q.weight.detach().clone())
        return 0.0

    first = model.blocks[0].mixer.q.weight.detach().clone()
    done = fit(model, batches, objectives.causal_lm, settings, tmp_path, measure=note)
    mean = first
    for step in range(1, 7):
        weights = af.load(tmp_path / f"step-{step:06d}").blocks[0].mixer.q.weight.detach()
        decay = min(0.6, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weights
        torch.testing.assert_close(seen[step - 1], mean)
    assert torch.equal(af.load(done.checkpoint / "ema").blocks[0].mixer.q.weight, seen[-1])
    assert not torch.equal(seen[-1], model.blocks[0].mixer.q.weight)
    assert torch.equal(af.load(done.checkpoint).blocks[0].mixer.q.weight, model.blocks[0].mixer.q.weight)


# ------------------------------------------------------------------------------------------------------ patience


def test_patience_ends_the_run_and_keeps_the_best(tmp_path):
    values = iter([3.0, 1.0, 2.0, 2.5, 9.0])
    settings = Settings(steps=100, eval_every=2, patience=2, keep_last=1)
    done = fit(gpt(), batches, objectives.causal_lm, settings, tmp_path, measure=lambda m: next(values))
    assert (done.step, done.early, done.stopped) == (8, True, False)
    assert done.best == {"step": 4, "held_out": 1.0}
    assert sorted(f.name for f in tmp_path.glob("step-*")) == ["step-000004", "step-000008"]
    values = iter([2.5, 0.5, 9.0, 9.0])
    more = dataclasses.replace(settings, patience=3)  # resumed with more of it, the run goes on
    done = fit(gpt(), batches, objectives.causal_lm, more, tmp_path, measure=lambda m: next(values, 9.0), resume=True)
    assert (done.step, done.early, done.best) == (16, True, {"step": 10, "held_out": 0.5})


@pytest.mark.parametrize(
    "options, said",
    [
        ({"patience": 2}, "patience=2 counts evaluations, and eval_every=0"),
        ({"compile": True, "statistics_every": 5}, "choose one"),
        ({"optimizer": "adam"}, "optimizer must be one of 'adamw', 'muon'; got 'adam'"),
        ({"schedule": "cosinus"}, "schedule must be one of 'cosine', 'linear'"),
        ({"precision": "half"}, "precision must be one of 'fp32', 'bf16', 'fp16'"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be at least 0 and below 1"),
        ({"lr_multipliers": {"embed.*": 0.0}}, r"embed\.\* must be above 0"),
        ({"lr": float("inf")}, "lr must be a finite number"),
        ({"lr": float("nan")}, "lr must be above 0"),
    ],
    ids=str,
)
def test_contradictions_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        Settings(steps=1, **options)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"lr_multipliers": {"block.*": 0.5}}, r"lr_multipliers: no trained parameter matches 'block\.\*'"),
        ({"activation_checkpointing": ("layers.*",)}, r"has a path that matches 'layers\.\*'"),
    ],
    ids=str,
)
def test_paths_that_lead_nowhere_are_named(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        run(tmp_path, Settings(steps=1, **options))


def test_patience_without_a_measure_is_named(tmp_path):
    with pytest.raises(ValueError, match="need measure"):
        fit(gpt(), batches, objectives.causal_lm, Settings(4, patience=1, eval_every=1), tmp_path)


def test_resume_is_never_confused_with_first_weights(tmp_path):
    """A start from a checkpoint's weights is a new run: step 0, no moments. A resume takes all of it, or refuses."""
    first = run(tmp_path / "a", Settings(steps=4, warmup=0))
    again = fit(af.load(first.checkpoint), batches, objectives.causal_lm, Settings(steps=4, warmup=0), tmp_path / "b")
    assert again.step == 4
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert not torch.equal(
        load_file(again.checkpoint / "model.safetensors")["transformer.wte.weight"],
        load_file(first.checkpoint / "model.safetensors")["transformer.wte.weight"],
    )
    with pytest.raises(ValueError, match=r"ema was 0\.0 and is now 0\.9"):
        run(tmp_path / "a", Settings(steps=9, warmup=0, ema=0.9), resume=True)
    with pytest.raises(ValueError, match="optimizer was 'adamw' and is now 'muon'"):
        run(tmp_path / "a", Settings(steps=9, warmup=0, optimizer="muon"), resume=True)


def test_no_pickle_is_written(tmp_path):
    run(tmp_path, dataclasses.replace(BASE, optimizer="muon", ema=0.9, precision="fp16"))
    kinds = {f.suffix for f in tmp_path.rglob("*") if f.is_file() and f.name != ".lock"}
    assert kinds == {".json", ".jsonl", ".csv", ".safetensors"}
