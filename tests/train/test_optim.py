"""Schedules against their formulas; Muon; factors of the learning rate; half precision; what is said of a bad step."""

import dataclasses
import itertools
import json
import math
import os
from functools import partial

import pytest
import torch

import anyformer as af
from anyformer.train import Settings, diagnostics, fit, objectives, optim, precision
from anyformer.train.checkpoint import Run
from anyformer.train.loggers import Observer
from anyformer.train.loop import Loop
from anyformer.train.schedule import SCHEDULES, rate

torch.set_num_threads(1)


def batches(number):
    ids = torch.randint(1, 128, (4, 12), generator=torch.Generator().manual_seed(number))
    return {"input_ids": ids, "labels": objectives.next_tokens(ids)}


class Heard(Observer):
    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)


def heard(model, give, settings, folder):
    """What a run said, and how it ended."""
    watch = Heard()
    with Run(folder) as held:
        done = Loop(model, give, objectives.causal_lm, settings, held, None, {}, watch).run()
    return watch.said, done


# ------------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_rise_fall_and_end(name):
    rates = [rate(name, step, 100, 10, 0.1) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3]) and rates[9] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[9:])) and min(rates) >= 0.1 - 1e-12
    assert rate(name, 2, 3, 10, 0.1) == pytest.approx(0.3)  # a run that ends inside its warm-up
    end = {"constant": 1.0, "inverse_sqrt": math.sqrt(10 / 100)}.get(name, 0.1)
    assert rates[-1] == pytest.approx(end)
    middle = {
        "cosine": 0.1 + 0.9 * (1 + math.cos(math.pi * 44 / 89)) / 2,
        "linear": 1 - 0.9 * 44 / 89,
        "wsd": 1.0,
        "inverse_sqrt": math.sqrt(10 / 55),
        "constant": 1.0,
    }
    assert rates[54] == pytest.approx(middle[name])
    assert name != "wsd" or rates[90] == pytest.approx(1 - 0.9 * (80 / 89 - 0.8) / 0.2)


# ------------------------------------------------------------------------------------------------------ optimisers


@pytest.mark.parametrize("name", af.names())
def test_muon_gets_hidden_matrices_and_adamw_the_rest(name):
    model = af.build(name, "tiny")
    if name == "encodec":
        with pytest.raises(ValueError, match="muon is for linear maps between hidden layers, and this model has none"):
            optim.make(model, Settings(1, optimizer="muon"))
        return
    paths = {id(p): path for path, p in model.named_parameters()}
    adamw, muon = optim.make(model, Settings(1, optimizer="muon")).parts
    theirs = {paths[id(p)] for g in muon.param_groups for p in g["params"]}
    others = {paths[id(p)] for g in adamw.param_groups for p in g["params"]}
    assert theirs | others == set(paths.values()) and not theirs & others
    assert theirs and all(p.endswith(".weight") and "head" not in p and "embed" not in p for p in theirs)


def test_an_update_of_muon_is_an_orthogonal_matrix_of_the_size_of_adamws():
    model = af.build("gpt", "tiny", seed=0)
    weight = model.blocks[0].ffn.up.weight
    before = weight.detach().clone()
    optimizer = optim.make(model, Settings(1, optimizer="muon", weight_decay=0.0))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    optimizer.rate(0.01)
    optimizer.step()
    change = (weight - before).detach() / 0.01  # (128, 32)
    values = torch.linalg.svdvals(change) / (0.2 * math.sqrt(128))
    assert values.min() > 0.6 and values.max() < 1.3  # five Newton-Schulz steps do not go all the way
    assert diagnostics.rms(change) == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_both_learn(name, tmp_path):
    settings = Settings(steps=40, lr=5e-3, warmup=2, optimizer=name)
    done = fit(af.build("llama", "tiny", seed=0), lambda n: batches(n % 2), objectives.causal_lm, settings, tmp_path)
    assert done.loss < 0.6 * math.log(128)


def test_factors_change_the_step_and_not_the_decay():
    def change(rates, decay):
        model = af.build("gpt", "tiny", seed=0)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer = optim.make(model, Settings(1, lr_multipliers=rates, weight_decay=decay))
        for p in model.parameters():
            p.grad = torch.ones_like(p) if not decay else torch.zeros_like(p)
        optimizer.rate(0.01)
        optimizer.step()
        return {n: (p.detach() - before[n]).abs().mean().item() for n, p in model.named_parameters()}

    plain, other = change({}, 0.0), change({"blocks.*": 0.5, "blocks.1.ffn.up.weight": 0.25}, 0.0)
    for name in plain:
        factor = 0.25 if name == "blocks.1.ffn.up.weight" else 0.5 if name.startswith("blocks.") else 1.0
        assert other[name] == pytest.approx(factor * plain[name], rel=1e-4)
    plain, other = change({}, 0.1), change({"blocks.*": 0.5}, 0.1)
    assert plain["blocks.0.ffn.up.weight"] > 0 and other == pytest.approx(plain, rel=1e-4)


