"""The example of questions: its scenes, what it asks about them, and a run from canvases to the table in a document."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "questions.py"


@pytest.fixture(scope="module")
def module() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def drawings(module: Any) -> list[Any]:
    return [Image.new("RGB", (40, 30 + i), (20 * i, 10, 90)) for i in range(len(module["KINDS"]))]


def test_answers_are_those_of_the_layout(module: Any) -> None:
    kinds, question, noise = module["KINDS"], module["question"], np.random.default_rng(0)
    cells = np.full(16, module["NOTHING"])
    cells[[5, 6, 8, 15]] = 0, 1, 2, 2  # an automobile, at its right a banana, and two cactuses
    drawn = {asked: {question(cells, asked, noise) for _ in range(60)} for asked in module["ASKED"]}
    assert drawn["left of"] == {(1, kinds[0])}
    assert drawn["which column"] == {(0, "second"), (1, "third")}
    assert drawn["is there"] == {(k, "yes" if k < 3 else "no") for k in range(len(kinds))}
    assert drawn["how many"] == {(k, "1120000000"[k]) for k in range(len(kinds))}
    empty = np.full(16, module["NOTHING"])
    assert question(empty, "left of", noise) is None and question(empty, "which column", noise) is None


def test_features_are_the_colours_of_a_cell(module: Any) -> None:
    image = Image.new("RGB", (64, 64), (255, 255, 255))
    image.paste((255, 0, 0), (16, 0, 32, 8))  # the upper half of the second cell
    feats = module["features"]([image])
    assert feats.shape == (1, 16, 64)
    expected = torch.zeros(16, 64)
    expected[1, 48] = 32**0.5  # of white, the canvas, nothing is left
    assert torch.allclose(feats[0], expected)
    assert module["corners"]()[6].tolist() == [0.5, 0.25, 0.75, 0.5]


def test_a_scene_has_its_layout_and_a_batch_its_question(module: Any, drawings: Any) -> None:
    scenes = module["Questions"](12, 0, drawings)
    taken = torch.from_numpy(scenes.cells != module["NOTHING"])
    assert torch.equal(scenes.feats.any(-1), taken)  # an empty cell has nothing but the canvas
    batch, sorts = scenes.draw(8, (0, 1))
    assert sorts == list(module["ASKED"]) * 2 and batch["labels"].shape == (8,)
    first = [module["WORDS"][i - 2] for i in batch["input_ids"][0].tolist() if i > 1]
    assert first[:3] == ["is", "there", "a"] and first[3] in module["KINDS"] and len(first) == 4
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 0).long())
    hidden = module["unasked"](batch)
    assert hidden["input_ids"].tolist() == [[1]] * 8 and torch.equal(hidden["visual_feats"], batch["visual_feats"])
    blank = module["unseen"](batch)
    assert not blank["visual_feats"].any() and torch.equal(blank["input_ids"], batch["input_ids"])


def test_questions(module: Any, drawings: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    main, marks = module["main"], module["MARKS"]
    monkeypatch.setitem(main.__globals__, "glyphs", lambda: drawings)
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    small = ["--scenes", "20", "--test", "16", "--steps", "2", "--batch", "4", "--dim", "16", "--doc", str(document)]
    monkeypatch.setattr(sys, "argv", ["questions.py", "--out", str(tmp_path / "out"), *small])
    main()
    text, said = document.read_text(), capsys.readouterr().out
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    table = text.split(f"{marks[0]}\n")[1].split(f"\n{marks[1]}")[0]
    assert table in said and all(f"| {row} |" in table for row in ("LXMERT", "question only", "objects only"))
    monkeypatch.setattr(sys, "argv", ["questions.py", "--doc", str(tmp_path / "none.md")])
    with pytest.raises(SystemExit):
        main()
