"""Tables of tied models in adapters, both ways; what an adapter's config says, held against its tensors."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.edge.export import inputs
from anyformer.train import adapters, lora

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
TABLES = {"llama": ("embed_tokens", "lm_head", "q_proj"), "gpt": ("wte", "lm_head", "c_attn")}


def folder(name: str, tmp_path: Path) -> Path:
    """A tied model in its published files."""
    made = af.build(name, "tiny", seed=0, tied=True)
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim == 2:
                p.normal_(0.0, 0.2)
    made.save(tmp_path / "model")
    return tmp_path / "model"


def theirs(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path).eval()


def tuned(name: str, path: Path, out: Path, saved: list[str], **options: Any) -> Any:
    """PEFT's adapter with whole modules that learned, written to `out`, and the model that PEFT opens it on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, target_modules=[TABLES[name][2]], modules_to_save=saved, **options)
        made = peft.get_peft_model(theirs(path), config)
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in made.parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape, generator=draw) * 0.1)
        made.save_pretrained(out)
        return peft.PeftModel.from_pretrained(theirs(path), out).eval()


def agree(ours: Any, opened: Any) -> None:
    given = inputs(ours)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(**given).logits, opened(**given).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=["table", "head", "both"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_or_head_that_learned_apart_is_refused_on_a_tied_model_and_right_on_an_untied_one(
    name, which, tmp_path
):
    path = folder(name, tmp_path)
    opened = tuned(name, path, tmp_path / "a", [TABLES[name][i] for i in which])
    with pytest.raises(ValueError, match=r"one weight in this model.*tied=False"):
        adapters.read(af.load(path), tmp_path / "a")
    ours = af.load(path, tied=False)
    adapters.read(ours, tmp_path / "a")
    agree(ours, opened)


def test_a_table_that_stayed_tied_is_right_on_a_tied_model(tmp_path):
    path = folder("llama", tmp_path)  # PEFT finds no tied modules in GPT-2
    opened = tuned("llama", path, tmp_path / "a", ["embed_tokens"], ensure_weight_tying=True)
    ours = af.load(path)
    adapters.read(ours, tmp_path / "a")
    agree(ours, opened)


@pytest.mark.parametrize("name", TABLES)
def test_peft_gives_our_tied_table_to_both_its_modules(name, tmp_path):
    path = folder(name, tmp_path)
    ours = af.load(path)
    lora.add(ours, rank=2, targets=("**.mixer.*",))
    ours.embed.tokens.weight.requires_grad_(True)
    with torch.no_grad():
        ours.embed.tokens.weight.normal_(0.0, 0.2)
    adapters.write(ours, tmp_path / "a")
    agree(ours, peft.PeftModel.from_pretrained(theirs(path), tmp_path / "a").eval())
    again = af.load(path)
    adapters.read(again, tmp_path / "a")
    agree(again, ours)


@pytest.fixture
def plain(tmp_path):
    """A model, and the folder of an adapter at q and v with a head that learned."""
    path = folder("llama", tmp_path)
    af.load(path, tied=False).save(tmp_path / "untied")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    peft.get_peft_model(theirs(tmp_path / "untied"), config).save_pretrained(tmp_path / "a")
    return af.load(tmp_path / "untied"), tmp_path / "a"


def without(out: Path, word: str, rename: Any = None) -> None:
    file = out / adapters.WEIGHTS
    tensors = load_file(file)
    tensors = {(rename(n) if rename else n): t for n, t in tensors.items() if not word or word not in n}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("word", ["v_proj", "q_proj", "lm_head"])
def test_a_module_whose_tensors_are_all_lost_is_named(word, plain):
    model, out = plain
    before = {n: p.clone() for n, p in model.state_dict().items()}
    without(out, word)
    with pytest.raises(ValueError, match=rf"'{word}'.*the file is incomplete"):
        adapters.read(model, out)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


def test_a_target_that_is_missing_in_one_layer_is_told(plain):
    model, out = plain
    without(out, "layers.1.self_attn.v_proj")
    with pytest.warns(UserWarning, match=r"v_proj.*layers\.1"):
        adapters.read(model, out)


def test_layers_that_were_left_out_on_purpose_are_not_missed(plain):
    model, out = plain
    without(out, "layers.1.")
    said = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(said | {"layers_to_transform": [0]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapters.read(model, out)
    lines = {line.key: line.status for line in model.ledger.files["adapter_config.json"]}
    assert lines["target_modules"] == "used" and lines["peft_version" if "peft_version" in lines else "revision"]
    assert set(lines) >= set(said)


def test_names_with_the_name_of_the_adapter_in_them_are_read(plain):
    model, out = plain
    other = af.load(model.ledger.path)
    adapters.read(model, out)

    def named(name: str) -> str:
        if "lora_" in name:
            return name.replace(".weight", ".default.weight")
        return name.replace("lm_head.weight", "lm_head.modules_to_save.default.weight")

    without(out, "", named)
    adapters.read(other, out)
    given = inputs(model)
    assert torch.equal(model(**given).logits, other(**given).logits)


@pytest.mark.parametrize(("start", "good"), [("eva", True), ("orthogonal", True), ("pissa", False), ("olora", False)])
def test_first_weights_that_leave_the_base_alone_are_plain_adapters(start, good, plain):
    model, out = plain
    said = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(said | {"init_lora_weights": start}))
    if good:
        assert adapters.read(model, out)
    else:
        with pytest.raises(ValueError, match="init_lora_weights"):
            adapters.read(model, out)


def test_a_pickle_is_told(plain):
    model, out = plain
    (out / adapters.WEIGHTS).rename(out / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        adapters.read(model, out)
