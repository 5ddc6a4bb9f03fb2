"""Questions about objects are learned from rows, by the options of all tasks, and answered from rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.generate import answer
from anyformer.train import finetune, train

KINDS = ("cat", "dog", "owl")


def row(number: int, noise: np.random.Generator) -> dict[str, Any]:
    """One to three objects, each of a kind by one feature and in a corner; what stands on the left is asked."""
    count = 1 + number % 3
    kinds = noise.permutation(3)[:count]
    features = np.eye(4)[kinds] + noise.normal(0, 0.1, (count, 4))
    lefts = noise.permutation(3)[:count] / 4
    boxes = [[float(x), 0.0, float(x) + 0.25, 1.0] for x in lefts]
    label = KINDS[kinds[int(np.argmin(lefts))]] if number % 2 else str(count)
    question = "what is on the left" if number % 2 else "how many are there"
    return {"question": question, "features": features.round(3).tolist(), "boxes": boxes, "label": label}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, noise = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    rows = [row(i, noise) for i in range(240)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


@pytest.fixture(scope="module")
def learned(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    given: dict[str, Any] = {
        "overrides": {"dim": 32, "hidden": 64},
        "steps": 150,
        "batch": 32,
        "lr": 1e-2,
        "vocab": 300,
    }
    out = tmp_path_factory.mktemp("run") / "run"
    return train("lxmert", "tiny", data=place / "rows.jsonl", out=out, quiet=True, warmup=5, save_every=75, **given)


def test_answers_are_learned_from_rows_and_given_by_name(learned, place):
    assert learned.task == "answer" and learned.held_out < 0.5 * learned.baseline
    model: Any = af.load(learned.checkpoint)
    assert model.config.features == 4 and model.config.answers == 6 and model.config.task == "answer"
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()][:40]
    ranked = answer(model, rows, batch=7)
    assert np.mean([next(iter(shares)) == one["label"] for shares, one in zip(ranked, rows, strict=True)]) > 0.7
    alone = answer(model, rows[2:3])[0]
    assert alone == pytest.approx(ranked[2], abs=1e-5)  # fewer objects and a shorter question than its neighbours
    given: dict[str, Any] = {"steps": 2, "batch": 8, "quiet": True, "method": "lora"}
    again = finetune(str(learned.checkpoint), data=place / "rows.jsonl", out=place / "tuned", **given)
    assert again.task == "answer" and again.model.origin["classes"] == ["1", "2", "3", *KINDS]
    strange = [{**one, "label": "newt"} for one in rows[:3]] + rows
    (place / "strange.jsonl").write_text("".join(json.dumps(one) + "\n" for one in strange))
    with pytest.raises(ValueError, match="the model has no answer 'newt': its 6 are 1, 2, 3, cat, dog, owl"):
        finetune(str(learned.checkpoint), data=place / "strange.jsonl", out=place / "other", **given)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another width": (
        {"features": [[1.0, 2.0]]},
        r"features must be a list of objects, 4 finite numbers each.*\(1, 2\)",
    ),
    "no objects": ({"features": []}, "features must be a list of objects"),
    "words": ({"features": [["a", "b", "c", "d"]]}, "features must be a list of objects"),
    "boxes of others": ({"boxes": [[0, 0, 1, 1]] * 5}, "has features of 1 objects and boxes of 5"),
    "not finite": ({"boxes": [[0, 0, 1, float("nan")]]}, "boxes must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_rows_that_are_no_questions_about_objects_are_refused(name, learned):
    changes, message = BAD[name]
    good = {"question": "how many are there", "features": [[1.0, 0.0, 0.0, 0.0]], "boxes": [[0.0, 0.0, 1.0, 1.0]]}
    with pytest.raises(ValueError, match=f"row 1.*{message}" if "must" not in message else f"row 1: {message}"):
        answer(learned.model, [good, {**good, **changes}])


def test_models_without_answers_or_objects_are_refused():
    question = [{"question": "a", "features": [[0.0]], "boxes": [[0, 0, 1, 1]]}]
    with pytest.raises(ValueError, match="bert answers no questions about objects: it reads input_ids"):
        answer(af.build("bert", "tiny"), question)
    with pytest.raises(ValueError, match="task='answer'"):
        answer(af.build("lxmert", "tiny", task="none"), question)
    with pytest.raises(ValueError, match="the list is empty"):
        answer(af.build("lxmert", "tiny", task="answer"), [])


def test_training_inputs_are_those_of_answering(learned, place):
    """The same logits from the batches of the task as from `answer`."""
    from anyformer.generate.answering import asked, together
    from anyformer.train.tasks.base import collate

    model: Any = af.load(learned.checkpoint)
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()][:5]
    examples = [asked(model, one, i) for i, one in enumerate(rows)]
    marked = [{**one, "visual_attention_mask": np.ones(len(one["visual_feats"]), np.int64)} for one in examples]
    with torch.no_grad():
        one, two = model(**collate(marked, model.tokenizer.pad_id)).logits, model(**together(model, examples)).logits
    torch.testing.assert_close(one, two)