# ------------------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_is_near_float32_and_keeps_float32_weights(name, tmp_path):
    losses = []
    for kind in ("fp32", name):
        model = af.build("gpt", "tiny", seed=0)
        seen: set[torch.dtype] = set()
        hook = model.blocks[0].ffn.up.register_forward_hook(lambda m, i, o, seen=seen: seen.add(o.dtype))
        done = fit(model, batches, objectives.causal_lm, Settings(10, warmup=2, precision=kind), tmp_path / kind)
        hook.remove()
        assert seen == {"fp32": {torch.float32}, "bf16": {torch.bfloat16}, "fp16": {torch.float16}}[kind]
        assert all(p.dtype == torch.float32 for p in model.parameters())
        losses.append(done.loss)
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_overflow_in_fp16_skips_the_step_and_says_so(tmp_path):
    settings = Settings(steps=4, warmup=0, precision="fp16", save_every=1, keep_last=9)

    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * 1e30

    steep: list[int] = []
    model = af.build("gpt", "tiny", seed=0)
    model.blocks[0].register_forward_hook(lambda m, i, o: Steep.apply(o) if steep else None)

    def give(number):
        steep[:] = [1] if number == 1 else []
        return batches(number)

    said, done = heard(model, give, settings, tmp_path)
    said = [line for line in said if line.startswith("step")]  # a slow processor is told, too
    assert said == ["step 2: overflow in fp16, no weight was changed; the scale of the loss is now 32768"]
    weights = [af.load(tmp_path / f"step-{i:06d}").state_dict() for i in (1, 2, 3)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not torch.equal(weights[1]["blocks.0.mixer.q.weight"], weights[2]["blocks.0.mixer.q.weight"])
    assert done.step == 4 and math.isfinite(done.loss)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["grad_norm"] is None for row in rows] == [False, True, False, False]
    scales = [json.loads((tmp_path / f"step-{i:06d}/training.json").read_text())["scale"] for i in (1, 2, 4)]
    assert [s["value"] for s in scales] == [65536.0, 32768.0, 32768.0] and [s["good"] for s in scales] == [1, 0, 2]


def test_scale_doubles_after_patience_and_gives_up():
    scale = precision.Scale(4.0, patience=3)
    for _ in range(3):
        scale.learn(True)
    assert (scale.value, scale.good) == (8.0, 0)
    scale.learn(False)
    assert (scale.value, scale.good) == (4.0, 0)
    with pytest.raises(FloatingPointError, match="use precision bf16 or fp32"):
        for _ in range(40):
            scale.learn(False)


def test_the_scale_is_that_of_pytorchs_grad_scaler():
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], lr=1.0)
    theirs, ours = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3), precision.Scale(patience=3)
    draw = torch.Generator().manual_seed(0)
    for step in range(60):
        finite = bool(torch.rand((), generator=draw) > 0.15)
        p.grad = theirs.scale(torch.ones(3)) * (1.0 if finite else math.inf)
        mine = torch.nn.Parameter(torch.zeros(3))
        mine.grad = p.grad.clone()
        ours.undo([mine])
        before = p.detach().clone()
        theirs.step(optimizer)
        assert torch.equal(before, p) != finite and (not finite or torch.equal(mine.grad, p.grad)), step
        theirs.update()
        ours.learn(finite)
        assert ours.value == theirs.get_scale(), step


def test_recompute_keeps_less(tmp_path):
    def kept(*patterns):
        model = af.build("gpt", "tiny", seed=0, depth=4)
        if patterns:
            assert af.core.recompute.recompute(model, *patterns)
        count = [0]

        def keep(t):
            count[0] += t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            model(batches(0)["input_ids"]).logits.sum()
        return count[0]

    everything, half, none = kept(), kept("blocks.::2"), kept("blocks.*")
    assert none < half < everything and none < 0.5 * everything


def test_compile_trains_the_same_or_says_what_is_missing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda f: (_ for _ in ()).throw(RuntimeError("no g++")))
        with pytest.raises(ValueError, match=r"no working compiler here \(no g"):
            fit(af.build("gpt", "tiny"), batches, objectives.causal_lm, Settings(1, compile=True), tmp_path / "no")


@pytest.mark.slow
def test_compiled_run_is_the_plain_run(tmp_path):
    losses = []
    for compiled in (False, True):
        settings = Settings(4, warmup=0, compile=compiled)
        done = fit(af.build("gpt", "tiny", seed=0), batches, objectives.causal_lm, settings, tmp_path / str(compiled))
        losses.append(done.loss)
    torch._dynamo.reset()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ------------------------------------------------------------------------------------------- what is said of a bad step


