"""Captions are learned from rows of pictures and texts, by every method, and the model that learned them opens
elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.generate import caption
from anyformer.hub.processors import CubeProcessor, ImageProcessor, trained
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.skeletons import Medium, add_media
from anyformer.train import finetune, train
from anyformer.train.objectives import IGNORE
from anyformer.train.tasks.encode import RowEncoder

COLOURS = ("red", "green", "blue")
SMALL = {"image.image": 8, "image.patch": 4, "image.depth": 2, "text.depth": 1, "text.dim": 32, "text.context": 64}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three colours with their captions, and questions about them."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    captions, questions = [], []
    for i in range(60):
        pixels = rng.normal(20, 5, (9, 12, 3))
        pixels[..., i % 3] += 200
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        captions.append({"image": f"{i}.png", "text": f"a {COLOURS[i % 3]} one"})
        questions.append({"image": f"{i}.png", "prompt": "which?", "response": COLOURS[i % 3]})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder


@pytest.fixture(scope="module")
def learned(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A LLaVA that learned the captions from nothing."""
    given: dict[str, Any] = {"overrides": SMALL, "steps": 60, "batch": 16, "lr": 1e-2, "warmup": 5, "vocab": 270}
    out = tmp_path_factory.mktemp("run") / "run"
    return train("llava", "tiny", data=place / "captions.jsonl", out=out, quiet=True, save_every=30, **given)


def test_captions_are_learned_from_nothing_and_open_elsewhere(learned, place):
    assert learned.task == "caption" and learned.held_out < 0.2 * learned.baseline
    model: Any = af.load(learned.checkpoint)
    files = [place / f"{i}.png" for i in range(3)]
    assert caption(model, files, max_new_tokens=12) == [f"a {name} one" for name in COLOURS]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(learned.checkpoint).eval()
    ids = torch.tensor([[*[*model.placeholders] * 4, 5, 6]])
    pixels = model.processor(files[:1])["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids, pixel_values=pixels).logits, theirs(input_ids=ids, pixel_values=pixels).logits
        )


def test_a_run_goes_on_as_if_it_had_not_stopped(learned, place, tmp_path):
    given: dict[str, Any] = {"overrides": SMALL, "batch": 16, "lr": 1e-2, "warmup": 5, "vocab": 270, "quiet": True}
    half = learned.checkpoint.with_name("step-000030")
    again = train(
        "llava", "tiny", data=place / "captions.jsonl", out=tmp_path / "run", steps=60, save_every=30, resume=str(half),
        **given,
    )  # fmt: skip
    for name, tensor in learned.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_the_projector_alone_learns_and_then_adapters_by_path(place, tmp_path):
    """A decoder of text whose weights stay as they are; the paths choose what is trained."""
    text: Any = af.build("llama", "tiny", vocab=257, seed=0)
    text.tokenizer = Tokenizer.bytes_level()
    model: Any = add_media(text, image=Medium.of(token=257, tower=af.recipe("vit", "tiny", image=8, patch=4), cut=1))
    model.tokenizer = model.tokenizer.with_special(257, "<image>")
    model.save(tmp_path / "start")
    common: dict[str, Any] = {"data": str(place / "captions.jsonl"), "batch": 16, "quiet": True, "lr": 1e-2}
    only = ["media.image.project.**"]
    first = finetune(str(tmp_path / "start"), method="full", trainable=only, steps=5, out=tmp_path / "a", **common)
    assert first.task == "caption" and first.after is not None and first.after < first.before
    before, after = model.state_dict(), first.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"media.image.project.{n}.{w}" for n in ("first", "second") for w in ("weight", "bias")}
    assert isinstance(first.model.processor, ImageProcessor)
    common |= {"lr": 3e-3, "method": "lora", "targets": ["blocks.**"], "out": tmp_path / "b"}
    second = finetune(str(first.checkpoint), trainable=only, steps=5, **common)
    tuned = second.model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], tuned[name])}
    assert any(name.startswith("blocks.") for name in changed)
    assert not any(name.startswith(("media.image.tower", "embed")) for name in changed)
    assert second.folder is not None and af.load(second.folder).placeholders == {257}


