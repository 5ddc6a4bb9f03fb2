"""Configs as they are published are read into a recipe, or refused for a reason that is right.

The files stand beside the repository where its authors work; a clone lacks them, and these tests are left out there.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import anyformer as af
from anyformer.hub import generation
from anyformer.hub.load import outline
from anyformer.hub.tables import marks
from anyformer.hub.text import keys

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "configs"
OWN = (
    "bert", "gpt2", "llama", "mistral", "smollm", "qwen2", "gemma3", "gemma3_text", "mixtral", "modernbert",
    "longformer", "t5", "mt5", "marian", "bart", "vit", "swin", "jamba", "mamba", "reformer", "transfo-xl", "whisper",
    "roberta", "xlm-roberta", "informer", "autoformer", "esm", "detr", "idefics", "sd3", "llava", "lxmert", "wav2vec2",
    "qwen2_5_vl",
    "hubert", "wav2vec2-conformer",
)  # fmt: skip
OTHERS = {  # of another family, though the folder or the model_type is one of ours: what the error says
    "dummy-chronos-bolt-model": "ChronosBoltModelForForecasting",
    "dummy-chronos2-model": "Chronos2Model",
    "assets-gemma3_27b": "gemma3",
    "gemma-3-4b-it": "gemma3",
    "gemma3/gemma3": "gemma3",
    "tvm_detr_layout": "DetrForSegmentation",
    "intel-extension-for-pytorch-llava": "LlavaLlamaForCausalLM",  # the authors' own form, with the tower elsewhere
    "llava_v1.5_7b": "LlavaLlamaForCausalLM",
}
REFUSED = {  # ours, and refused: another direction, a head that no page has, code of a repository, no map yet
    "sd-scripts-blip-med": "add_cross_attention",
    "skywork_reward_llama": "LlamaForSequenceClassification",
    "tiny-xlm-roberta": "XLMRobertaForCausalLM",
    "gte_qwen2_7b": "auto_map",
    "transfo-xl-wt103-bert4torch": "transfo-xl",
}
absent = pytest.mark.skipif(not CONFIGS.is_dir(), reason=f"there are no published files in {CONFIGS}")


def published(kind: str) -> list[Path]:
    return sorted(CONFIGS.rglob(f"*.{kind}.json"))


def outcome(path: Path) -> str | None:
    """None if it is read, else what the error says."""
    try:
        model = outline(path)
    except ValueError as error:
        return str(error)
    lines = {line.key: line for line in model.ledger.config}
    assert {key.partition(".")[0] for key in lines} == json.loads(path.read_text()).keys()  # dotted: a level down
    assert all(line.detail and line.status in ("used", "fixed", "ignored") for line in lines.values())
    return None


@absent
def test_at_least_95_of_100_published_configs_of_our_families_are_read_and_the_rest_for_a_right_reason():
    every = [path for family in OWN for path in published("config") if path.parent.name == family]
    assert len(every) > 90
    said = {f"{p.parent.name}/{p.name.removesuffix('.config.json')}": outcome(p) for p in every}
    expected = OTHERS | REFUSED
    reasons = {name: next((r for n, r in expected.items() if n in name), None) for name in said}
    wrong = {n: why for n, why in said.items() if (why is None) != (reasons[n] is None)}
    assert not wrong, wrong
    unclear = {n: why for n, why in said.items() if why is not None and str(reasons[n]) not in why}
    assert not unclear, unclear
    ours = [n for n in said if not any(o in n for o in OTHERS)]
    read = [n for n in ours if said[n] is None]
    assert len(read) >= 0.95 * len(ours), f"{len(read)} of {len(ours)}"


@absent
@pytest.mark.parametrize("kind", ["tokenizer_config", "special_tokens_map", "generation_config"])
def test_every_key_of_published_files_beside_the_config_is_known(kind):
    tables = {"tokenizer_config": keys.CONFIG_KEYS, "special_tokens_map": keys.SPECIAL_KEYS}
    for path in published(kind):
        content = json.loads(path.read_text())
        if "auto_map" in content:
            with pytest.raises(ValueError, match="auto_map"):
                keys.account(path.name, tables[kind], content, ())
            continue
        if kind == "generation_config":
            lines = generation.account(path.name, content)
        else:
            lines = keys.account(path.name, tables[kind], content, ())
        assert sorted(line.key for line in lines) == sorted(content) and all(line.detail for line in lines)


def files(tmp_path: Path, model: Any, change: Any) -> Path:
    """A saved model, its config changed."""
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("name", ["bert", "gpt", "llama", "mamba", "t5", "vit"])
@pytest.mark.parametrize("mark", ["any", "null", "second", "one"])
def test_marks_that_change_nothing_are_read_listed_and_written_back(name, mark, tmp_path):
    added: dict[str, Any] = {"no_such_key": None}
    if mark == "any":
        added = {"output_past": True, "directionality": "bidi", "is_llama_config": True, "num_beams": 4}
    elif mark == "one":
        added = {"rope_interleaved": False, "pruned_heads": {}}
    elif mark == "second":
        page = af.page(name)
        added = {"n_embd" if name not in ("gpt", "t5") else "hidden_size": page.at("tiny").dim}
    model = af.build(name, "tiny", seed=0)
    again = af.load(files(tmp_path / "a", model, lambda config: config.update(added)))
    lines = {line.key: line.status for line in again.ledger.config}
    assert all(lines[key] == "ignored" for key in added)
    again.save(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text()).items() >= added.items()
    assert all(torch.equal(p, model.state_dict()[n]) for n, p in again.state_dict().items())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rope_interleaved", True, "rope_interleaved"),
        ("pruned_heads", {"0": [1]}, "pruned_heads"),
        ("n_embd", 7, "names of one value"),
        ("auto_map", {"AutoModel": "x.Y"}, "code of its repository"),
        ("quantization_config", {"quant_method": "awq"}, "quantised"),
        ("no_such_key", 3, "ignore="),
    ],
)
def test_what_may_change_numbers_is_refused_and_can_be_passed_over(key, value, said, tmp_path):
    folder = files(tmp_path, af.build("llama", "tiny", seed=0), lambda config: config.update({key: value}))
    with pytest.raises(ValueError, match=said) as told:
        af.load(folder)
    assert key in str(told.value)
    model = af.load(folder, ignore=[key])
    assert [(k.status, k.detail) for k in model.ledger.config if k.key == key] == [("ignored", "as asked")]
    model.save(tmp_path / "again")
    assert af.load(tmp_path / "again").config == model.config


def test_marks_have_one_reason_each():
    every = [name for names in marks.ANY.values() for name in names]
    assert len(every) == len(set(every))
    assert not set(every) & {*marks.ONE_VALUE, *marks.EMPTY, *marks.REFUSED}


@pytest.mark.parametrize("option", ["fresh", "ignore"])
def test_a_text_is_no_list_of_texts(option, tmp_path):
    af.build("llama", "tiny").save(tmp_path)
    with pytest.raises(ValueError, match=f"{option} must be a list"):
        af.load(tmp_path, **{option: "heads.*"})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gpt", "bert", "llama", "transformer"])
def test_a_file_without_its_type_is_known_by_its_class_or_its_keys(name, tmp_path):
    model = af.build(name, "tiny", seed=0)
    folder = files(tmp_path, model, lambda config: config.pop("model_type"))
    assert af.load(folder).page == name
    config = json.loads((folder / "config.json").read_text())
    config.pop("architectures")
    (folder / "config.json").write_text(json.dumps(config))
    try:
        assert outline(folder).page == name
    except ValueError as error:
        assert "several pages can read its keys" in str(error)


def test_marian_under_the_type_of_bart_is_marian(tmp_path):
    folder = files(tmp_path, af.build("transformer", "tiny"), lambda config: config.update(model_type="bart"))
    assert af.load(folder).page == "transformer"


@pytest.mark.parametrize(
    ("name", "whole", "asked"),
    [
        ("bert", "pretraining", ("masked", "none")),
        ("llama", "lm", ("none",)),
        ("gpt", "lm", ("none",)),
        ("t5", "seq2seq", ("encode",)),
    ],
)
def test_parts_that_were_not_asked_for_are_ignored_by_name(name, whole, asked, tmp_path):
    model = af.build(name, "tiny", task=whole, seed=0)
    model.save(tmp_path)
    for task in asked:
        less = af.load(tmp_path, task=task)
        assert less.config.task == task
        left = [line for line in less.ledger.tensors if line.status == "ignored"]
        assert not left or all("not requested" in line.detail and "task=" in line.detail for line in left)
        for path, p in less.state_dict().items():
            held = model.state_dict()
            assert torch.equal(p, held[path] if path in held else held[f"encoder.{path}"])


def test_a_missing_head_names_what_the_file_can_be_read_as(tmp_path):
    af.build("bert", "tiny", task="none", seed=0).save(tmp_path)
    with pytest.raises(ValueError, match=r"Without them it can be read by load\(\.\.\., task='none'\)"):
        af.load(tmp_path, task="masked")
    assert af.load(tmp_path, task="classify", classes=3, fresh=["heads.*"]).config.classes == 3


@pytest.mark.parametrize("name", ["gpt", "llama", "t5", "bart", "bert"])
def test_a_tied_table_may_be_stored_once_under_any_of_its_names(name, tmp_path):
    from safetensors.torch import load_file

    from anyformer.hub.save import hub_for
    from anyformer.hub.tables.weights import links

    model = af.build(name, "tiny", seed=0)
    model.save(tmp_path)
    found = hub_for(model)
    assert found is not None
    tensors = load_file(tmp_path / "model.safetensors")
    table = links(found[0].weights(model.config), model.state_dict())
    main = {link.ours: link.theirs[0] for link in table if not link.tied}
    for other in [link for link in table if link.tied]:
        moved = dict(tensors)
        moved[other.theirs[0]] = moved.pop(main[other.ours])
        save_file(moved, tmp_path / "model.safetensors", {"format": "pt"})
        again = af.load(tmp_path)
        assert all(torch.equal(p, model.state_dict()[n]) for n, p in again.state_dict().items())


@pytest.mark.parametrize(("name", "path"), [("gemma3", "norm.weight"), ("mamba", "blocks.0.mixer.A_log")])
def test_fresh_weights_are_those_that_the_parts_draw(name, path, tmp_path):
    from safetensors.torch import load_file

    made = af.build(name, "tiny", seed=0)
    made.save(tmp_path)
    theirs = next(line.name for line in af.load(tmp_path).ledger.tensors if line.detail == path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[theirs]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    again = af.load(tmp_path, fresh=[path])
    torch.testing.assert_close(again.state_dict()[path], af.build(name, "tiny", seed=1).state_dict()[path])


@pytest.mark.parametrize("said", [None, "bfloat16", "float32", "nonsense"])
def test_a_file_of_several_types_becomes_one_and_says_so(said, tmp_path):
    from safetensors.torch import load_file

    def change(config: dict[str, Any]) -> None:
        config.pop("dtype", None)
        config.update({} if said is None else {"dtype": said})

    folder = files(tmp_path, af.build("llama", "tiny", seed=0), change)
    tensors = load_file(folder / "model.safetensors")
    mixed = {n: t if "norm" in n else t.to(torch.bfloat16) for n, t in tensors.items()}
    save_file(mixed, folder / "model.safetensors", {"format": "pt"})
    model = af.load(folder)
    kinds = {p.dtype for p in model.parameters()}
    assert kinds == {torch.float32 if said == "float32" else torch.bfloat16}
    assert "stored as" in model.ledger.summary()
    model(torch.tensor([[1, 2, 3]]))


def test_weights_that_are_no_floating_point_are_named(tmp_path):
    from safetensors.torch import load_file

    af.build("llama", "tiny", seed=0).save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.norm\.weight.*int8.*GGUF"):
        af.load(tmp_path)


@pytest.mark.parametrize(
    "scaling",
    [af.parts.positions.Dynamic(2.0, 32), af.parts.positions.Dynamic(2.0, 64), af.parts.positions.Linear(3.0)],
)
def test_a_model_is_read_back_as_it_was_written_or_its_own_format_says_why(scaling, tmp_path):
    model = af.build("llama", "tiny", scaling=scaling)
    if getattr(scaling, "trained", 64) != model.context and model.context is None and scaling.trained == 32:
        with pytest.warns(UserWarning, match="trained=32"):
            assert model.save(tmp_path) == "anyformer"
    else:
        assert model.save(tmp_path) == "llama"
    assert af.load(tmp_path).recipe == model.recipe
