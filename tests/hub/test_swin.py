"""Swin's files, and its numbers on pictures that are no whole number of patches, cells, windows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.cli import main
from anyformer.hub.load import outline
from anyformer.parts import StochasticDepth
from anyformer.train import finetune, train

transformers = pytest.importorskip("transformers")
CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "configs" / "swin"
OLD = {  # the keys of files of 2022
    "architectures": ["SwinForImageClassification"], "attention_probs_dropout_prob": 0.0, "depths": [2, 2, 6, 2],
    "drop_path_rate": 0.1, "embed_dim": 96, "encoder_stride": 32, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "hidden_size": 768, "id2label": {"0": "tench", "1": "goldfish"}, "image_size": 224, "initializer_range": 0.02,
    "label2id": {"tench": 0, "goldfish": 1}, "layer_norm_eps": 1e-05, "mlp_ratio": 4.0, "model_type": "swin",
    "num_channels": 3, "num_heads": [3, 6, 12, 24], "num_layers": 4, "patch_size": 4, "path_norm": True,
    "qkv_bias": True, "torch_dtype": "float32", "transformers_version": "4.20.0.dev0",
    "use_absolute_embeddings": False, "window_size": 7,
}  # fmt: skip


def theirs(kind: str = "SwinForImageClassification", **changes):
    """A model of theirs with windows of 3 on grids of 8 and 4, its weights redrawn."""
    given = {
        "image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 3,
        "num_labels": 5,
    }  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.SwinConfig(**{**given, **changes})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("size", [(16, 16), (15, 17), (13, 40), (33, 12), (12, 12), (11, 14)])
def test_odd_long_and_broken_pictures_have_their_numbers(size, tmp_path):
    other = theirs()
    other.save_pretrained(tmp_path)
    model = af.load(tmp_path).eval()
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        found = model(pixel_values=pixels)
        wanted = other(pixels, output_hidden_states=True, output_hidden_states_before_downsampling=True)
    torch.testing.assert_close(found.logits, wanted.logits)
    for mine, expected in zip(found.maps, wanted.reshaped_hidden_states[1:], strict=True):
        torch.testing.assert_close(mine, expected)


def test_a_small_picture_leaves_no_trace(tmp_path):
    theirs().save_pretrained(tmp_path)
    model, pixels = af.load(tmp_path).eval(), torch.randn(1, 3, 24, 24)
    before = model(pixel_values=pixels).logits
    assert model(pixel_values=torch.randn(1, 3, 3, 2)).logits.isfinite().all()  # windows of one cell
    assert torch.equal(model(pixel_values=pixels).logits, before)


@pytest.mark.parametrize(("kind", "prefix"), [("SwinForImageClassification", "swin."), ("SwinModel", "")])
def test_the_index_in_old_files_is_ignored_with_its_reason(kind, prefix, tmp_path):
    theirs(kind).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors, pairs = load_file(file), torch.zeros(9, 9, dtype=torch.long)
    names = [
        f"{prefix}encoder.layers.{s}.blocks.{i}.attention.self.relative_position_index" for s in (0, 1) for i in (0, 1)
    ]
    save_file({**tensors, **{name: pairs.clone() for name in names}}, file, {"format": "pt"})
    model = af.load(tmp_path)
    lines = {line.name: line for line in model.ledger.tensors}
    assert all(lines[name].status == "ignored" and "size of the window" in lines[name].detail for name in names)
    assert sum(line.status == "used" for line in model.ledger.tensors) == len(tensors)


def test_positions_of_another_picture_size_are_resampled(tmp_path):
    other = theirs(use_absolute_embeddings=True)
    other.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 24, 20)
    with torch.no_grad():
        wanted = other(pixels, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(af.load(tmp_path)(pixel_values=pixels).logits, wanted)


def written(folder: Path, **changes) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in {**OLD, **changes}.items() if v != "absent"}))
    return path


def test_configs_of_2022_are_read_with_a_line_for_every_key(tmp_path):
    model = outline(written(tmp_path))
    assert {line.key for line in model.ledger.config} == OLD.keys()
    assert sum(p.numel() for p in model.parameters()) == 28_288_354 - 998 * 769
    short = outline(written(tmp_path, num_heads="absent", depths="absent", num_layers="absent", window_size="absent"))
    assert short.recipe == model.recipe


@pytest.mark.skipif(not CONFIGS.is_dir(), reason=f"there are no published files in {CONFIGS}")
def test_published_files_are_read():
    files = sorted(CONFIGS.glob("*.config.json"))
    assert files
    for file in files:
        config = json.loads(file.read_text())
        model = outline(file)
        assert {line.key for line in model.ledger.config} == config.keys()
        assert model.config.depths == tuple(config["depths"]) and model.config.classes == len(config["id2label"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_layers": 3}, r"'num_layers' is 3; by depths=\[2, 2, 6, 2\] and embed_dim=96 it is 4"),
        ({"hidden_size": 96}, "'hidden_size' is 96; by depths"),
        ({"num_heads": [3, 6]}, "depths and heads have one number a stage each"),
        ({"depths": []}, r"by depths=\[\] and"),
        ({"depths": [], "num_heads": [], "num_layers": "absent", "hidden_size": "absent"}, "stages is empty"),
        ({"depths": [2, 2, 10**9, 2]}, "depths"),
        ({"depths": "2, 2"}, "'depths'"),
        ({"window_size": 0}, "'window_size'"),
        ({"image_size": [224, 192]}, "'image_size' is .*squares only"),
        ({"num_heads": [5, 6, 12, 24]}, "a width of 96 does not divide into 5 heads"),
        ({"hidden_act": "mish"}, "'hidden_act' is 'mish'"),
        ({"pretrained_window_size": 7}, "pretrained_window_size"),
    ],
)
def test_configs_that_contradict_themselves_are_refused_by_name(changes, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        outline(written(tmp_path, **changes))


def test_the_rate_of_skipped_branches_rises_to_its_last_block(tmp_path):
    model = af.build("swin", "tiny", drop_path=0.3, seed=0)
    rates = [m.rate for m in model.modules() if isinstance(m, StochasticDepth)]
    assert rates == pytest.approx([0.15, 0.15, 0.3, 0.3])  # of both branches; the first block has none
    model.page, model.config = "swin", af.page("swin").at("tiny", drop_path=0.3)
    model.save(tmp_path)
    their_rates = [p.p if hasattr(p, "p") else p.drop_prob for p in drops(tmp_path)]
    assert their_rates == pytest.approx([0.15, 0.3])
    pixels = torch.randn(64, 3, 24, 24)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(pixel_values=pixels).logits, model(pixel_values=pixels).logits)
    torch.testing.assert_close(model.eval()(pixel_values=pixels).logits, af.load(tmp_path)(pixel_values=pixels).logits)


def test_skipped_branches_are_scaled_as_theirs(tmp_path, monkeypatch):
    """With every row kept, a branch in training is divided by the share of rows that are: that shows place and rate.
    Theirs skips the branch of attention alone; the paper, and this page, that of the MLP, too."""
    model = af.build("swin", "tiny", drop_path=0.6, seed=0)
    model.page, model.config = "swin", af.page("swin").at("tiny", drop_path=0.6)
    model.save(tmp_path)
    theirs = transformers.SwinForImageClassification.from_pretrained(tmp_path).train()
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    plain = model.eval()(pixel_values=pixels).logits
    monkeypatch.setattr(
        torch, "rand", lambda *size, **_: torch.full(size[0] if isinstance(size[0], tuple) else size, 0.99)
    )
    both = model.train()(pixel_values=pixels).logits
    for name, part in model.named_modules():
        if isinstance(part, StochasticDepth) and name.endswith("ffn"):
            part.rate = 0.0
    alone = model(pixel_values=pixels).logits
    torch.testing.assert_close(alone, theirs(pixel_values=pixels).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(alone, plain) and not torch.allclose(both, alone)


def drops(folder: Path) -> list:
    other = transformers.SwinForImageClassification.from_pretrained(folder)
    return [m for m in other.modules() if type(m).__name__ == "SwinDropPath"]


def test_training_tuning_classifying_and_theirs_agree(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, hue in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.clip(rng.normal(hue, 20, (13, 10, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    begun = train(
        "swin", "tiny", data=tmp_path / "pictures", overrides={"image": 10, "patch": 2}, steps=30, lr=3e-3, quiet=True,
        out=tmp_path / "run",
    )  # fmt: skip
    tuned = finetune(
        str(begun.checkpoint), str(tmp_path / "pictures"), "lora", steps=2, quiet=True, out=tmp_path / "tuned"
    )
    assert tuned.folder is not None
    model = af.load(tuned.folder)
    assert model.processor.size == (10, 10)
    picture = str(tmp_path / "pictures" / "red" / "0.png")
    capsys.readouterr()
    assert main(["classify", str(tuned.folder), picture, "--json"]) == 0
    shares = json.loads(capsys.readouterr().out)
    assert "red" in json.dumps(shares)
    model.save(tmp_path / "saved")
    other = transformers.SwinForImageClassification.from_pretrained(tmp_path / "saved").eval()
    pixels = transformers.ViTImageProcessorPil.from_pretrained(tmp_path / "saved")(
        Image.open(picture), return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixel_values=pixels).logits, other(pixels).logits)
    assert other.config.id2label[int(other(pixels).logits.argmax())] == "red"
