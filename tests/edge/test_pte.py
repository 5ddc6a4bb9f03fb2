"""Files for ExecuTorch: its own runtime gives the model's numbers; without the package the command is named."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

import anyformer as af
from anyformer.cli import main
from anyformer.edge import pte

THERE = importlib.util.find_spec("executorch") is not None


@pytest.mark.skipif(not THERE, reason="pip install executorch==1.5.1")
def test_the_runtime_gives_the_models_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = af.build("bert", "tiny", seed=0)
    report = pte.write(model, tmp_path / "model.pte", 16)
    assert report.products[0] == report.products[1] > 10 and report.difference < pte.CLOSE
    assert report.inputs == {"input_ids": (1, 16), "attention_mask": (1, 16)}
    assert report.bytes == (tmp_path / "model.pte").stat().st_size
    monkeypatch.setattr(pte, "CLOSE", 0.0)
    with pytest.raises(ValueError, match="would differ from the model"):
        pte.write(model, tmp_path / "other.pte", 16)
    monkeypatch.setattr(pte, "DELEGATED", 1.1)
    with pytest.raises(ValueError, match="products, 110% is the least"):
        pte.write(model, tmp_path / "other.pte", 16)
    assert [f.name for f in tmp_path.iterdir()] == ["model.pte"]


def test_without_the_package_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setitem(sys.modules, "executorch.backends.xnnpack.partition.xnnpack_partitioner", None)
    af.build("gpt", "tiny", seed=0).save(tmp_path / "full")
    assert main(["convert", str(tmp_path / "full"), str(tmp_path / "model.pte")]) == 2
    err = capsys.readouterr().err
    assert "pip install executorch==1.5.1 (docs/edge.md, Phones and microcontrollers)" in err
    assert not (tmp_path / "model.pte").exists()
