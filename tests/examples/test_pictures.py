"""The measures of the example that makes pictures, on numbers with a known answer."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    return lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_frechet_distance_is_that_of_gaussians(example: Any) -> None:
    distance = example("pictures")["distance"]
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)).double()
    assert distance(x, x) == pytest.approx(0, abs=1e-9)
    assert distance(x, x + torch.tensor([3.0, 0.0, 4.0])) == pytest.approx(25)
    mean = x.mean(0)
    assert distance(x, mean + 2 * (x - mean)) == pytest.approx(float(x.T.cov().trace()), rel=1e-6)  # (2 - 1)^2 tr C


def test_gaussians_of_a_class_have_its_mean_and_spread(example: Any) -> None:
    module = example("pictures")
    noise = torch.Generator().manual_seed(0)
    images = (torch.randn(2000, 1, 28, 28, generator=noise) * 0.1 + torch.linspace(-0.5, 0.5, 28)).clamp(-1, 1)
    labels = torch.arange(2000) % 10
    drawn = module["gaussians"](images, labels)
    assert drawn.shape == (10 * module["EACH"], 1, 28, 28)
    assert (drawn.mean((0, 1, 2)) - images.mean((0, 1, 2))).abs().max() < 0.02


def test_the_config_is_one_of_train() -> None:
    from anyformer.train.options import TrainOptions

    yaml = pytest.importorskip("yaml")
    TrainOptions(**yaml.safe_load((EXAMPLES / "pictures.yaml").read_text()))
