"""The example of trees runs from photographs to the table in a document; its squares keep their boxes."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import anyformer as af
from anyformer.hub.processors import from_scratch

EXAMPLE = Path(__file__).parents[2] / "examples" / "trees.py"
SIDE = 32


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = runpy.run_path(str(EXAMPLE))
    for name, value in (("SIDE", SIDE), ("SEEN", SIDE)):
        monkeypatch.setitem(made["main"].__globals__, name, value)
    return made


def photograph() -> tuple[Any, np.ndarray]:
    """Green discs on sand, and their corners."""
    picture, noise, corners = Image.new("RGB", (140, 70), (180, 160, 120)), np.random.default_rng(0), list[Any]()
    for x in range(4, 130, 14):
        top, wide = int(noise.integers(0, 50)), int(noise.integers(8, 13))
        ImageDraw.Draw(picture).ellipse((x, top, x + wide - 1, top + wide - 1), (20, 90 + x, 30))
        corners.append((x, top, x + wide, top + wide))
    return picture, np.array(corners, float)


@pytest.mark.parametrize("way", range(8))
def test_a_turned_square_has_the_same_trees(module: Any, way: int) -> None:
    picture, corners = photograph()
    for square in module["squares"](picture, corners, 0, 140, 16):
        made, boxes = module["turned"](square, way)
        for old, new in zip(square[1].astype(int), boxes.astype(int), strict=True):
            before, after = (
                np.asarray(p)[y:bottom, x:right].reshape(-1, 3)
                for p, (x, y, right, bottom) in ((square[0], old), (made, new))
            )
            assert np.array_equal(np.sort(before, 0), np.sort(after, 0)) and len(before)
    assert module["turned"](square, 0)[0].tobytes() == square[0].tobytes()


def test_a_box_stays_where_half_of_it_is(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    corners = np.array([[26.0, 4, 36, 10], [28, 20, 40, 26]])
    first, second = (boxes for _, boxes in module["squares"](Image.new("RGB", (64, 32)), corners, 0, 64, 32))
    assert first.tolist() == [[26, 4, 32, 10]] and second.tolist() == [[0, 20, 8, 26]]
    monkeypatch.setitem(module["main"].__globals__, "SEEN", SIDE // 2)
    (small, half), _ = module["squares"](Image.new("RGB", (64, 32)), corners, 0, 64, 32)
    assert small.size == (SIDE // 2,) * 2 and half.tolist() == [[13, 2, 16, 5]]


def test_a_maximum_of_greenness_is_the_middle_of_a_tree(module: Any) -> None:
    picture = Image.new("RGB", (SIDE, SIDE), (180, 160, 120))
    ImageDraw.Draw(picture).ellipse((8, 12, 19, 23), (20, 90, 30))
    for way in ("greenness", "darkness"):
        found = max(module["maxima"](picture, way, 3.0, np.array((12.0, 12.0))), key=lambda one: one.score)
        assert np.abs(np.subtract(found.box, (8, 12, 20, 24))).max() <= 1


def test_trees(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    main = module["main"]
    monkeypatch.setitem(main.__globals__, "photographs", lambda: [photograph()])
    model = af.build("detr", "tiny", norm="group", seed=0)
    model.processor = from_scratch(channels=3)
    model.save(tmp_path / "start")
    document = tmp_path / "doc.md"
    document.write_text(f"{module['BEGIN']}\nold\n{module['END']}\n")
    small = ["--steps", "2", "--batch", "4", "--table", str(document)]
    monkeypatch.setattr(
        sys, "argv", ["trees.py", "--start", str(tmp_path / "start"), "--out", str(tmp_path / "out"), *small]
    )
    main()
    said = capsys.readouterr().out
    assert "old" not in document.read_text() and said[said.index("| detector") :] in document.read_text()
    assert "| maxima of " in said and "| DETR `mini`, on from other things | " in said
    with Image.open(tmp_path / "out" / "trees.png") as drawn:
        assert drawn.size == (4 * SIDE * 4, 2 * SIDE * 4)
