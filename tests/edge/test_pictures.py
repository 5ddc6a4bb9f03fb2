"""A design on pictures: the same steps as on texts, and a folder that runs without torch."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.cli import main
from anyformer.core import pages
from anyformer.edge import artefact, design
from anyformer.edge.design import Design, Point
from anyformer.edge.finish import designed, mattered
from anyformer.edge.medium import Pictures, Texts
from anyformer.edge.running import reading
from anyformer.edge.task import read
from anyformer.edge.wish import Wish
from tests.edge.bare import bare
from tests.later import needs

needs("optuna", reason="the search needs the extra anyformer[edge]")
needs("sklearn", reason="real pictures need scikit-learn")
WISH = Wish("", "accuracy", 200_000, 5.0, hours=2 / 3600, model="vit", of="tiny", trials=3)
SPACE: dict[str, list[Any]] = {
    "dim": [32], "depth": [1], "patch": [2, 3, 4], "pool": ["own"], "bits": [8], "mixer": ["own"], "heads": [2],
    "kv_heads": [0], "hidden": [1, 2],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real handwritten digits of three classes, 8 x 8 pixels in grey."""
    from sklearn.datasets import load_digits

    digits, root = load_digits(), tmp_path_factory.mktemp("digits")
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if label < 3:
            (root / f"class{label}").mkdir(exist_ok=True)
            Image.fromarray((pixels * 15).astype(np.uint8)).save(root / f"class{label}" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("edge") / "out"
    wish = replace(WISH, task=str(folder), values=SPACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(out.parent / "cache"))
        patch.setattr(design, "BEST", 1)
        return designed(wish, out, say=lambda _: None), out


def test_pictures_are_searched_measured_and_stored_as_texts_are(made: tuple[dict[str, Any], Path]) -> None:
    report, out = made
    assert {f.name for f in (out / "model").iterdir()} == {"model.onnx", "preprocessor_config.json", "run.py"}
    size = sum(f.stat().st_size for f in (out / "model").iterdir())
    assert size == report["chosen"]["real_size"] == pytest.approx(report["chosen"]["size"], rel=0.04)
    assert report["value"] > 0.8 and report["difference"] < 1e-4 and report["lost"] < 0.01
    assert report["chosen"]["choice"]["patch"] in (2, 4) and "patch=3" in report["without"]
    assert report["row"] == "a picture of 8 x 8, grey" and report["covered"] > 0.9
    assert report["matrices"]["embed.project"] is None  # said, and not counted


def test_the_script_of_pictures_needs_no_torch_and_gives_the_answers_of_the_model(
    made: tuple[dict[str, Any], Path], folder: Path, tmp_path: Path
) -> None:
    _, out = made
    script = out / "model" / "run.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40
    files = [str(f) for name in ("class0", "class1", "class2") for f in sorted((folder / name).iterdir())[:4]]
    large = Image.open(files[0]).convert("RGB").resize((31, 20))  # another size and mode
    large.putalpha(200)
    large.save(tmp_path / "large.png")
    files.append(str(tmp_path / "large.png"))
    done = subprocess.run([*bare(script, "tokenizers"), *files], capture_output=True, text=True, check=True)
    model = af.load(out / "trained").eval()
    pixels = model.processor([Path(f) for f in files])
    with torch.no_grad():
        numbers = model(**pixels).logits.argmax(-1).tolist()
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [name for _, name in lines] == files
    assert [kind for kind, _ in lines] == [f"class{n}" for n in numbers]
    assert sum(kind == Path(name).parent.name for kind, name in lines) >= 9


def test_a_file_of_a_picture_model_takes_any_number_of_rows_and_one_size(tmp_path: Path) -> None:
    model = pages.build(pages.recipe("vit", "tiny", task="classify", classes=3), seed=0).eval()
    artefact.write(model, tmp_path / "model.onnx")
    (read_,) = artefact.session(tmp_path / "model.onnx", 1).get_inputs()
    assert read_.name == "pixel_values" and isinstance(read_.shape[0], str) and read_.shape[1:] == [3, 16, 16]
    batches = [artefact.example(model, 1, rows=n) for n in (1, 5)]
    assert artefact.difference(artefact.opened(tmp_path / "model.onnx"), model, batches) < 1e-5


def test_the_commands_of_the_document_on_pictures_are_understood(
    made: tuple[dict[str, Any], Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(made[1].parent / "cache"))
    text = (Path(__file__).parents[2] / "docs" / "edge.md").read_text(encoding="utf-8")
    commands = [c for c in re.findall(r"^anyformer (edge (?:.*\\\n)*.*)$", text, re.M) if "--model vit" in c]
    assert len(commands) == 1
    args = shlex.split(commands[0].replace("\\\n", " "))
    for name, value in {"--task": str(folder), "--size": "1kB", "--out": str(tmp_path / "out")}.items():
        args[args.index(name) + 1] = value
    small = [part for name, values in SPACE.items() for part in (f"--space.{name}", json.dumps(values))]
    assert main([*args, "--of", "tiny", *small]) == 3  # nothing has a kilobyte


def test_what_mattered_is_the_best_of_each_value_within_the_budget() -> None:
    def point(size: int, metric: float | None, **choice: Any) -> Point:
        return Point({"dim": 32, **choice}, size, 1.0, metric=metric)

    points = [point(9, 0.7, patch=2, **{"mixer.0": "own"}), point(9, 0.1, patch=2, **{"mixer.0": "linear"})]
    points += [point(9, 0.6, patch=4, **{"mixer.0": "own"}), point(10**6, 0.9, patch=4), point(9, None, patch=8)]
    found = mattered(points, WISH)
    assert found == {
        "blocks.0.mixer": {"own": [0.7, 2], "linear": [0.1, 1]}, "embed.patch": {"2": [0.7, 2], "4": [0.6, 1]},
    }  # fmt: skip
    assert [*mattered([*points, *points, *points[:3]], WISH)] == ["blocks.0.mixer", "embed.patch"]
    less = [*points * 2, points[0], points[2]]  # two models are linear: too few to say something of it
    assert [*mattered(less, WISH)] == ["embed.patch", "blocks.0.mixer"]


def test_rows_with_names_of_files_and_colours_are_read(folder: Path, tmp_path: Path) -> None:
    rows = [{"image": str(f), "label": f.parent.name} for f in sorted(folder.rglob("*.png"))[::7]]
    Image.new("RGB", (9, 12), (200, 10, 10)).save(tmp_path / "red.png")
    rows.append({"image": "red.png", "label": "class0"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    medium = Pictures(10)
    task = read(tmp_path / "rows.jsonl", "accuracy", medium)
    medium.learned(task.parts["learn"], (None,), tmp_path)
    assert task.parts["learn"].items.shape[1:] == (3, 10, 10) and task.classes == ("class0", "class1", "class2")
    assert medium.sizes() == {"embed.image": 10, "embed.channels": 3}
    values = task.parts["learn"].items.astype(np.float64) / 255
    assert medium.processor.image_mean == pytest.approx(values.mean((0, 2, 3)), abs=1e-4)
    assert medium.processor.image_std == pytest.approx(values.std((0, 2, 3)), abs=1e-4)
    part = task.parts["test"]
    again = medium.processor([Image.fromarray(p.transpose(1, 2, 0)) for p in part.items[:3]])["pixel_values"]
    assert torch.equal(medium.batch(part, None, range(3))["pixel_values"], again)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "no.png", "label": 1}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"there is no image .*no\.png"):
        read(tmp_path / "rows.jsonl", "accuracy", Pictures())


def test_a_front_end_says_what_is_read(folder: Path, tmp_path: Path) -> None:
    assert isinstance(reading(pages.recipe("vit", "tiny"), 8, 8), Pictures)
    assert isinstance(reading(pages.recipe("bert", "tiny"), 8, 8), Texts)
    with pytest.raises(ValueError, match="a design reads texts, pictures or sounds, and Encoder reads nodes"):
        reading(pages.recipe("graphormer", "tiny"), 8, 8)
    with pytest.raises(ValueError, match="the rows are pictures: leave --teacher out"):
        Design(replace(WISH, task=str(folder), teacher="t"), tmp_path / "out", af.build("bert", "tiny"))
