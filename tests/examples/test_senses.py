"""The parts of the example of senses, on a few things."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from anyformer.data.captions import Captioned

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example() -> Any:
    return runpy.run_path(str(EXAMPLES / "senses.py"))


@torch.no_grad()
def test_a_batch_holds_each_examples_own_media_in_its_own_order(example: Any, tmp_path) -> None:
    """Together and alone the scores are the same, and another thing's media are another thing."""
    soundfile.write(tmp_path / "a.ogg", np.sin(np.arange(9000) / 7) * 0.2, 16000)
    model, processor = example["network"](30)
    words = {"red": 20, "thing": 21}
    drawn = (((40, 20), "red", "A red thing."), ((9, 30), "blue", "A thing!"), ((16, 16), "green", "?"))
    stamps = [Captioned(Image.new("RGB", size, hue), text, "b", tmp_path / "a.ogg") for size, hue, text in drawn]
    things = [example["thing"](stamp, ["a", "b"], words, processor) for stamp in stamps]
    assert things[0].words == [example["UNKNOWN"], 20, 21] and things[0].kind == 1
    frames, rate = example["pan"](Image.new("RGB", (40, 20)))
    assert {frame.size for frame in frames} == {(30, 15)} and (len(frames), rate) == (6, 4.0)
    senses = [["picture"], ["written", "video", "spoken", "picture"], []]
    model.eval()
    together = model(**example["inputs"](model, things, senses), last=True).logits[:, 0]
    for one, chosen, wanted in zip(things, senses, together, strict=True):
        alone = model(**example["inputs"](model, [one], [chosen]), last=True).logits[0, 0]
        torch.testing.assert_close(alone, wanted, rtol=1e-4, atol=1e-4)
    share = example["right"]
    assert share(model, things, 2, ["picture"]) in (0.0, 1 / 3, 2 / 3, 1.0)
    swapped = example["inputs"](model, [things[1]], [["picture"]])
    assert not torch.allclose(model(**swapped, last=True).logits[0, 0], together[0])
    assert [example["sense_of"](n) for n in ("grid_thw", "video_seconds", "input_features")] == [
        "picture",
        "video",
        "spoken",
    ]
