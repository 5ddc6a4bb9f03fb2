"""Adapters in PEFT's files: PEFT itself opens ours, and we open PEFT's; the logits are the same."""

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.compress import nf4
from anyformer.edge.export import inputs
from anyformer.train import adapters, lora

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
KINDS = {
    "llama": ("AutoModelForCausalLM", {}, ("q_proj", "v_proj", "down_proj")),
    "gpt": ("AutoModelForCausalLM", {}, ("c_attn", "c_fc", "attn.c_proj")),
    "bert": ("AutoModelForSequenceClassification", {"task": "classify", "classes": 3}, ("query", "output.dense")),
    "t5": ("AutoModelForSeq2SeqLM", {}, ("q", "wo")),
    "mamba": ("AutoModelForCausalLM", {}, ("x_proj", "in_proj")),
}
every_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture
def pair(name, tmp_path):
    """Ours, and the same model in transformers."""
    auto, changes, _ = KINDS[name]
    ours = af.build(name, "tiny", seed=0, **changes)
    with torch.no_grad():
        for p in ours.parameters():
            if p.ndim == 2:
                p.normal_(0.0, 0.2)
    ours.save(tmp_path / "model")
    theirs = getattr(transformers, auto).from_pretrained(tmp_path / "model")
    return af.load(tmp_path / "model"), theirs.eval()


def stir(model: Any) -> None:
    """Adapters that do something."""
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for path, p in model.named_parameters():
            if "lora_" in path:
                p.add_(torch.randn(p.shape, generator=random) * 0.1)
            elif p.requires_grad:  # modules_to_save
                p.normal_(0.0, 0.2, generator=random)


def agree(ours: Any, theirs: Any) -> None:
    given = inputs(ours)
    with torch.no_grad():
        expected = theirs(**given).logits
        torch.testing.assert_close(ours(**given).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@every_kind
def test_peft_opens_what_we_write(name, pair, dora, tmp_path):
    ours, theirs = pair
    targets = ("**.mixer.*", "**.ffn.*") if name != "mamba" else ("**.into", "**.select")
    lora.add(ours, rank=3, alpha=5.0, targets=targets, dora=dora)
    stir(ours)
    plain = theirs(**inputs(ours)).logits
    names = adapters.write(ours, tmp_path / "a", base="tiny")
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path / "a").eval()
    assert len([m for m in opened.modules() if hasattr(m, "lora_A")]) == len(names)
    agree(ours, opened)
    assert (opened(**inputs(ours)).logits - plain).abs().max() > 0.01

    again = af.load(tmp_path / "model")
    assert list(adapters.read(again, tmp_path / "a")) == list(lora.adapters(ours))
    for path, tensor in lora.state(ours).items():
        torch.testing.assert_close(lora.state(again)[path], tensor, rtol=0, atol=0)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == set(lora.state(ours))
    agree(again, opened)
    lora.merge(again)
    agree(again, opened)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@every_kind