def broken(model, path, kind):
    """The part at `path` gives NaN (forward) or passes NaN back (backward) from batch 3 on."""

    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * float("nan") if kind == "forward" else x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * float("nan")

    on: list[int] = []
    model.get_submodule(path).register_forward_hook(lambda m, i, o: Bad.apply(o) if on else None)

    def give(number):
        on[:] = [1] if number >= 3 else []
        return batches(number)

    return give


@pytest.mark.parametrize(
    "kind, said",
    [
        ("forward", r"step 4: .*the first part whose output is not finite is blocks\.1\.ffn\.up\."),
        ("backward", r"backward down to blocks\.1\.ffn\.up, which returns"),
    ],
)
def test_nan_names_the_first_part(kind, said, tmp_path):
    model = af.build("gpt", "tiny", seed=0)
    with pytest.raises(FloatingPointError, match=said):
        fit(model, broken(model, "blocks.1.ffn.up", kind), objectives.causal_lm, Settings(9, save_every=2), tmp_path)
    assert all(p.isfinite().all() for p in model.parameters())  # the step never reached the weights


def test_nan_in_data_is_named(tmp_path):
    size = af.page("vit").sizes["tiny"].image

    def images(number, bad):
        pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(number))
        if number == bad:
            pixels[1, 0, 3, 3] = float("nan")
        return {"pixel_values": pixels, "labels": torch.tensor([0, 1])}

    model = af.build("vit", "tiny", seed=0)
    for bad, said in (
        (0, "pixel_values hold NaN or infinity before the first step"),
        (2, "step 3: .*the batch's pixel_v"),
    ):
        kind = ValueError if bad == 0 else FloatingPointError
        with pytest.raises(kind, match=said):
            fit(model, partial(images, bad=bad), objectives.classification, Settings(4), tmp_path / str(bad))


def test_labels_out_of_range_are_named(tmp_path):
    def give(number):
        batch = batches(number)
        return {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == batch["labels"][0, 3], 128)}

    with pytest.raises(ValueError, match="label 128 is outside the head's classes: 0 to 127"):
        fit(af.build("gpt", "tiny"), give, objectives.causal_lm, Settings(2), tmp_path)


def test_spike_names_the_first_part_that_grew_and_changes_nothing(tmp_path):
    def make():
        model = af.build("gpt", "tiny", seed=0, dropout=0.1, tied=False)
        with torch.no_grad():
            model.embed.tokens.weight[127] = 1e3  # a token that is rare
        return model

    def give(number):
        ids = batches(number)["input_ids"].clamp(max=126)
        if number == 30:
            ids[:, ::2] = 127
        return {"input_ids": ids, "labels": objectives.next_tokens(ids)}

    settings = Settings(steps=33, lr=1e-3, warmup=2)
    said, done = heard(make(), give, settings, tmp_path / "a")
    assert len(said) == 1 and said[0].startswith("step 31: a spike: ")
    assert "the first part that grew is embed.tokens, from 0.0205 to 707" in said[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnostics.Spikes, "notice", lambda self, **now: "")
        deaf = fit(make(), give, objectives.causal_lm, settings, tmp_path / "b")
    assert deaf.loss == done.loss


def test_statistics_have_every_part(tmp_path):
    model = af.build("gpt", "tiny", seed=0)
    fit(model, batches, objectives.causal_lm, Settings(4, statistics_every=2), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "statistics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    names = {n for n, _ in model.named_parameters()}
    assert rows[0]["gradients"].keys() == rows[0]["weights"].keys() == names
    assert {"embed.tokens", "blocks.0.mixer.q", "blocks.1", "norm", "head"} <= rows[0]["activations"].keys()
    assert rows[0]["weights"]["norm.weight"] == pytest.approx(1.0, rel=1e-2)


def test_environment_is_written(tmp_path):
    fit(af.build("gpt", "tiny"), batches, objectives.causal_lm, Settings(1), tmp_path)
    said = json.loads((tmp_path / "environment.json").read_text())
    assert said["threads"] == torch.get_num_threads() and said["cores"] == os.cpu_count()
    assert said["packages"]["torch"].startswith(torch.__version__.partition("+")[0]) and "git" in said


def test_settings_of_an_older_run_are_those_of_today(tmp_path):
    first = fit(af.build("gpt", "tiny"), batches, objectives.causal_lm, Settings(2), tmp_path)
    file = first.checkpoint / "training.json"
    said = json.loads(file.read_text())
    del said["settings"]["ema"], said["settings"]["optimizer"], said["scale"]
    file.write_text(json.dumps(said))
    more = dataclasses.replace(Settings(3))
    assert fit(af.build("gpt", "tiny"), batches, objectives.causal_lm, more, tmp_path, resume=True).step == 3
