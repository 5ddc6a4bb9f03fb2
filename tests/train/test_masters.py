"""Master weights: float32 while they learn, written in the type of their file, and a run goes on bit for bit."""

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.parts import TopK
from anyformer.train import Settings, checkpoint, finetune, fit, lora, master_weights, memory, objectives, optim, train
from tests.later import later

torch.set_num_threads(1)
tune: Any = finetune  # called with options from tables
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
OPTIONS: dict[str, Any] = {"steps": 6, "batch": 4, "context": 24, "lr": 1e-3, "quiet": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The same small decoder and encoder in files of three types, and examples for each."""
    folder = tmp_path_factory.mktemp("half")
    pairs = [{"prompt": f"say {a} and {b}", "response": f"{b} {a}"} for a in "abcd" for b in "klmn"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    (folder / "rows.csv").write_text("text,label\n" + "it is good,yes\nit is bad,no\n" * 12)
    words = Tokenizer.train_bpe([" ".join(p["prompt"] + p["response"] for p in pairs) + " it is good bad yes no"], 300)
    for page in ("llama", "bert"):
        for name in ("float32", *HALF):
            made = af.build(page, "tiny", seed=0, vocab=300).bfloat16()  # the same numbers in all files
            made.tokenizer = words
            made.to(getattr(torch, name)).save(folder / f"{page}-{name}")
    return folder


def types(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {str(file.get_tensor(name).dtype)[6:] for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def learned(place, tmp_path_factory):
    """What the float32 file learns by each method."""
    out = tmp_path_factory.mktemp("float32")
    return {
        m: tune(str(place / "llama-float32"), place / "pairs.jsonl", m, out=out / m, **OPTIONS)
        for m in ("full", "lora", "dora", "qlora")
    }


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("method", ["full", "lora", *later("dora", "qlora")])
def test_a_file_in_half_precision_learns_as_one_in_float32(method, kind, place, learned, tmp_path):
    done = tune(str(place / f"llama-{kind}"), place / "pairs.jsonl", method, out=tmp_path / "run", **OPTIONS)
    wanted = learned[method]
    gain = wanted.before - wanted.after
    assert gain > 0.005
    # below adapters, activations are in the base's type: of bfloat16, they have 8 bits
    assert abs(done.before - done.after - gain) < (0.02 if method == "full" else 0.2) * gain
    assert types(done.folder) == {kind} == {str(p.dtype)[6:] for p in done.model.parameters()}
    assert json.loads((done.folder / "config.json").read_text())["dtype"] == kind


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_new_head_learns_in_float32_and_is_written_as_the_file(method, place, tmp_path):
    options = {**OPTIONS, "steps": 2, "context": None}
    done = tune(str(place / "bert-bfloat16"), place / "rows.csv", method, out=tmp_path / "run", **options)
    assert types(done.folder) == {"bfloat16"} and done.task == "classify"
    with safe_open(done.checkpoint / "training.safetensors", "pt") as file:
        assert all(file.get_tensor(name).dtype != torch.bfloat16 for name in file.keys())  # noqa: SIM118


def test_training_from_a_directory_learns_in_float32(place, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("say a and k. say b and l. " * 60)
    for name in ("float32", "bfloat16"):
        options: dict[str, Any] = {"steps": 4, "batch": 2, "context": 16, "lr": 1e-4, "warmup": 0, "prompt": "say"}
        train(str(place / f"llama-{name}"), data=tmp_path / "a.txt", out=tmp_path / name, **options)
    losses = [
        [
            row["loss"]
            for row in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
            if "loss" in row
        ]
        for name in ("float32", "bfloat16")
    ]
    assert losses[0] == losses[1]
    said = capsys.readouterr().out
    assert said.count("weights: bfloat16 in the file, float32 while they learn, written as bfloat16") == 1


def batches(number):
    ids = torch.randint(0, 97, (4, 9), generator=torch.Generator().manual_seed(number))
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


def stored_as(kind):
    """A tiny decoder in bfloat16, float16, or mixed: norms in float32, matrices in bfloat16."""
    model = af.build("llama", "tiny", seed=0)
    for name, p in model.named_parameters():
        p.data = p.data if kind == "mixed" and "norm" in name else p.data.to(HALF.get(kind, torch.bfloat16))
    return model


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("kind", [*HALF, "mixed"])
def test_a_run_of_half_precision_goes_on_bit_for_bit(kind, ema, tmp_path):
    settings: dict[str, Any] = {"warmup": 1, "schedule": "constant", "ema": ema, "optimizer": "adamw"}
    models = [stored_as(kind) for _ in range(3)]
    before = {n: p.dtype for n, p in models[0].named_parameters()}
    fit(models[0], batches, objectives.causal_lm, Settings(4, **settings), tmp_path / "whole")
    fit(models[1], batches, objectives.causal_lm, Settings(2, **settings), tmp_path / "parts")
    fit(models[2], batches, objectives.causal_lm, Settings(4, **settings), tmp_path / "parts", resume=True)
    assert before == {n: p.dtype for n, p in models[0].named_parameters()}
    for file in ("training.safetensors", "model.safetensors", *(["ema/model.safetensors"] if ema else [])):
        with (
            safe_open(tmp_path / "whole/step-000004" / file, "pt") as a,
            safe_open(tmp_path / "parts/step-000004" / file, "pt") as b,
        ):
            assert a.keys() == b.keys()
            for name in a.keys():  # noqa: SIM118
                assert torch.equal(a.get_tensor(name), b.get_tensor(name)), name
                assert not file.startswith("training") or a.get_tensor(name).dtype not in HALF.values()


def test_small_updates_are_not_lost(tmp_path):
    """A rate of 1e-6: in bfloat16 no weight would move at all."""
    model = stored_as("bfloat16")
    before = {n: p.clone().float() for n, p in model.named_parameters() if "blocks" in n}  # tables have unseen rows
    fit(model, batches, objectives.causal_lm, Settings(2, lr=1e-6, warmup=0, weight_decay=0.0), tmp_path / "run")
    _, tensors = checkpoint.read(tmp_path / "run/step-000002")
    moved = [(tensors[f"master.{n}"] != p).double().mean() for n, p in before.items()]
    assert min(moved) > 0.5


def test_a_mean_of_weights_moves(tmp_path):
    model = stored_as("bfloat16")
    fit(model, batches, objectives.causal_lm, Settings(8, lr=1e-4, warmup=0, ema=0.999), tmp_path / "run")
    _, tensors = checkpoint.read(tmp_path / "run/step-000008")
    first = dict(stored_as("bfloat16").named_parameters())
    name = "blocks.0.mixer.q.weight"
    went = (tensors[f"mean.{name}"] - first[name]).norm() / (tensors[f"master.{name}"] - first[name]).norm()
    assert 0.1 < went < 1


@pytest.mark.parametrize("adapters", [False, True])
def test_predicted_memory_knows_the_type_of_what_learns(adapters):
    settings, found = Settings(1), {}
    for name in ("float32", "bfloat16"):
        model = af.build("llama", "tiny", seed=0).to(getattr(torch, name))
        if adapters:
            lora.add(model, targets=("**.blocks.**",))
        found[name] = memory.estimate(model, batches(0), objectives.causal_lm, settings)
        assert all(p.dtype == getattr(torch, name) for n, p in model.named_parameters() if "lora" not in n)
    assert found["bfloat16"].gradients == found["float32"].gradients
    assert found["bfloat16"].optimizer == found["float32"].optimizer
    assert (found["bfloat16"].weights < found["float32"].weights) == adapters


def test_a_rehearsal_leaves_the_types_and_the_forward_passes():
    model = stored_as("bfloat16")
    before = {n: p.clone() for n, p in model.named_parameters()}
    memory.dry_run(model, batches(0), objectives.causal_lm, Settings(1, activation_checkpointing=("blocks.*",)))
    assert all(torch.equal(p, before[n]) and p.dtype == torch.bfloat16 for n, p in model.named_parameters())
    assert not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize(("precision", "kind", "stays"), [
    ("fp32", "bfloat16", True), ("fp32", "float16", False), ("bf16", "bfloat16", True), ("bf16", "float16", False),
    ("fp16", "float16", True), ("fp16", "bfloat16", False),
])  # fmt: skip
def test_a_frozen_base_stays_where_its_gradients_survive(precision, kind, stays):
    model = af.build("llama", "tiny", seed=0).to(HALF[kind])
    lora.add(model, targets=("**.blocks.**",))
    found = master_weights.to_float32(model, precision)
    assert (found == {}) == stays
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    optim.make(model, Settings(1))
    objectives.causal_lm(model(batches(0)["input_ids"]), batches(0)["labels"], 1.0).backward()


def test_double_precision_stays():
    model = af.build("gpt", "tiny", seed=0).double()
    assert master_weights.to_float32(model) == {} and next(model.parameters()).dtype == torch.float64


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("adapted", [False, True])
def test_a_router_of_half_precision_chooses_as_in_float32(kind, adapted):
    recipe = af.recipe("mixtral", "tiny").but({"blocks.*.ffn.router": TopK.of(experts=32, top=2)})
    model = af.build(recipe, seed=0).to(HALF[kind]).eval()
    if adapted:
        lora.add(model, targets=("**.router.proj",))
    router = model.blocks[0].ffn.router
    x = torch.randn(4, 64, router.proj.weight.shape[1], generator=torch.Generator().manual_seed(0)).to(HALF[kind])
    assert torch.equal(router.logits(x, Flow(torch.arange(64))), F.linear(x.float(), router.proj.weight.float()))


def test_what_half_precision_costs_here_is_told(monkeypatch):
    """The message is a measured factor; where half precision gains, there is none."""
    from anyformer.train import precision

    took = {torch.float32: 1.0, torch.bfloat16: 3.14, torch.float16: 0.5}
    assert precision._seconds(torch.float32) > 0
    monkeypatch.setattr(precision, "_seconds", took.__getitem__)
    cpu = torch.device("cpu")
    assert "bf16: a product takes 3.1 times as long" in precision.cost(cpu, "bf16")
    gains = precision.cost(cpu, "fp16"), precision.cost(cpu, "fp32"), precision.cost(torch.device("meta"), "bf16")
    assert not any(gains)
