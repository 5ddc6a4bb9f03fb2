"""The measures of the example that paints emoji, on pictures with a known answer, and its whole run on a model of a
few numbers."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.data.captions import Captioned

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example() -> Any:
    return runpy.run_path(str(EXAMPLES / "emoji.py"))


def test_ranks_are_places_among_the_nearest(example: Any) -> None:
    pictures = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    samples = np.array([[0.9, 0.1], [0.0, 0.0], [1.0, 0.9]])
    assert example["ranks"](samples, np.array([1, 2, 0]), pictures).tolist() == [1, 4, 3]
    assert example["ranks"](pictures, np.arange(4), pictures).tolist() == [1, 1, 1, 1]
    twins = np.zeros((3, 2))  # equally near ones share the first place
    assert example["ranks"](twins, np.arange(3), twins).tolist() == [1, 1, 1]


def test_a_line_has_the_median_and_the_shares(example: Any) -> None:
    said = example["line"]("x", np.array([1, 1, 7, 30]), np.array([2, 14, 15, 100]))
    assert said == "| x | 4 | 0.50 | 14 | 0.50 |"
    assert example["line"]("y", None, np.array([3])).startswith("| y | – | – | 3 | 1.00")


def test_pictures_keep_their_proportions_on_white_and_the_table_is_written(example: Any, tmp_path, monkeypatch) -> None:
    drawn = [Captioned(Image.new("RGB", (40, 20), (255, 0, 0)), f"thing number {i}", "emoji") for i in range(150)]
    data, measure = example["data"], example["measure"]
    monkeypatch.setitem(data.__globals__, "emoji", lambda: drawn)
    data(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    held = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert (
        len(rows) + len(held) == 150 and len(held) >= 10 and not {r["text"] for r in rows} & {r["text"] for r in held}
    )
    pixels, names = example["read"](tmp_path, "train")
    first = pixels[0].reshape(32, 32, 3)
    assert names == [row["text"] for row in rows] and pixels.shape == (len(rows), 3072)
    assert first[0].min() == 1.0 and first[16, :, 1].max() < 0.01  # white above, red across the middle

    def paint(model: Any, texts: list[str], **_: Any) -> np.ndarray:  # a painter that knows all that it has seen
        known = {**dict(zip(names, pixels, strict=True))}
        return np.stack([255 * known.get(text, np.ones(3072)).reshape(32, 32, 3) for text in texts])

    monkeypatch.setattr(af, "paint", paint)
    monkeypatch.setattr(af, "load", lambda run: None)
    document = tmp_path / "doc.md"
    document.write_text(f"a\n{example['BEGIN']}\nold\n{example['END']}\nb\n")
    measure(tmp_path, tmp_path, tmp_path / "grid.png", document)
    table = document.read_text()
    assert "old" not in table and table.startswith("a\n") and table.endswith("b\n")
    assert "| MMDiT, guidance 1 | 1 | 1.00 |" in table and "| any picture |" in table
    assert Image.open(tmp_path / "grid.png").height == 4 * 32


def test_candidates_are_judged_by_pixels_and_by_a_second_tower(example: Any, tmp_path, monkeypatch, capsys) -> None:
    ranking, colours = runpy.run_path(str(EXAMPLES / "ranking.py")), np.random.default_rng(0).integers(0, 256, (150, 3))
    plain = [Image.new("RGB", (32, 32), tuple(colour)) for colour in colours.tolist()]
    drawn = [Captioned(image, f"thing number {i}", "emoji") for i, image in enumerate(plain)]
    monkeypatch.setitem(example["data"].__globals__, "emoji", lambda: drawn)
    example["data"](tmp_path)

    def paint(model: Any, texts: list[str], **o: Any) -> np.ndarray:  # the right picture, white ones, a wrong picture
        assert o["candidates"] == o["count"] == 16 and o["rank"] == "clip"
        right = [np.tile(colours[int(text.split()[-1])].astype(np.uint8), (32, 32, 1)) for text in texts]
        white = np.full((32, 32, 3), 255, np.uint8)
        return np.stack([p for one, wrong in zip(right, right[1:] + right[:1], strict=True)
                         for p in (one, *[white] * 14, wrong)])  # fmt: skip

    def embed(model: Any, items: list[Any]) -> torch.Tensor:
        assert model == "judge"
        seen = [colours[int(i.split()[-1])] if isinstance(i, str) else i.reshape(-1, 3).mean(0) for i in items]
        return torch.from_numpy(np.stack(seen).astype(np.float32))

    monkeypatch.setattr(af, "paint", paint)
    monkeypatch.setattr(af, "load", str)
    for name, value in (("find", str), ("embed", embed)):
        monkeypatch.setitem(ranking["main"].__globals__, name, value)
    document = tmp_path / "doc.md"
    document.write_text(f"{ranking['BEGIN']}\n{ranking['END']}\n")
    words = ["dalle", "clip", "judge", str(tmp_path), "--doc", str(document), "--grid", str(tmp_path / "grid.png")]
    monkeypatch.setattr(sys, "argv", ["ranking.py", *words])
    ranking["main"]()
    said = capsys.readouterr().out
    assert said.strip() in document.read_text()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in said.splitlines() if row.startswith("| ")]
    first, last = ([row for row in rows if row[0] == f"the {w} by CLIP"] for w in ("first", "last"))
    assert len(first) == 2 and all(row[1:] == ["1", "1.00", "1", "1.00"] for row in first)
    assert all(float(row[1]) > 1 and float(row[3]) > 1 for row in last)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (8 * 36 * 2, 7 * 36 * 2)
