"""A dVAE learns pictures by the options of all tasks, and says them again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.data.order import Rows
from anyformer.generate import repaint
from anyformer.train import objectives, train
from anyformer.train.tasks.codes import Coded


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(60):
        pixels = np.zeros((8, 8, 3))
        pixels[..., i % 3] = 220
        pixels[: 4 if i % 2 else 8] *= 0.3
        (folder / "some").mkdir(exist_ok=True)
        (folder / "others").mkdir(exist_ok=True)
        noisy = np.clip(pixels + noise.normal(10, 4, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / ("some" if i % 2 else "others") / f"{i}.png")
    return folder


def test_pictures_are_learned_by_codes_and_said_again(place, tmp_path):
    given: dict[str, Any] = {"steps": 120, "batch": 16, "lr": 1e-2, "warmup": 5, "quiet": True}
    done: Any = train("dvae", "tiny", data=place, out=tmp_path / "run", **given)
    assert done.task == "reconstruct" and done.held_out < 0.5 * done.baseline
    model: Any = af.load(done.checkpoint)
    files = sorted(place.rglob("*.png"))
    said = repaint(model, files)
    real = np.stack([np.asarray(Image.open(file)) for file in files])
    assert (
        said.shape == real.shape and np.abs(said.astype(float) - real).mean() < 0.5 * np.abs(real - real.mean()).mean()
    )
    assert np.array_equal(said[2:3], repaint(model, files[2:3]))
    with pytest.raises(ValueError, match="a CausalLM has no codes; train one: anyformer train --model dvae"):
        repaint(af.build("gpt", "tiny"), files)


def test_noise_belongs_to_the_number_of_an_example():
    """Whatever the cut into batches; and the loss is the objective's of these samples."""
    model: Any = af.build("dvae", "tiny", seed=0)
    pixels = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    class Pictures(Rows):  # type: ignore[misc]
        def rows(self, first: int, count: int) -> dict[str, torch.Tensor]:
            return {"pixel_values": pixels[first : first + count]}

    coded = Coded(Pictures(), model, seed=3)  # type: ignore[abstract]
    whole, parts = coded.rows(0, 6), [coded.rows(0, 2), coded.rows(2, 4)]
    assert all(torch.equal(whole[name], torch.cat([part[name] for part in parts])) for name in whole)
    assert not torch.equal(whole["noise"][0], whole["noise"][1])
    assert not torch.equal(Coded(Pictures(), model, seed=4).rows(0, 1)["noise"], whole["noise"][:1])  # type: ignore[abstract]
    labels = whole.pop("labels")
    loss = objectives.reconstruction(model.train()(**whole), labels, labels.numel())
    assert float(loss) == pytest.approx(float((model(**whole).heads["pixels"] - pixels).square().mean()), rel=1e-5)
