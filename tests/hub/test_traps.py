"""What the users of other libraries suffer with pictures, and this one does not: traps that no other file holds
(docs/traps.md lists all of them, with their tests)."""

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer.generate.diffusion import sample
from anyformer.hub.load import outline
from anyformer.hub.noising import DDPM
from anyformer.parts.ffn import ACTIVATIONS
from anyformer.train.model_setup import with_processor

ROOT = Path(__file__).parents[2]
TABLE = re.findall(r"^\| (\d+) \| .* \| (.+?) \|$", (ROOT / "docs" / "traps.md").read_text(), re.M)


def test_the_document_names_a_test_for_each_of_all_traps() -> None:
    assert [int(number) for number, _ in TABLE] == list(range(1, 85))


@pytest.mark.parametrize(("number", "named"), TABLE)
def test_the_tests_that_the_document_names_are_there(number: str, named: str) -> None:
    found = re.findall(r"`(\w+/test_\w+)\.(\w+)`", named)
    assert found or "`contract" in named
    for file, name in found:
        assert f"def {name}(" in (ROOT / "tests" / f"{file}.py").read_text(), f"{number}: {file}.{name}"
    for name in re.findall(r"`contract/(\w+)\.(\w+)`", named):
        assert f"def {name[1]}(" in (ROOT / "src/anyformer/contract" / f"{name[0]}.py").read_text()


def config(folder: Path, page: str, **changes: Any) -> Path:
    """The config.json of a tiny model, changed."""
    af.build(page, "tiny", seed=0).save(folder)
    content = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        *outer, last = path.split("__")
        inside = content
        for name in outer:
            inside = inside[name]
        inside[last] = value
    (folder / "config.json").write_text(json.dumps(content))
    return folder / "config.json"


def test_a_grid_that_is_no_square_is_not_taken_for_one(tmp_path: Path) -> None:
    """Trap 11: positions of 2 x 8 patches are as many as those of 4 x 4."""
    with pytest.raises(ValueError, match="image_size"):
        outline(config(tmp_path, "vit", image_size=[8, 32]))
    model = af.build("vit", "tiny", seed=0).eval()
    side = model.embed.grid
    wide = model(pixel_values=torch.randn(1, 3, model.embed.patch * 2, model.embed.patch * 2 * side)).hidden
    assert wide.shape[1] == 1 + 2 * 2 * side  # the picture's own rows and columns


@pytest.mark.parametrize(("named", "wanted"), [("quick_gelu", "quick_gelu"), ("gelu", "gelu")])
def test_the_activation_is_the_files(named: str, wanted: str, tmp_path: Path) -> None:
    """Trap 14."""
    model = outline(config(tmp_path, "clip", vision_config__hidden_act=named, text_config__hidden_act=named))
    acts = {id(m.act) for m in model.modules() if hasattr(m, "act")}
    assert acts == {id(ACTIVATIONS[wanted])}
    x = torch.linspace(-3, 3, 9)
    assert (ACTIVATIONS["quick_gelu"](x) - F.gelu(x)).abs().max() > 0.01
    torch.testing.assert_close(ACTIVATIONS["quick_gelu"](x), x * torch.sigmoid(1.702 * x))
    with torch.no_grad():
        torch.testing.assert_close(ACTIVATIONS["quick_gelu"](x), x * torch.sigmoid(1.702 * x), rtol=0, atol=0)


def test_an_unknown_activation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vision_config: config key 'hidden_act' is 'fast_gelu'"):
        outline(config(tmp_path, "clip", vision_config__hidden_act="fast_gelu"))


@pytest.mark.parametrize(("whole", "inner", "tied"), [(True, False, True), (False, True, False), (True, True, True)])
def test_omnis_table_is_tied_by_the_outer_word_alone(whole: bool, inner: bool, tied: bool, tmp_path: Path) -> None:
    """Trap 21: the other rule than LLaVA's."""
    path = config(tmp_path, "omni", tie_word_embeddings=whole, text_config__tie_word_embeddings=inner)
    assert outline(path).config.tied is tied


@torch.no_grad()
def test_places_of_media_do_not_wait_for_a_mask_and_no_call_leaves_any(tmp_path: Path) -> None:
    """Traps 25 and 26: the same with a mask of ones, and for two texts that are continued in turns."""
    model: Any = af.build("omni", "tiny", seed=0).eval()
    given = [model.example(1, {"": (n,)}, torch.Generator().manual_seed(n)) for n in (20, 24)]
    wanted = [model(**one).logits for one in given]
    for one, logits in zip(given, wanted, strict=True):
        ones = torch.ones_like(one["input_ids"])
        torch.testing.assert_close(model(**one, attention_mask=ones).logits, logits)
    more = torch.tensor([[1, 2, 3]])
    alone = []
    for one in given:
        state = model.start(1)
        model(**one, state=state)
        alone.append(model(input_ids=more, state=state).logits)
    states = [model.start(1) for _ in given]
    for one, state in zip(given, states, strict=True):
        model(**one, state=state)
    for i in (1, 0):  # in turns: no module remembers where the other text stood
        turns = [model(input_ids=more[:, n : n + 1], state=states[i]).logits for n in range(3)]
        torch.testing.assert_close(torch.cat(turns, 1), alone[i], rtol=1e-4, atol=1e-5)


def test_ddim_goes_to_the_next_time_of_its_list() -> None:
    """Trap 34: 7 steps do not divide 1,000 times. A model that knows the clean picture is asked at the times of the
    list alone, and what it is given has the noise of exactly that time."""
    noising, clean = DDPM(predicts="sample", sampler="ddim"), torch.full((3, 4, 4), 0.25)
    times = noising.times(7)
    assert len({round(a - b) for a, b in itertools.pairwise(times)}) > 1  # no fixed stride
    asked, held = list[float](), list[torch.Tensor]()

    class Knows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noising = noising
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, pixel_values: torch.Tensor, timestep: torch.Tensor, **_: Any) -> Any:
            asked.append(float(timestep[0]))
            held.append(pixel_values)
            said = clean.expand_as(pixel_values)
            return SimpleNamespace(logits=said, heads={"noise": said})

    model: Any = Knows()
    labels = {"class_labels": torch.tensor([0])}
    made = sample(model, (3, 4, 4), labels, labels, 7, 1.0, "ddim", 0.0, torch.Generator().manual_seed(0))
    assert asked == pytest.approx(times)
    torch.testing.assert_close(made[0], clean, rtol=0, atol=1e-4)
    first = held[0]
    a, b = noising.scales(times[0])
    noise = (first - a * clean) / b
    for time, x in zip(times, held, strict=True):
        a, b = noising.scales(time)
        torch.testing.assert_close(x, a * clean + b * noise, rtol=1e-4, atol=1e-4)


def test_bytes_scaled_by_hand_are_seen_as_they_are() -> None:
    """Trap 42: floats of 0 to 1 are the same picture as bytes, and nothing is divided by 255 twice."""
    model: Any = af.build("vit", "tiny", seed=0)
    with_processor(model)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for other in (pixels / 255, (pixels / 255).astype(np.float32), torch.from_numpy(pixels).movedim(2, 0)):
        torch.testing.assert_close(model.processor(other)["pixel_values"], model.processor(pixels)["pixel_values"])