def test_we_open_what_peft_writes(name, pair, dora, tmp_path):
    ours, theirs = pair
    task = {"bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}.get(name, "CAUSAL_LM")
    options = {"use_rslora": True, "rank_pattern": {KINDS[name][2][0]: 5}, "alpha_pattern": {KINDS[name][2][1]: 3}}
    config = peft.LoraConfig(r=4, target_modules=list(KINDS[name][2]), task_type=task, use_dora=dora, **options)
    opened = peft.get_peft_model(theirs, config).eval()
    stir(opened)
    opened.save_pretrained(tmp_path / "a")
    adapters.read(ours, tmp_path / "a")
    agree(ours, opened)
    if name == "bert":  # the head that learned beside the adapters
        assert {n for n, p in ours.named_parameters() if p.requires_grad and "lora_" not in n} == {
            "heads.classes.proj.weight", "heads.classes.proj.bias",
        }  # fmt: skip
    adapters.write(ours, tmp_path / "b")
    fresh = getattr(transformers, KINDS[name][0]).from_pretrained(tmp_path / "model")
    agree(ours, peft.PeftModel.from_pretrained(fresh, tmp_path / "b").eval())


def test_only_some_of_a_fused_matrix(tmp_path):
    """q and v of GPT-2 alone: the rows of k in c_attn stay what they were."""
    ours = af.build("gpt", "tiny", seed=0)
    ours.save(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    lora.add(ours, rank=2)
    stir(ours)
    adapters.write(ours, tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["r"] == 4 and config["fan_in_fan_out"] is True and config["task_type"] == "CAUSAL_LM"
    assert config["target_modules"] == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    agree(ours.eval(), peft.PeftModel.from_pretrained(theirs, tmp_path / "a").eval())
    again = af.load(tmp_path / "model")
    assert list(adapters.read(again, tmp_path / "a")) == [f"blocks.{i}.mixer.{n}" for i in range(2) for n in "qv"]


def test_a_composition_keeps_our_names_and_a_4_bit_base_its_published_ones(tmp_path):
    recipe = af.recipe("llama", "tiny", depth=2).but({"blocks.1.mixer": af.parts.Mamba.of(state=4)})
    made = af.build(recipe, seed=0)
    lora.add(made, targets=("blocks.1.mixer.into",))
    stir(made)
    assert adapters.write(made, tmp_path / "a") == ["blocks.1.mixer.into"]
    again = af.build(recipe, seed=0)
    adapters.read(again, tmp_path / "a")
    ids = torch.arange(9)[None]
    assert torch.equal(again.eval()(ids).logits, made.eval()(ids).logits)

    small = af.build("llama", "tiny", seed=0)
    nf4.quantise(small, targets=("blocks.**",))
    lora.add(small)
    stir(small)
    assert adapters.write(small, tmp_path / "b")[0] == "model.layers.0.self_attn.q_proj"
    other = af.build("llama", "tiny", seed=0)
    nf4.quantise(other, targets=("blocks.**",))
    adapters.read(other, tmp_path / "b")
    assert torch.equal(other(ids).logits, small(ids).logits)


@pytest.fixture
def written(tmp_path):
    """A model without adapters, and a folder with some for it."""
    made = af.build("llama", "tiny", seed=0)
    made.save(tmp_path / "model")
    lora.add(made)
    adapters.write(made, tmp_path / "a")
    return af.load(tmp_path / "model"), tmp_path / "a"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"peft_type": "IA3"}, "peft_type.*LORA.*IA3"),
        ({"bias": "all"}, "bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"some_new_trick": 3}, "some_new_trick"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights.*others change the base model"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern.*names of modules"),
        ({"use_dora": True}, "lora_magnitude_vector"),
    ],
    ids=str,
)
def test_a_config_that_means_something_else_is_refused(change, said, written):
    model, folder = written
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=said):
        adapters.read(model, folder)
    assert not lora.adapters(model) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda t: {k.replace("layers.0", "layers.7"): v for k, v in t.items()},
            r"cannot take an adapter.*layers\.7.*did you mean",
        ),
        (lambda t: {k.replace("base_model.model.", ""): v for k, v in t.items()}, "does not begin with"),
        (lambda t: {k: v for k, v in t.items() if "0.self_attn.q_proj.lora_B" not in k}, "has lora_A; expected"),
        (lambda t: {k: v[:, :-1].clone() if "lora_A" in k else v for k, v in t.items()}, "shape"),
        (lambda t: {**t, "base_model.model.score.weight": torch.zeros(2, 2)}, "'score.weight' is not in the model"),
        (lambda t: {**t, "base_model.model.lm_head.weight": torch.zeros(2, 2)}, "lm_head.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_changes(change, said, written):
    model, folder = written
    save_file(change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=said):
        adapters.read(model, folder)
    assert not lora.adapters(model) and all(p.requires_grad for p in model.parameters())


def test_what_cannot_be_written_is_told(tmp_path):
    made = af.build("llama", "tiny", seed=0)
    with pytest.raises(ValueError, match="no adapters to write"):
        adapters.write(made, tmp_path / "a")
    lora.add(made)
    with pytest.raises(ValueError, match="has adapters already"):
        adapters.read(made, tmp_path)
    made = af.build("gpt", "tiny", seed=0)
    lora.add(made)
    made.blocks[0].mixer.q.bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"blocks\.0\.mixer\.q\.bias is trained beside the adapters"):
        adapters.write(made, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_folder_without_adapters_is_told(written, tmp_path):
    model, folder = written
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="adapter_config"):
        adapters.read(model, tmp_path / "model")
