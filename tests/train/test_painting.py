"""The task paint: pictures are noised by the number of the example, and the loss is its formula."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import anyformer as af
from anyformer.data.batches import Batch
from anyformer.hub.noising import DDPM, FlowMatching, Noising
from anyformer.train import finetune, train
from anyformer.train.objectives import counted, regression
from anyformer.train.options import TrainOptions
from anyformer.train.tasks import training_data
from anyformer.train.tasks.painting import DROPPED, MEASURED, Noised


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of pictures of two colours."""
    rng = np.random.default_rng(0)
    for name, hue in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(rng.normal(hue, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


class Plain:
    """Rows of random pictures, without a file."""

    def rows(self, first: int, count: int) -> Batch:
        every = [torch.Generator().manual_seed(100 + i) for i in range(first, first + count)]
        values = torch.stack([torch.rand(3, 4, 4, generator=g) for g in every])
        return {"pixel_values": values, "labels": torch.arange(first, first + count) % 5}


def noised(noising: Noising = FlowMatching(), **options: Any) -> Noised:
    return Noised(Plain(), noising, 5, 0, 3, **options)


def test_rows_depend_on_their_numbers_alone() -> None:
    whole = noised().rows(4, 12)
    parts = [noised().rows(first, 4) for first in (4, 8, 12)]
    assert all(torch.equal(whole[name], torch.cat([part[name] for part in parts])) for name in whole)
    other = noised(part=MEASURED).rows(4, 12)
    assert not torch.equal(whole["timestep"], other["timestep"])


@pytest.mark.parametrize("noising", [FlowMatching(shift=2.0), DDPM(predicts="velocity")], ids=str)
def test_labels_are_the_target_of_the_noised_picture(noising: Noising) -> None:
    batch, clean = noised(noising).rows(0, 64), Plain().rows(0, 64)["pixel_values"]
    for i, time in enumerate(batch["timestep"].tolist()):
        found, _ = noising.parts(batch["pixel_values"][i].double(), batch["labels"][i].double(), time)
        if noising.scales(time)[0] > 0.05:  # with less of the picture, rounding is larger than it
            torch.testing.assert_close(found, clean[i].double(), rtol=1e-3, atol=1e-3)


def test_a_share_of_the_classes_is_dropped_and_times_are_even() -> None:
    batch = noised().rows(0, 4000)
    nothing = (batch["class_labels"] == 5).float().mean().item()
    assert nothing == pytest.approx(DROPPED, abs=0.02)
    assert not (noised(dropped=0.0).rows(0, 500)["class_labels"] == 5).any()
    share = batch["timestep"].sort().values / 1000
    assert (share - torch.linspace(0, 1, 4000)).abs().max() < 0.04  # Kolmogorov's distance
    noise = batch["labels"] + Plain().rows(0, 4000)["pixel_values"]
    assert abs(noise.mean().item()) < 0.01 and noise.std().item() == pytest.approx(1, abs=0.01)


def test_the_loss_is_the_formula() -> None:
    model, batch = af.build("dit", "tiny", seed=0), noised().rows(0, 6)
    torch.nn.init.normal_(model.heads["noise"].proj.weight)
    labels = batch.pop("labels")
    with torch.no_grad():
        output = model(**batch)
        loss = regression(output, labels, counted(labels))
    torch.testing.assert_close(loss, (output.logits - labels).square().mean())


def trained(pictures: Path, out: Path, **options: Any) -> Any:
    given: dict[str, Any] = {
        "overrides": {"classes": 2},
        "steps": 4,
        "batch": 4,
        "quiet": True,
        "save_every": 2,
        "schedule": "constant",
        "warmup": 1,
    }
    given |= options
    return train("dit", "tiny", data=pictures, out=out, **given)


def weights(folder: Path) -> dict[str, Tensor]:
    return af.load(folder).state_dict()


def test_a_run_that_stops_and_resumes_is_the_same_run(pictures: Path, tmp_path: Path) -> None:
    whole = trained(pictures, tmp_path / "whole")
    trained(pictures, tmp_path / "parts", steps=2)
    resumed = trained(pictures, tmp_path / "parts", resume=True)
    one, other = weights(whole.checkpoint), weights(resumed.checkpoint)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_in_parts_is_the_same_step(pictures: Path, tmp_path: Path) -> None:
    one = weights(trained(pictures, tmp_path / "one", steps=2).checkpoint)
    two = weights(trained(pictures, tmp_path / "two", steps=2, batch=2, accumulate=2).checkpoint)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_a_run_learns_and_keeps_classes_processor_and_noising(pictures: Path, tmp_path: Path) -> None:
    done = trained(pictures, tmp_path / "run", steps=200, batch=8, lr=1e-2, overrides={"classes": 2, "dim": 32})
    assert done.task == "paint" and done.held_out is not None and done.baseline is not None
    assert done.held_out < done.baseline * 0.9
    model = af.load(done.checkpoint)
    assert model.origin["config"]["id2label"] == {"0": "blue", "1": "red"}
    assert model.noising == FlowMatching() and model.processor.size == (8, 8)
    blue, red = af.paint(model, ["blue", "red"], steps=4, guidance=1.0, count=8).reshape(2, 8, 8, 8, 3).astype(float)
    assert blue.shape == (8, 8, 8, 3)
    redness = [float(c[..., 0].mean() - c[..., 2].mean()) for c in (red, blue)]
    assert redness[0] > 40 and redness[1] < -40, redness  # 180 and -180 in the data


def test_fine_tuning_goes_on_from_a_model(pictures: Path, tmp_path: Path) -> None:
    start = trained(pictures, tmp_path / "run").checkpoint
    tuned = finetune(str(start), str(pictures), "lora", steps=2, quiet=True, out=tmp_path / "tuned")
    assert tuned.task == "paint" and tuned.folder is not None and af.load(tuned.folder).noising == FlowMatching()


def test_a_noising_of_the_files_is_used(pictures: Path, tmp_path: Path) -> None:
    model = af.build("dit", "tiny", seed=0, overrides={"classes": 2})
    model.noising = DDPM(predicts="velocity")
    model.save(tmp_path / "start")
    options = TrainOptions(data=pictures, model=str(tmp_path / "start"), seed=3)
    from anyformer.train.model_setup import with_processor

    task = training_data("paint", options).task(with_processor(af.load(tmp_path / "start")), None)
    batch = task.rows.rows(0, 8)
    assert (batch["timestep"] == batch["timestep"].floor()).all()


def test_a_model_of_files_without_a_noising_is_refused(pictures: Path, tmp_path: Path) -> None:
    af.build("dit", "tiny", seed=0, overrides={"classes": 2}).save(tmp_path / "start")
    with pytest.raises(ValueError, match=r"start has no scheduler_config\.json.*diffusers keeps it"):
        finetune(str(tmp_path / "start"), str(pictures), "full", steps=1, quiet=True, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"classes": 2, "out": 6}, "says 6 channels of pictures with 3"), ({"classes": 7}, "has 2 classes, the model 7")],
)
def test_a_model_that_does_not_fit_is_refused(
    pictures: Path, tmp_path: Path, overrides: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trained(pictures, tmp_path / "run", overrides=overrides)


@pytest.fixture
def captions(pictures: Path) -> Path:
    """The same pictures as rows with a text."""
    rows = [
        {"image": str(path.relative_to(pictures)), "text": f"a {path.parent.name} square"}
        for path in sorted(pictures.glob("*/*.png"))
    ]
    file = pictures / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


SMALL = {"dim": 32, "text": 32, "pooled": 32}


def test_a_model_of_texts_learns_with_an_encoder_of_its_own(captions: Path, tmp_path: Path) -> None:
    given: Any = {"overrides": SMALL, "batch": 8, "quiet": True, "lr": 1e-2, "vocab": 280}
    done = train("mmdit", "tiny", data=captions, steps=200, out=tmp_path / "run", **given)
    assert done.task == "paint" and done.held_out is not None and done.baseline is not None
    assert done.held_out < done.baseline * 0.9
    model = af.load(done.checkpoint)
    assert type(model).__name__ == "Painter" and model.noising == FlowMatching()
    red, blue = (af.paint(model, f"a {hue} square", steps=4, guidance=1.0, count=8).astype(float) for hue in HUES)
    redness = [float(c[..., 0].mean() - c[..., 2].mean()) for c in (red, blue)]
    assert redness[0] > 40 and redness[1] < -40, redness
    assert not np.array_equal(red, af.paint(model, "a red square", steps=4, guidance=3.0, count=8))


HUES = ("red", "blue")


def test_texts_are_dropped_by_number_and_are_the_empty_text_then(captions: Path, tmp_path: Path) -> None:
    done = train("mmdit", "tiny", data=captions, steps=1, out=tmp_path / "run", quiet=True, overrides=SMALL, vocab=280)
    task = training_data("paint", TrainOptions(data=captions, model="mmdit", seed=3)).task(done.model, 64)
    batch = task.rows.rows(0, 200)
    empty = done.model.tokenizer.encode("")
    ids, keep = batch["input_ids"], batch["attention_mask"].bool()
    texts = [row[real].tolist() for row, real in zip(ids, keep, strict=True)]
    share = sum(text == empty for text in texts) / len(texts)
    assert 0.03 < share < 0.2 and all(len(text) > 2 for text in texts if text != empty)


def test_states_and_vector_of_different_widths_are_refused(captions: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="states are 10 wide and its vector 6"):
        train("mmdit", "tiny", data=captions, steps=1, out=tmp_path / "run", quiet=True, vocab=280)


def test_published_states_are_not_painted_from_a_word() -> None:
    with pytest.raises(ValueError, match=r"reads encoder_attention_mask, encoder_hidden_states, .*generate.diffusion"):
        af.paint(af.build("mmdit", "tiny"), "a cat")
