"""DALL-E by the options of all tasks: a dVAE of its codes, captions, resume, adapters, and pictures of a text."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import anyformer as af
from anyformer.data.labels import IGNORE
from anyformer.generate import embed
from anyformer.generate.drawing import draw, ranked
from anyformer.hub.processors import trained
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import finetune, train
from anyformer.train.tasks import registry
from anyformer.train.tasks.drawing import Drawn
from tests.train.launched import together

pytestmark = pytest.mark.usefixtures("forked")

COLOURS = {"red": 0, "green": 1, "blue": 2}
GIVEN: dict[str, Any] = {"batch": 8, "quiet": True, "device": "cpu"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of a colour, each with its name."""
    folder, noise = tmp_path_factory.mktemp("captions"), np.random.default_rng(0)
    lines = []
    for i in range(60):
        name, channel = list(COLOURS.items())[i % 3]
        pixels = noise.integers(0, 20, (8, 8, 3))
        pixels[..., channel] += 200
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "text": f"a {name} square"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder / "captions.jsonl"


@pytest.fixture(scope="module")
def codes(rows: Path) -> Path:
    out = rows.parent / "codes"
    train("dvae", "tiny", data=rows, out=out, steps=120, lr=1e-2, warmup=5, **GIVEN)
    return out


@pytest.fixture(scope="module")
def run(rows: Path, codes: Path) -> Path:
    out = rows.parent / "run"
    done: Any = train(
        "dalle", "tiny", data=rows, codes=str(codes), vocab=280, out=out, steps=80, lr=1e-2, warmup=5, **GIVEN
    )
    assert done.task == "draw" and done.held_out < 0.5 * done.baseline
    return out


def test_the_picture_has_the_colour_of_the_text(run: Path) -> None:
    model: Any = af.load(run / "step-000080")
    assert model.coder is not None and model.processor is not None
    for name, channel in COLOURS.items():
        said = af.paint(model, f"a {name} square", temperature=0.0)
        assert said.shape == (1, 8, 8, 3) and said.dtype == np.uint8
        assert said.mean((0, 1, 2)).argmax() == channel and said[..., channel].mean() > 120
    four = af.paint(model, "a red square", count=4, seed=1, temperature=2.0)
    two = af.paint(model, "a red square", count=2, seed=1, temperature=2.0)
    assert np.array_equal(four[:2], two) and not np.array_equal(four[0], four[1])
    hand = model.coder.decode(draw(model, ["a red square"], guidance=2.0, temperature=0.0))
    pixels = (hand * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels, af.paint(model, "a red square", temperature=0.0))


def test_the_best_candidates_are_kept(run: Path) -> None:
    model, tokenizer = af.load(run / "step-000080"), registry.add_special_tokens(Tokenizer.bytes_level(), "match")
    end = tokenizer.role_id("eos_token")
    clip = af.build("clip", "tiny", seed=0, overrides={"text.vocab": 300, "text.end": end}).eval()
    clip.tokenizer, clip.processor = tokenizer, trained("CLIPImageProcessor", 16, 16, 3)
    every = af.paint(model, "a red square", count=6, temperature=3.0, seed=2)
    best = af.paint(model, "a red square", count=2, candidates=6, rank=clip, temperature=3.0, seed=2)
    likeness = embed(clip, list(every)) @ embed(clip, ["a red square"])[0]
    wanted = likeness.argsort(descending=True)[:2]
    assert np.array_equal(best, every[wanted.numpy()]) and not np.array_equal(best, every[:2])
    shares = torch.from_numpy(every).permute(0, 3, 1, 2) / 255
    assert ranked(clip, shares, "a red square")[:2].tolist() == wanted.tolist()