def test_what_is_counted_is_the_caption_or_the_answer_and_its_end(place):
    model: Any = af.build("llava", "tiny", seed=0, overrides={"text.vocab": 258, "token": 257})
    model.tokenizer = Tokenizer.bytes_level().with_special(257, "<image>")
    model.processor = trained("CLIPImageProcessor", 8, 8, 3)

    def encoded(columns: tuple[str, ...], row: dict[str, Any]) -> tuple[list[int], str]:
        encoder = RowEncoder("caption", columns, model, (), 60, place)
        (example,) = encoder.all([{"image": "0.png", **row}], "rows")
        assert example is not None
        ids, labels = example["input_ids"], example["labels"]
        assert all(label in (IGNORE, i) for label, i in zip(labels[:-1], ids[1:], strict=True))
        return ids.tolist(), model.tokenizer.decode([i for i in labels if i != IGNORE], skip_special=False)

    ids, said = encoded(("image", "text"), {"text": "a cat"})
    assert ids == [257] * 4 + model.tokenizer.encode("\na cat") + [256] and said == "a cat<|endoftext|>"
    asked = {"prompt": "which?", "response": "blue"}
    ids, said = encoded(("image", "prompt", "response"), asked)
    assert ids[4:] == [*model.tokenizer.encode("\nwhich?\nblue"), 256] and said == "blue<|endoftext|>"
    model.tokenizer.template = "{% for m in messages %}[{{ m.role[0] }} {{ m.content }}]{% endfor %}"
    ids, said = encoded(("image", "prompt", "response"), asked)
    assert ids == model.tokenizer.encode("[u ") + [257] * 4 + model.tokenizer.encode("\nwhich?][a blue]")
    assert "blue" in said and "which" not in said


def _start(folder: Path, processor: Any = None, name: str = "<image>", side: int = 8) -> str:
    """A model whose pictures take side * side / 16 positions."""
    model: Any = af.build("llava", "tiny", seed=0, overrides={"text.vocab": 258, "token": 257, "image.image": side})
    model.tokenizer = Tokenizer.bytes_level().with_special(257, name) if name else Tokenizer.bytes_level()
    model.processor = processor
    model.save(folder / "model")
    return str(folder / "model")


SHORTEST = ImageProcessor("CLIPImageProcessor", True, 8, 3, None, 1 / 255, (0.5,) * 3, (0.5,) * 3)
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {  # a row, the start, options
    "no picture in a row": ({"image": None}, {}, {}, "row 2: .*image"),
    "no such file": ({"image": "none.png"}, {}, {}, "row 2: there is no image .*none.png"),
    "the placeholder in a text": ({"text": "see <image>"}, {}, {}, "row 2: the text holds <image>"),
    "pictures longer than an example": (
        {},
        {"side": 16},
        {"context": 8},
        "the picture ends at token 16, and an example",
    ),
    "pictures of many sizes": ({}, {"processor": SHORTEST}, {}, "makes pictures of different sizes; give it a crop"),
    "a tokenizer without the placeholder": ({}, {"name": ""}, {}, "placeholder for pictures is token 257"),
    "a task of towers": ({}, {}, {"task": "match"}, "can be tuned to caption, write, task=match is asked for"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_and_models_that_do_not_fit_are_refused(name, place, tmp_path):
    row, start, options, message = REFUSED[name]
    good = {"image": str(place / "0.png"), "text": "a"}
    rows = [json.dumps({**good, **(row if i == 1 else {})}) + "\n" for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    given: dict[str, Any] = {"steps": 1, "batch": 2, "quiet": True, "out": tmp_path / "out", **options}
    with pytest.raises(ValueError, match=message):
        finetune(_start(tmp_path, **start), str(tmp_path / "rows.jsonl"), **given)


def test_pictures_of_any_size_are_learned_by_omni(tmp_path):
    """Each takes as many positions as its proportions make; batches mix them."""
    rng, rows = np.random.default_rng(0), []
    for i in range(40):
        pixels = rng.normal(20, 5, ((8, 12), (20, 6), (9, 9))[i % 3] + (3,))
        pixels[..., i % 2] += 200
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(json.dumps({"image": f"{i}.png", "text": COLOURS[i % 2]}))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    tokens = {"image_token": 257, "video_token": 260, "sound_token": 261, "view_around": (258, 259)}
    sizes = {"text.vocab": 270, "text.dim": 32, "text.sections": (2, 2, 1), "text.heads": 3, "sound_around": (262, 263)}
    made: Any = af.build("omni", "tiny", seed=0, overrides={**tokens, **sizes, "text.dim": 30})
    made.tokenizer = Tokenizer.bytes_level()
    for token, name in ((257, "<image>"), (258, "<seen>"), (259, "</seen>")):
        made.tokenizer = made.tokenizer.with_special(token, name)
    half = (0.5, 0.5, 0.5)
    made.processor = CubeProcessor(image_mean=half, image_std=half, patch=2, least=16, most=64)
    made.save(tmp_path / "start")
    encoder = RowEncoder("caption", ("image", "text"), af.load(tmp_path / "start"), (), 64, tmp_path)
    examples = list(encoder.all([json.loads(row) for row in rows[:3]], "rows"))
    assert len({(example["input_ids"] == 257).sum() for example in examples if example}) > 1
    given: dict[str, Any] = {"steps": 40, "batch": 8, "lr": 1e-2, "method": "full", "context": 40, "quiet": True}
    result = finetune(str(tmp_path / "start"), data=tmp_path / "rows.jsonl", out=tmp_path / "run", **given)
    assert result.task == "caption"
    model: Any = af.load(result.checkpoint)
    files = [tmp_path / f"{i}.png" for i in range(4)]
    assert caption(model, files, max_new_tokens=5) == [COLOURS[i % 2] for i in range(4)]
