"""DETR's files, in both forms of names; its processor; its numbers with auxiliary losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.hub.load import outline
from anyformer.hub.processors import DetectionProcessor, read_processor
from anyformer.hub.processors.detection import fitted

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "configs" / "detr"
FILE = {
    "image_processor_type": "DetrImageProcessor", "do_resize": True, "do_pad": True, "do_rescale": True,
    "do_normalize": True, "format": "coco_detection", "size": {"shortest_edge": 20, "longest_edge": 33}, "resample": 2,
    "rescale_factor": 1 / 255, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
OLD = {
    "feature_extractor_type": "DetrFeatureExtractor", "do_normalize": True, "do_resize": True,
    "format": "coco_detection", "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    "max_size": 33, "size": 20,
}  # fmt: skip
RESNET18 = {"net.kind": "basic", "net.widths": (64, 128, 256, 512), "net.depths": (2, 2, 2, 2), "net.stem": 64}


def timm(name: str) -> str:
    """The name of a tensor in the first published files."""
    before, _, rest = name.partition("conv_encoder.model.")
    if not rest:
        return name
    *path, tail = rest.split(".")
    norm = path[-1] == "normalization"
    if path[0] == "embedder":
        there = ["bn1" if norm else "conv1"]
    else:
        _, _, stage, _, layer, *unit = path
        where = f"layer{int(stage) + 1}.{layer}"
        last = f"{'bn' if norm else 'conv'}{int(unit[1]) + 1}" if unit[0] == "layer" else f"downsample.{int(norm)}"
        there = [where, last]
    return ".".join([f"{before}conv_encoder.model", *there, tail])


def test_the_first_published_files_have_timms_names_and_come_back_with_them(tmp_path):
    model = af.build("detr", "tiny", overrides=RESNET18, seed=0).eval()
    model.save(tmp_path / "new")
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    old = {k: v for k, v in config.items() if k != "backbone_config"}
    old |= {"use_timm_backbone": True, "backbone": "resnet18", "use_pretrained_backbone": True, "num_channels": 3}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(old))
    renamed = {timm(name): value for name, value in tensors.items()}
    assert "model.backbone.conv_encoder.model.layer2.0.downsample.1.running_var" in renamed
    save_file(renamed, tmp_path / "old" / "model.safetensors")
    again = af.load(tmp_path / "old").eval()
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in model.state_dict().items())
    again.save(tmp_path / "back")
    assert load_file(tmp_path / "back" / "model.safetensors").keys() == renamed.keys()
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {name: back.get(name) for name in old} == old


def test_published_configs():
    if not CONFIGS.is_dir():
        pytest.skip(f"there are no published files in {CONFIGS}")
    model = outline(CONFIGS / "bone-fracture-detr.config.json")
    assert model.config == af.page("detr").at("r50", classes=5)
    lines = {line.key: line for line in model.ledger.config}
    assert lines["backbone"].status == "used" and lines["auxiliary_loss"].status == "ignored"


NAMED = {"model_type": "timm_backbone", "backbone": "resnet18"}


@pytest.mark.parametrize(
    ("keys", "wide"),
    [
        ({"backbone": "resnet18", "dilation": True}, True),
        ({"backbone": "resnet18", "dilation": False}, False),
        ({"backbone_config": {**NAMED, "output_stride": 16}, "dilation": True}, True),
        ({"backbone_config": {**NAMED, "output_stride": 16}}, True),
        ({"backbone_config": {**NAMED, "output_stride": 32}}, False),
        ({"backbone_config": NAMED}, False),
    ],
)
def test_dilation_is_that_of_timms_networks(keys, wide, tmp_path):
    config = {"model_type": "detr", "architectures": ["DetrForObjectDetection"], "use_timm_backbone": True, **keys}
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = outline(tmp_path / "config.json").config.net
    assert read.dilated == wide and read.kind == "basic"


def test_dilation_is_written_as_it_came(tmp_path):
    small = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 2}
    small |= {f"{s}_{name}": 2 for s in ("encoder", "decoder") for name in ("attention_heads", "ffn_dim")}
    old = {"use_timm_backbone": True, "backbone": "resnet18", "dilation": True}
    sizes: dict[str, Any] = {
        "dim": 8, "heads": 2, "decoder_heads": 2, "hidden": 2, "decoder_hidden": 2, "queries": 2, "classes": 2,
        "net.stem": 64, "net.widths": (64, 128, 256, 512), "net.depths": (2, 2, 2, 2), "net.kind": "basic",
    }  # fmt: skip
    model = af.build("detr", "tiny", **sizes)
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    plain = {name: v for name, v in config.items() if name not in ("backbone_config", "use_timm_backbone")}
    (tmp_path / "config.json").write_text(json.dumps(plain | small | old))
    again = af.load(tmp_path)
    assert again.config.net.dilated
    again.save(tmp_path / "back")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {name: back.get(name) for name in old} == old
    new = af.build("detr", "tiny", **{"net.dilated": True})
    with pytest.warns(UserWarning, match="own format.*net.dilated"):  # no published name of this network
        new.save(tmp_path / "own")
    assert af.load(tmp_path / "own").recipe == new.recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dilation": 2}, "'dilation'.*expected true or false, got 2"),
        ({"dilation": True, "backbone_config": {"model_type": "resnet"}}, "'dilation' is True.*remove it, or name"),
        (
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50", "output_stride": 8}},
            "backbone_config.output_stride: expected 16 or 32, got 8",
        ),
        ({"backbone": "resnet26d"}, "'backbone' is 'resnet26d'.*resnet50"),
        ({"encoder_layerdrop": 0.1}, "'encoder_layerdrop'"),
        ({"backbone_config": {"model_type": "swin"}}, "backbone_config.*'model_type' is 'swin'"),
        ({"backbone_config": {"model_type": "resnet", "out_features": ["stage2"]}}, "reads the last stage, 'stage4'"),
        ({"position_embedding_type": "v3"}, "'position_embedding_type' is 'v3'"),
    ],
)
def test_what_this_page_cannot_do_is_refused(changes, message, tmp_path):
    config = {"model_type": "detr", "architectures": ["DetrForObjectDetection"], "id2label": {"0": "a", "1": "b"}}
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        outline(tmp_path / "config.json")


def test_auxiliary_losses_leave_the_stream_alone(tmp_path):
    """Theirs norms the stream after each block where the config asks for these losses, which moves the logits."""
    transformers = pytest.importorskip("transformers")
    model = af.build("detr", "tiny", decoder_depth=3, seed=0).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save(tmp_path)
    pixels = torch.randn(2, 3, 20, 17)
    theirs = transformers.DetrForObjectDetection.from_pretrained(tmp_path).eval()
    moved = transformers.DetrForObjectDetection.from_pretrained(tmp_path, auxiliary_loss=True).eval()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auxiliary_loss": True}))
    asked = af.load(tmp_path)
    with torch.no_grad():
        expected = theirs(pixels).logits
        torch.testing.assert_close(asked.eval()(pixel_values=pixels).logits, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(moved(pixels).logits, expected, atol=1e-2)
        out = asked.train()(pixel_values=pixels)
    assert len(out.deep) == 2 and all(one.keys() == {"classes", "boxes"} for one in out.deep)
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ the processor


def made(said: dict, folder: Path) -> DetectionProcessor:
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    found = read_processor(folder)
    assert isinstance(found, DetectionProcessor)
    return found


@pytest.mark.parametrize(
    "said",
    [FILE, OLD, {**FILE, "size": {"height": 9, "width": 14}}, {**FILE, "do_resize": False}, {**FILE, "resample": 3},
     {**FILE, "pad_size": {"height": 40, "width": 41}}, {**FILE, "do_pad": False, "size": {"height": 9, "width": 14}}],
)  # fmt: skip
def test_pictures_are_the_published_ones(said, tmp_path):
    pytest.importorskip("transformers")
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    theirs, ours = DetrImageProcessorPil(**said), made(said, tmp_path)
    noise = np.random.default_rng(0)
    sizes = [(24, 31), (31, 24), (20, 20), (7, 30), (20, 33), (33, 33), (2, 3), (1, 1)]
    pictures = [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    expected, found = theirs(pictures, return_tensors="pt"), ours(pictures)
    assert found.keys() == set(expected.keys())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.to(found[name].dtype), rtol=0, atol=1e-6)
    words = ours.words()
    (tmp_path / "again").mkdir()
    assert words == said and made(words, tmp_path / "again") == ours


def test_sizes_are_the_published_ones():
    pytest.importorskip("transformers")
    from transformers.image_transforms import get_size_with_aspect_ratio

    for height in (1, 2, 7, 20, 33, 333, 800, 1333, 1600):
        for width in (1, 3, 8, 20, 33, 799, 800, 1333, 2000):
            for shorter, longest in ((800, 1333), (20, 33), (33, 33)):
                wanted = get_size_with_aspect_ratio((height, width), shorter, longest)
                if min(wanted) > 0:
                    assert fitted(height, width, shorter, longest) == tuple(wanted)
    with pytest.raises(ValueError, match="1 x 5000 pixels is too thin"):
        fitted(5000, 1, 20, 33)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"shortest_edge": 20}}, "'size' is .*shortest_edge and longest_edge"),
        ({"max_size": 44}, "'max_size' is 44.*contradict"),
        ({"do_pad": False, "pad_and_return_pixel_mask": True}, "'do_pad' is False and 'pad_and_return_pixel_mask'"),
        ({"format": "coco_panoptic"}, "'format' is 'coco_panoptic'"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"image_mean": None}, "lacks 'image_mean'"),
        ({"pad_size": {"height": 4}}, "pad_size"),
    ],
)
def test_other_steps_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        made({**FILE, **changes}, tmp_path)


def test_pictures_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match="33 x 20 pixels does not fit pad_size, 20 x 30"):
        made({**FILE, "pad_size": {"height": 30, "width": 20}}, tmp_path)(Image.new("RGB", (66, 40)))
    with pytest.raises(ValueError, match="the list is empty"):
        made(FILE, tmp_path)([])
    with pytest.raises(ValueError, match="longest=30"):
        DetectionProcessor(size=(20, 20), longest=30)
    with pytest.raises(ValueError, match="needs padded=True"):
        DetectionProcessor(pad_size=(20, 20), padded=False)
