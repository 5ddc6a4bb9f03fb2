"""The measures of the examples that make pictures, on numbers with a known answer, and a run on a few pictures."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anyformer.data.captions import Captioned

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


def test_ranks_count_the_pictures_that_are_nearer(example: Any) -> None:
    ranks = example("emoji")["ranks"]
    pictures = np.array([[0.0], [1.0], [2.0], [5.0]])
    assert ranks(np.array([[0.1], [4.0], [1.4]]), np.array([0, 2, 3]), pictures).tolist() == [1, 2, 4]


def test_emoji_are_written_as_rows(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("emoji")
    colours = {"red heart": "red", "blue heart": "blue", "green book": "green", "orange book": "orange"}
    few = [Captioned(Image.new("RGB", (9, 7), colour), name, "emoji") for name, colour in colours.items()]
    monkeypatch.setitem(module["data"].__globals__, "emoji", lambda: few)
    monkeypatch.setitem(module["data"].__globals__, "split", lambda pairs: (pairs[:3], pairs[3:]))
    module["data"](tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == list(colours)[:3]
    pictures, names = module["read"](tmp_path, "test")
    assert pictures.shape == (1, 32 * 32 * 3) and names == ["orange book"]


def test_the_configs_are_those_of_train() -> None:
    from anyformer.train.options import TrainOptions

    yaml = pytest.importorskip("yaml")
    for name in ("pictures", "emoji"):
        TrainOptions(**yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()))
