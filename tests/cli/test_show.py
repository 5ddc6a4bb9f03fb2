"""anyformer show: the file of what a model sees, its sizes and numbers."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import anyformer as af
from anyformer.hub.processors import trained


def test_the_verb_writes_what_is_seen(cli: Any, tmp_path: Path) -> None:
    model = af.build("vit", "tiny").eval()
    model.processor = trained("ViTImageProcessor", 16, 16, 3)
    model.save(tmp_path / "model")
    Image.new("RGB", (64, 32), (10, 200, 30)).save(tmp_path / "green.png")
    code, out, err = cli("show", str(tmp_path / "model"), str(tmp_path / "green.png"), "--out", str(tmp_path / "a.png"))
    assert code == 0, err
    assert "64 x 32, of which 100% is seen" in out and "mean -0.922, 0.569, -0.765" in out
    assert np.asarray(Image.open(tmp_path / "a.png"))[3, 4].tolist() == [10, 200, 30]
    again = ("show", str(tmp_path / "model"), str(tmp_path / "green.png"), "--json", "--out", str(tmp_path / "a.png"))
    code, out, _ = cli(*again)
    assert code == 0 and '"kept": 1.0' in out
    code, _, err = cli("show", str(tmp_path / "model"), str(tmp_path / "gone.png"))
    assert code == 2 and "there is no picture" in err
