"""The processor of a model of images: training uses it, makes one where there is none, and every folder keeps it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.hub.processors import ImageProcessor
from anyformer.train import finetune, train
from anyformer.train.tasks import rows, splits, tables
from anyformer.train.tasks.encode import RowEncoder

FILE = "preprocessor_config.json"
OWN = {
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 9}, "crop_size": 8, "resample": 2,
    "image_mean": [0.2, 0.3, 0.4], "image_std": [0.6, 0.7, 0.8],
}  # fmt: skip


@pytest.fixture
def place(tmp_path):
    """A folder of pictures of two colours, and a model of them."""
    rng = np.random.default_rng(0)
    for name, hue in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.clip(rng.normal(hue, 20, (12, 10, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    af.build("vit", "tiny", image=8, seed=0).save(tmp_path / "vit")
    return tmp_path


def trained(place, **options):
    given = {"overrides": {"image": 8}, "steps": 2, "quiet": True, "out": place / "run", **options}
    return train("vit", "tiny", data=place / "pictures", **given).checkpoint


@pytest.mark.parametrize("own", [True, False], ids=["the model's own", "none before"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_fine_tuned_model_keeps_its_processor(method, own, place):
    if own:
        (place / "vit" / FILE).write_text(json.dumps(OWN))
    folder = finetune(
        str(place / "vit"), str(place / "pictures"), method, steps=2, quiet=True, out=place / "run"
    ).folder
    assert folder is not None
    found = af.load(folder).processor
    assert found is not None and found.size == (9 if own else (8, 8))
    assert not own or json.loads((folder / FILE).read_text()) == OWN
    assert own or found.image_mean == (0.5, 0.5, 0.5)


def test_a_trained_model_has_one_that_others_read(place):
    transformers = pytest.importorskip("transformers")
    folder = trained(place)
    model = af.load(folder)
    image = Image.open(place / "pictures/red/0.png")
    ours = model.processor(image)["pixel_values"]
    theirs = transformers.ViTImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert ours.shape == (1, 3, 8, 8)
    model.save(place / "again")
    assert (place / "again" / FILE).read_bytes() == (folder / FILE).read_bytes()


def test_what_is_trained_on_is_what_the_processor_makes(place):
    (place / "vit" / FILE).write_text(json.dumps(OWN))
    model = af.load(place / "vit")
    sources = tables.read(place / "pictures", None)
    encoder = RowEncoder("images", ("image", "label"), model, ("blue", "red"), 0)
    batch = next(rows.on_rows(encoder, sources, splits.one_in_ten, 0, place / "cache").held_out(99))
    every = model.processor(sorted((place / "pictures").glob("*/*.png")))["pixel_values"]
    seen = batch["pixel_values"]
    assert len(seen) and all(any(torch.equal(row, one) for one in every) for row in seen)
    model.processor = ImageProcessor(size=(8, 8), image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    other = next(rows.on_rows(encoder, sources, splits.one_in_ten, 0, place / "cache").held_out(99))
    assert not torch.equal(batch["pixel_values"], other["pixel_values"])  # from the same stored examples


def test_an_old_checkpoint_without_one_goes_on(place):
    folder = trained(place, save_every=1)
    (folder / FILE).unlink()
    more = trained(place, steps=4, save_every=1, resume=True)
    assert (more / FILE).exists()


def test_a_bad_file_is_named_and_nothing_is_loaded(place):
    (place / "vit" / FILE).write_text(json.dumps({**OWN, "crop_pct": 0.9}))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: .*crop_pct"):
        af.load(place / "vit")


def test_a_model_of_text_does_not_read_pictures(tmp_path):
    af.build("bert", "tiny", seed=0).save(tmp_path)
    (tmp_path / FILE).write_text("{}")
    assert af.load(tmp_path).processor is None


def test_inspect_shows_the_steps(place, capsys):
    from anyformer.cli import main

    (place / "vit" / FILE).write_text(json.dumps(OWN))
    assert main(["inspect", str(place / "vit")]) == 0
    out = capsys.readouterr().out
    assert "processor" in out and "shorter edge to 9 (bilinear)" in out and "minus (0.2, 0.3, 0.4)" in out