def test_a_resumed_run_is_the_same(rows: Path, codes: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"data": rows, "codes": str(codes), "vocab": 280, "steps": 4, **GIVEN}
    train("dalle", "tiny", out=tmp_path / "whole", save_every=2, keep_last=3, **given)
    shutil.move(tmp_path / "whole" / "step-000004", tmp_path / "kept")
    train("dalle", "tiny", out=tmp_path / "whole", save_every=2, resume=True, **given)
    one, two = (load_file(p / "model.safetensors") for p in (tmp_path / "kept", tmp_path / "whole" / "step-000004"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    before = load_file(codes / "step-000120" / "model.safetensors")
    assert all(torch.equal(one[f"coder.{name}"], value) for name, value in before.items())  # it learns nothing


def test_two_processes_are_one(rows: Path, codes: Path, tmp_path: Path) -> None:
    words = ["train", "--model", "dalle", "--size", "tiny", "--data", str(rows), "--codes", str(codes)]
    words += ["--vocab", "280", "--steps", "3", "--batch", "8", "--device", "cpu"]
    together(2, "-m", "anyformer", *words, "--out", str(tmp_path / "two"))
    train("dalle", "tiny", data=rows, codes=str(codes), vocab=280, steps=3, out=tmp_path / "one", **GIVEN)
    one, two = (load_file(tmp_path / name / "step-000003" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_adapters_learn_other_captions_and_the_coder_stays(run: Path, rows: Path, tmp_path: Path) -> None:
    done = finetune(
        str(run), rows, method="lora", steps=4, out=tmp_path / "tuned", **GIVEN
    )  # fmt: skip
    assert done.task == "draw" and done.learned < done.parameters and done.folder is not None
    before, after = (load_file(p / "model.safetensors") for p in (run / "step-000080", done.folder))
    coder = [name for name in before if name.startswith("coder.")]
    assert coder and all(torch.equal(before[name], after[name]) for name in coder)
    assert not torch.equal(before["blocks.0.mixer.inside.q.weight"], after["blocks.0.mixer.inside.q.weight"])


def test_codes_and_lost_texts_belong_to_the_number_of_an_example() -> None:
    coder: Any = af.build("dvae", "tiny", seed=0)
    pixels = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    class Some:
        def rows(self, first: int, count: int) -> dict[str, torch.Tensor]:
            text = torch.arange(first, first + count)[:, None] % 30 + torch.tensor([1, 2, 3])
            return {"pixel_values": pixels[first : first + count], "input_ids": text}

    drawn = Drawn(Some(), coder, vocab=40, places=5, seed=3)  # type: ignore[arg-type]
    whole, parts = drawn.rows(0, 40), [drawn.rows(0, 7), drawn.rows(7, 33)]
    assert all(torch.equal(whole[name], torch.cat([part[name] for part in parts])) for name in whole)
    lost = whole["input_ids"][:, 1] >= 40
    assert 0 < lost.sum() < 12
    labels = whole["labels"]
    assert bool((labels[:, :5] == IGNORE).all()) and bool((labels[:, 5:] >= 45).all())
    assert torch.equal(labels[:, 5:] - 45, coder.coded(pixels).flatten(1))
    assert not (Drawn(Some(), coder, 40, 5, 3, 0.0).rows(0, 40)["input_ids"][:, 1] >= 40).any()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"whose codes is not said: train a dVAE .*--codes runs/codes"),
        ({"codes": "RUN"}, "has no codes of pictures; train a dVAE"),
        ({"codes": "CODES", "overrides": {"codes": 9}}, "says 9 codes of pictures, and its coder has 20"),
        ({"codes": "CODES", "overrides": {"columns": 3}}, "makes 4 x 4 codes of a picture.*overrides.columns=4"),
        ({"codes": "CODES", "task": "causal"}, "cannot be trained on the task 'causal'; it can on draw"),
    ],
)
def test_mistakes_of_training_are_named(
    options: dict[str, Any], said: str, rows: Path, codes: Path, run: Path, tmp_path: Path
) -> None:
    options = {
        k: {"RUN": str(run), "CODES": str(codes)}.get(v, v) if isinstance(v, str) else v for k, v in options.items()
    }
    with pytest.raises(ValueError, match=said):
        train("dalle", "tiny", data=rows, vocab=280, out=tmp_path / "run", steps=1, **options, **GIVEN)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 3, "eta": 0.0}, "steps, eta: not for this model, which writes codes"),
        ({"candidates": 3}, "candidates=3 are ranked by a model of pictures and texts; set rank"),
        ({"rank": "MODEL"}, "rank needs a model of pictures and texts"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_mistakes_of_painting_are_named(options: dict[str, Any], said: str, run: Path) -> None:
    model: Any = af.load(run / "step-000080")
    with pytest.raises(ValueError, match=said):
        af.paint(model, "a red square", **{k: model if v == "MODEL" else v for k, v in options.items()})
    with pytest.raises(ValueError, match="no dVAE, so its codes have no pictures"):
        af.paint(af.build("dalle", "tiny"), "a")
    with pytest.raises(ValueError, match="text 0 must be at most 5 ids"):
        af.paint(model, "a red square " * 9)
