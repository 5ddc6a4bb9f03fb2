"""IDEFICS's files: configs, processors, positions, tables in two pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pillow
from torch.nn import functional as F

import anyformer as af
from anyformer.core.taps import Taps
from anyformer.generate import generate
from anyformer.hub.load import outline
from anyformer.models.flamingo import Latents
from tests.hub.test_flamingo import HOLE, built, picture, processor

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "configs" / "idefics"


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="there are no published files")
def test_a_published_config_is_read_with_its_resampler():
    model = outline(CONFIGS / "tiny-random-idefics.config.json")
    c = model.config
    assert (c.extra, c.placeholder, c.each, c.every) == (2, 32001, True, 1)
    assert (c.resampler.latents, c.resampler.depth, c.image.dim, c.image.image) == (16, 2, 32, 30)


CONFIG: dict[str, Any] = {
    "model_type": "idefics", "architectures": ["IdeficsForVisionText2Text"], "hidden_size": 32, "vocab_size": 120,
    "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "max_position_embeddings": 64,
    "vision_config": {"embed_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 36,
                      "image_size": 8, "patch_size": 4},
}  # fmt: skip
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unused resampler with an unknown key": ({"perceiver_config": {"depth": 3}}, "perceiver_config.depth=3"),
    "a switch that is no switch": ({"use_resampler": "yes"}, "'use_resampler' is 'yes'; expected true or false"),
    "an unknown kind of gate": ({"alpha_type": "matrix"}, "'alpha_type' is 'matrix'; expected one of float, vector"),
    "two sizes": ({"vision_config": {**CONFIG["vision_config"], "image_size": [8, 12]}}, "squares only"),
    "gates that do not divide the blocks": ({"cross_layer_interval": 3}, "every=3 does not divide depth=2"),
}


def test_the_default_is_no_resampler(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    c = outline(path).config
    assert c.resampler is None and c.placeholder is None and c.extra == 0
    path.write_text(
        json.dumps(CONFIG | {"perceiver_config": {"use_resampler": True}})
    )  # the inner key counts for nothing
    assert outline(path).config.resampler is None
    path.write_text(json.dumps(CONFIG | {"use_resampler": True}))
    assert outline(path).config.resampler == Latents()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_configs_are_refused(name, tmp_path):
    changes, said = WRONG[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG | changes))
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        outline(path)


def test_a_folder_keeps_its_image_processor(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = built()
    model.processor = processor()
    model.save(tmp_path)
    again = af.load(tmp_path)
    assert again.processor == model.processor
    theirs = transformers.IdeficsImageProcessorPil.from_pretrained(tmp_path)
    image = Pillow.fromarray(picture(0))
    torch.testing.assert_close(theirs(image, return_tensors="pt")[0], again.processor(image)["pixel_values"][0])
    text = [HOLE, 5]
    assert generate(again, text, images=[image], max_new_tokens=3) == generate(
        model, text, images=[image], max_new_tokens=3
    )


def test_positions_of_other_picture_sizes_are_resampled_by_size_where_theirs_adds_a_tenth(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = built()
    model.save(tmp_path)
    theirs = transformers.IdeficsForVisionText2Text.from_pretrained(tmp_path).eval()
    for height, width, same in ((8, 8, True), (12, 8, False), (16, 16, False)):
        given = torch.randn(1, 1, 3, height, width)
        inputs = {"input_ids": torch.tensor([[HOLE, 5]]), "pixel_values": given}
        mask = torch.ones(1, 2, 1, dtype=torch.long)
        with torch.no_grad():
            ours = model(**inputs).logits
            wanted = theirs(**inputs, image_attention_mask=mask, interpolate_pos_encoding=True).logits
        assert torch.allclose(ours, wanted, atol=1e-5) == same
        table = model.images.tower.embed.positions[:, 1:].unflatten(1, (2, 2)).permute(0, 3, 1, 2)
        grid = F.interpolate(table, (height // 4, width // 4), mode="bicubic")
        with Taps(model, "images.tower.embed") as taps:
            model(**inputs)
        project = model.images.tower.embed.project(given[0])
        torch.testing.assert_close(taps["images.tower.embed"][:, 1:], (project + grid).flatten(2).mT)


def test_a_tied_table_of_two_pieces_lacks_a_piece(tmp_path):
    """A file with half of the head says which half is missing."""
    from safetensors.torch import load_file, save_file

    built().save(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.additional_fc.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.additional_fc"):
        af.load(tmp_path)
