"""LLaVA's files: configs with all that they leave out, both spellings of the tower, ties on two levels, and a processor
that is held against the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.generate import generate
from anyformer.generate.seeing import with_media
from anyformer.hub.load import outline
from anyformer.hub.processors import ImageProcessor
from anyformer.hub.text.tokenizer import Tokenizer

CONFIGS = Path(__file__).parents[3] / "shared/data/configs/llava"
absent = pytest.mark.skipif(not CONFIGS.is_dir(), reason=f"there are no published files in {CONFIGS}")
PUBLISHED: dict[str, Any] = {  # the keys of LLaVA 1.5 as transformers publishes it; most sizes are left out
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.36.0.dev0",
    "vision_config": {
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}  # fmt: skip
STEPS: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 8}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 8, "width": 8}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "do_convert_rgb": True, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
}  # fmt: skip
AROUND: dict[str, Any] = {
    "processor_class": "LlavaProcessor", "patch_size": 4, "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1, "image_token": "<image>",
}  # fmt: skip
MARK = 257


def made(**changes: Any) -> Any:
    model: Any = af.build("llava", "tiny", seed=0, overrides={"text.vocab": 258, "token": MARK, **changes}).eval()
    model.tokenizer = Tokenizer.bytes_level().with_special(MARK, "<image>")
    return model


def written(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_published_keys_are_all_read_and_what_they_leave_out_is_known(tmp_path):
    model = outline(written(tmp_path, PUBLISHED))
    assert model.config == af.page("llava").at("1.5-7b")
    assert {line.key for line in model.ledger.config if "." not in line.key} >= {"image_token_index", "vocab_size"}
    assert {line.key for line in model.ledger.config} >= {"text_config.rms_norm_eps", "vision_config.patch_size"}
    kept = sum(p.numel() for p in model.buffers())
    assert sum(p.numel() for p in model.parameters()) + kept == 7_063_427_072  # as published, the kept block included
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (theirs.text_config.hidden_size, theirs.text_config.intermediate_size) == (4096, 11008)


def test_a_text_of_mistral_has_its_window_and_its_defaults(tmp_path):
    """The keys of BakLLaVA, as transformers publishes it."""
    words = {"intermediate_size": 14336, "max_position_embeddings": 32768, "num_key_value_heads": 8,
             "sliding_window": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32064, "model_type": "mistral"}  # fmt: skip
    text = {**words, "_name_or_path": "mistralai/Mistral-7B-v0.1", "architectures": ["MistralForCausalLM"]}
    model = outline(written(tmp_path / "given", {**PUBLISHED, "text_config": text}))
    assert (model.config.text.window, model.config.text.kv_heads, model.config.text.hidden) == (4096, 8, 14336)
    bare = outline(written(tmp_path / "bare", {**PUBLISHED, "text_config": {"model_type": "mistral"}}))
    transformers = pytest.importorskip("transformers")
    usual, ours = transformers.MistralConfig(), bare.config.text
    assert (ours.window, ours.context, ours.kv_heads) == (
        usual.sliding_window, usual.max_position_embeddings, usual.num_key_value_heads
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"LLaVA: text\.family='mistral' has no window_from"):
        af.build("llava", "tiny", overrides={"text.family": "mistral", "text.window_from": 1})


@absent
@pytest.mark.parametrize("name", ["llava_v1.5_7b", "intel-extension-for-pytorch-llava"])
def test_the_authors_own_form_is_refused_by_name(name, tmp_path):
    """Its tower is another file of another repository."""
    with pytest.raises(ValueError, match=r"LlavaLlamaForCausalLM.*LlavaForConditionalGeneration"):
        outline(written(tmp_path, json.loads((CONFIGS / f"{name}.config.json").read_text())))


@pytest.mark.parametrize("above", [None, False, True])
@pytest.mark.parametrize("below", [None, False, True])
def test_the_table_is_tied_if_either_level_says_so(above, below, tmp_path):
    """As in transformers (trap 21), and both levels are written back as they came."""
    transformers = pytest.importorskip("transformers")
    model = made()
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for level, word in ((config, above), (config["text_config"], below)):
        level.pop("tie_word_embeddings", None)
        level.update({} if word is None else {"tie_word_embeddings": word})
    written(tmp_path, config)
    read = outline(tmp_path)
    theirs = transformers.LlavaForConditionalGeneration(transformers.AutoConfig.from_pretrained(tmp_path))
    shared = theirs.lm_head.weight is theirs.get_input_embeddings().weight
    assert read.config.text.tied == shared == bool(above or below)
    if read.config.text.tied:
        tensors = load_file(tmp_path / "model.safetensors")
        save_file({k: v for k, v in tensors.items() if "lm_head" not in k}, tmp_path / "model.safetensors")
    af.load(tmp_path).save(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (again.get("tie_word_embeddings"), again["text_config"].get("tie_word_embeddings")) == (above, below)


@pytest.mark.parametrize(("layer", "unread"), [(-1, 0), (-2, 1), (-3, 2), (2, 0), (1, 1), (0, 2)])
def test_the_layer_that_is_read_counts_from_either_end(layer, unread, tmp_path):
    model = made()
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    read = outline(written(tmp_path, {**config, "vision_feature_layer": layer}))
    assert read.config.unread == unread


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "several layers": ({"vision_feature_layer": [-2, -5]}, r"'vision_feature_layer' is \[-2, -5\]; this page reads"),
    "no such layer": ({"vision_feature_layer": 3}, "'vision_feature_layer' is 3; a tower of 2 blocks has -3 to 2"),
    "another count of positions": ({"image_seq_length": 576}, "'image_seq_length' is 576, and the tower makes 4"),
    "another strategy": ({"vision_feature_select_strategy": "some"}, "is 'some'; expected one of default, full"),
    "another tower": ({"vision_config.model_type": "siglip_vision_model"}, "vision_config: .*siglip_vision_model"),
    "another text": ({"text_config.model_type": "qwen3"}, "text_config.model_type' is 'qwen3' .did you mean qwen2"),
    "a window of LLaMA": ({"text_config.sliding_window": 7}, "unknown config keys: text_config.sliding_window=7"),
    "an unknown key": ({"text_config.angle": 3}, "unknown config keys: text_config.angle=3"),
    "no text": ({"text_config": None}, "the config lacks 'text_config'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_page_cannot_do_is_refused_by_key(name, tmp_path):
    changes, message = WRONG[name]
    made().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for path, value in changes.items():
        level, _, key = path.rpartition(".")
        (config[level] if level else config)[key] = value
    with pytest.raises(ValueError, match=message):
        outline(written(tmp_path, config))


def test_both_spellings_of_the_tower_are_read_and_written_back(tmp_path):
    model = made()
    model.save(tmp_path / "new")
    tensors = load_file(tmp_path / "new/model.safetensors")
    older = {n.replace("vision_tower.", "vision_tower.vision_model."): t for n, t in tensors.items()}
    older["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    (tmp_path / "old").mkdir()
    for file in (tmp_path / "new").iterdir():
        (tmp_path / "old" / file.name).write_bytes(file.read_bytes())
    save_file(older, tmp_path / "old/model.safetensors", metadata={"format": "pt"})
    again = af.load(tmp_path / "old")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    again.save(tmp_path / "back")
    back = load_file(tmp_path / "back/model.safetensors")
    assert set(back) == set(older) - {"vision_tower.vision_model.embeddings.position_ids"}
    assert set(tensors) == {n.replace("vision_model.", "") for n in back}


def with_files(folder: Path, together: dict[str, Any] | None, alone: dict[str, Any] | None = None) -> Path:
    made().save(folder)
    for name, content in (("processor_config.json", together), ("preprocessor_config.json", alone)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("form", ["together", "two files"])
def test_processor_files_of_both_generations_come_back(form, tmp_path):
    whole = {**AROUND, "image_processor": STEPS} if form == "together" else AROUND
    folder = with_files(tmp_path / "a", whole, None if form == "together" else STEPS)
    model = af.load(folder)
    assert isinstance(model.processor, ImageProcessor) and model.processor.crop_size == (8, 8)
    lines = {line.key for lines in model.ledger.files.values() for line in lines}
    assert lines >= {*STEPS, *AROUND}
    model.save(tmp_path / "b")
    for name in ("processor_config.json", "preprocessor_config.json"):
        assert (tmp_path / "b" / name).exists() == (folder / name).exists()
        if (folder / name).exists():
            assert json.loads((tmp_path / "b" / name).read_text()) == json.loads((folder / name).read_text())


@absent
def test_a_real_processor_file_is_read(tmp_path):
    said = json.loads((CONFIGS / "llava-stock-analyzer-final.processor_config.json").read_text())
    said["patch_size"] = 4  # the model beside it is small
    model = af.load(with_files(tmp_path, said))
    assert model.processor.crop_size == (336, 336) and model.processor.image_mean[0] == 0.48145466


@pytest.mark.parametrize("form", ["together", "two files"])
def test_in_our_own_format_the_processor_has_its_steps_alone(form, tmp_path):
    """Its other keys repeat what a LLaVA is, and a changed recipe is none."""
    whole = {**AROUND, "image_processor": STEPS} if form == "together" else AROUND
    model = af.load(with_files(tmp_path / "a", whole, None if form == "together" else STEPS))
    model.page = None
    assert model.save(tmp_path / "b") == "anyformer"
    assert af.load(tmp_path / "b").processor == model.processor


def test_the_chat_template_of_a_processor_is_that_of_the_model(tmp_path):
    """Older folders hold it in a file of its own; it comes before the tokenizer's, as in transformers."""
    folder = with_files(tmp_path / "a", AROUND, STEPS)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }} ASSISTANT:"}))
    model = af.load(folder)
    assert model.tokenizer.chat([{"role": "user", "content": "what?"}]) == "what? ASSISTANT:"
    model.save(tmp_path / "b")
    assert af.load(tmp_path / "b").tokenizer.template == model.tokenizer.template


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "another patch": ({"patch_size": 14}, "'patch_size' is 14, and the model beside it needs 4"),
    "another strategy (trap 20)": ({"vision_feature_select_strategy": "full"}, "select_strategy' is full"),
    "no class token": ({"num_additional_image_tokens": 0}, "'num_additional_image_tokens' is 0, .* needs 1"),
    "another placeholder": ({"image_token": "<img>"}, "'image_token' is <img>, .* needs <image>"),
    "an unknown key": ({"tiles": 4}, "unknown keys: tiles=4"),
    "another type": ({"image_processor": {**STEPS, "image_processor_type": "SiglipImageProcessor"}}, "known are"),
    "no mean": ({"image_processor": {k: v for k, v in STEPS.items() if k != "image_mean"}}, "lacks 'image_mean'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_processor_file_that_contradicts_the_model_is_refused(name, tmp_path):
    changes, message = CONTRADICTIONS[name]
    folder = with_files(tmp_path, {**AROUND, "image_processor": STEPS, **changes})
    with pytest.raises(ValueError, match=f"processor_config.json: .*{message}"):
        af.load(folder)
    unknown = next(iter(changes))
    if unknown in AROUND or unknown == "tiles":
        assert af.load(folder, ignore=[unknown]).processor is not None


def test_prompts_and_pictures_become_what_their_processor_makes_and_the_same_words_follow(tmp_path):
    """Ids with all placeholders, pixels, and the greedy continuation are those of transformers."""
    transformers = pytest.importorskip("transformers")
    model = af.load(with_files(tmp_path, {**AROUND, "image_processor": STEPS}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    model.save(tmp_path / "again")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "again")
    steps = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "again")
    more = {k: v for k, v in AROUND.items() if k != "processor_class"}
    processor = transformers.LlavaProcessor(steps, tokenizer, **more)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (h, 12, 3), dtype=np.uint8)) for h in (9, 30)]
    text = "see <image> and <image>\nwhat"
    theirs = processor(images=images, text=text, return_tensors="pt")
    rows, media = with_media(model, [model.tokenizer.encode(text)], images)
    assert rows == theirs["input_ids"].tolist() and rows[0].count(MARK) == 8
    torch.testing.assert_close(media["pixel_values"], theirs["pixel_values"], rtol=0, atol=1e-6)
    reference = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "again").eval()
    given = {name: theirs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    wanted = reference.generate(**given, max_new_tokens=8, do_sample=False)[0, len(rows[0]) :].tolist()
    found = generate(model, model.tokenizer.encode(text), images=images, max_new_tokens=8)
    assert found == wanted[: len(found)] and (len(found) == 8 or wanted[len(found)] in model.tokenizer.eos_ids)


def test_a_model_made_here_writes_all_that_their_processor_reads(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = made()
    model.processor = ImageProcessor("CLIPImageProcessor", True, (8, 8), 3, None, 1 / 255, (0.5,) * 3, (0.5,) * 3)
    model.save(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text()) == AROUND
    processor = transformers.LlavaProcessor.from_pretrained(tmp_path, use_fast=False, backend="pil")
    assert (processor.patch_size, processor.num_additional_image_tokens) == (4, 1)


def test_a_placeholder_outside_the_table_has_our_own_format(tmp_path):
    """transformers would look it up."""
    model = made(token=258)
    with pytest.warns(
        UserWarning, match="token=258 cannot be written: transformers looks it up, and the table has 258"
    ):
        assert model.save(tmp_path) == "anyformer"
    again = af.load(tmp_path)
    assert again.placeholders == {258} and again.recipe == model.recipe
