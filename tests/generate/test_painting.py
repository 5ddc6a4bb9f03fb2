"""paint: pictures of a class or a text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.hub.noising import DDPM, FlowMatching
from anyformer.hub.processors import ImageProcessor, trained
from anyformer.media.picture import write

NAMES = ["cat", "dog", "bird", "fish", "fox"]


@pytest.fixture
def model() -> Any:
    made = af.build("dit", "tiny", seed=0)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.1)
    made.noising, made.processor = FlowMatching(), trained("ViTImageProcessor", 8, 8, 3)
    made.origin = {"classes": NAMES}
    return made


def test_pictures_are_bytes_and_depend_on_seed_and_class(model: Any) -> None:
    one = af.paint(model, "dog", steps=3)
    assert one.shape == (1, 8, 8, 3) and one.dtype == np.uint8
    assert np.array_equal(one, af.paint(model, "1", steps=3)) and np.array_equal(one, af.paint(model, ["dog"], steps=3))
    assert not np.array_equal(one, af.paint(model, "dog", steps=3, seed=1))
    assert not np.array_equal(one, af.paint(model, "fox", steps=3))
    both = af.paint(model, ["dog", "fox"], steps=3, count=2)
    assert both.shape == (4, 8, 8, 3) and not np.array_equal(both[0], both[1])
    assert af.paint(model, "dog", steps=2, size=(4, 12)).shape == (1, 4, 12, 3)


def test_guidance_of_zero_is_of_no_class(model: Any) -> None:
    assert np.array_equal(af.paint(model, "dog", steps=3, guidance=0.0), af.paint(model, "fox", steps=3, guidance=0.0))


def test_the_way_of_the_files_is_the_default(model: Any) -> None:
    model.noising = DDPM(sampler="ddpm")
    assert np.array_equal(af.paint(model, "dog", steps=3), af.paint(model, "dog", steps=3, sampler="ddpm"))
    assert not np.array_equal(af.paint(model, "dog", steps=3), af.paint(model, "dog", steps=3, sampler="ddim"))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_processor_gives_its_pictures_back(channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 5, channels), np.uint8)
    for processor in (trained("ViTImageProcessor", 6, 5, channels), ImageProcessor(rescale_factor=None)):
        values = processor([one if channels == 3 else one[..., 0] for one in pixels])["pixel_values"]
        assert np.array_equal(processor.pictures(values.numpy()), pixels)
    path = write(pixels[0], tmp_path / "new" / "x.png")
    assert np.array_equal(np.asarray(Image.open(path)).reshape(6, 5, channels), pixels[0])


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("cow", {}, r"no class 'cow'; it has cat, dog, bird, fish, fox"),
        ("9", {}, "no class '9'"),
        ([], {}, "needs something to paint"),
        ("cat", {"count": 0}, "a count of at least 1"),
        ("cat", {"size": (9, 8)}, "no whole number of patches of 2"),
        ("cat", {"steps": 0}, "steps must be from 1 to 1000"),
        ("cat", {"sampler": "heun"}, "sampler must be one of"),
    ],
)
def test_mistakes_are_named(model: Any, what: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        af.paint(model, what, **{"steps": 2, **options})


def test_models_that_make_no_pictures_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="a CausalLM makes no pictures"):
        af.paint(af.build("llama", "tiny"), "cat")
    model.processor = None
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json.*latents"):
        af.paint(model, "cat")
