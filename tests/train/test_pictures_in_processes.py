"""Pictures with classes, with boxes and inside texts are learned by two processes as by one, whose batches hold other
numbers of boxes and of pictures."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from anyformer.train import train
from tests.train.launched import ENVIRONMENT
from tests.train.test_boxes import SMALL as DETECTOR
from tests.train.test_boxes import squares
from tests.train.test_captions import SMALL as READER
from tests.train.test_captions import place as captioned  # noqa: F401

KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "classes": ("swin", {"image": 8}, {}),
    "boxes": ("detr", DETECTOR, {}),
    "captions": ("llava", READER, {"vocab": 270}),
}


def words_of(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


@pytest.fixture
def sets(captioned: Path, tmp_path: Path) -> dict[str, Path]:  # noqa: F811
    """The data of each kind."""
    for number in range(60):
        folder = tmp_path / "folders" / ("red", "green", "blue")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes((captioned / f"{number}.png").read_bytes())
    boxes = squares(tmp_path / "boxes")
    return {"classes": tmp_path / "folders", "boxes": boxes, "captions": captioned / "captions.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(kind: str, sets: dict[str, Path], tmp_path: Path) -> None:
    model, overrides, more = KINDS[kind]
    given: dict[str, Any] = {"steps": 3, "batch": 8, "lr": 1e-3, "warmup": 0, "eval_every": 0, **more}
    train(model, "tiny", data=str(sets[kind]), overrides=overrides, quiet=True, out=tmp_path / "one", **given)
    words = ["train", "--model", model, "--size", "tiny", "--data", str(sets[kind]), "--out", str(tmp_path / "two")]
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    for name, value in overrides.items():
        words += [f"--overrides.{name}", words_of(value)]
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "anyformer"]
    done = subprocess.run([*launched, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "step-000003" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=2e-5, msg=f"{kind}: {name}")
