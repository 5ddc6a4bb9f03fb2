"""anyformer paint: files of pictures, and mistakes in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import anyformer as af
from anyformer.hub.noising import FlowMatching
from anyformer.hub.processors import trained


def test_the_verb_writes_files(cli: Any, tmp_path: Path) -> None:
    model = af.build("dit", "tiny", seed=0)
    torch.nn.init.normal_(model.heads["noise"].proj.weight)
    model.noising, model.processor = FlowMatching(shift=2.0), trained("ViTImageProcessor", 8, 8, 3)
    model.origin = {"classes": ["cat", "dog", "bird", "fish", "fox"]}
    model.save(tmp_path / "model")
    out = tmp_path / "boot.png"
    code, printed, _ = cli("paint", str(tmp_path / "model"), "bird", "--out", str(out), "--steps", "2")
    assert code == 0 and printed.strip() == str(out)
    assert np.array_equal(np.asarray(Image.open(out)), af.paint(af.load(tmp_path / "model"), "bird", steps=2)[0])
    assert "noising\n  FlowMatching(shift=2.0)" in cli("inspect", str(tmp_path / "model"))[1]
    code, printed, _ = cli("paint", str(tmp_path / "model"), "2", "--out", str(out), "--steps", "2", "--count", "2")
    assert printed.split() == [str(tmp_path / f"boot-{i}.png") for i in (1, 2)]
    code, _, err = cli("paint", str(tmp_path / "model"), "brid", "--steps", "2")
    assert code == 2 and "no class 'brid' (did you mean bird?)" in err
    code, _, err = cli("paint", str(tmp_path / "model"), "bird", "--out", "x.doc", "--steps", "2")
    assert code == 2 and "x.doc: the name must end in .png" in err
