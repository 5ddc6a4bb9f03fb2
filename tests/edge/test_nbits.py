"""ONNX files that compute in few bits: the kernel's numbers are the model's, and what it cannot take is named."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.compress import few
from anyformer.edge import nbits
from anyformer.parts.quantised import Grid, GridLinear
from tests.later import needs

needs("onnx", "onnxruntime", reason="needs the extra anyformer[engine]")


def small(page: str, bits: int, group: int, whole: bool = True) -> Any:
    model = af.build(page, "tiny", seed=0).eval()
    few.quantise(model, few.Work("rtn", group, few.plan(model, bits, group), whole))
    return model


@pytest.mark.parametrize(("page", "bits", "group"), [("bert", 4, 16), ("gpt", 8, 32), ("vit", 4, 32)])
def test_every_linear_layer_is_the_kernel_and_gives_the_models_numbers(
    page: str, bits: int, group: int, tmp_path: Path
) -> None:
    import onnx

    model = small(page, bits, group)
    linears = sum(isinstance(m, GridLinear) for m in model.modules())
    report = nbits.write(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    nodes = [n for n in graph.node if n.op_type == "MatMulNBits"]
    assert report.products == len(nodes) == linears and report.difference < nbits.LEVELS[report.level]
    levels = {a.i for n in nodes for a in n.attribute if a.name == "accuracy_level"}
    assert levels == {report.level}  # never unset
    assert not any(n.op_type == "Gemm" for n in graph.node)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_arrays_are_those_of_the_operators_specification(bits: int) -> None:
    made = torch.nn.Linear(72, 5)  # 5 groups of 16, the last half empty
    model = torch.nn.Sequential(made)
    few.quantise(model, few.Work("rtn", 16, few.plan(model, bits, 16), True))
    grid: Any = model[0]
    arrays, half = nbits._arrays(grid), 8 // bits
    want = grid.dequantised().numpy()
    for o, i in random.Random(0).sample([(o, i) for o in range(5) for i in range(72)], 60):
        block, at = divmod(i, 16)
        q = int(arrays["q"][o, block, at // half]) >> (bits * (at % half)) & (2**bits - 1)
        z = int(arrays["z"][o, block // half]) >> (bits * (block % half)) & (2**bits - 1)
        assert want[o, i] == pytest.approx(np.float32(arrays["s"][o, block]) * (q - z), abs=1e-7)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: small("gpt", 4, 32, whole=False), "has zeros that are no whole numbers: anyformer compress --zeros"),
        (lambda: small("gpt", 3, 32), "has 3 bits in groups of 32; the kernel takes 4 or 8"),
        (lambda: small("gpt", 4, 8), "has 4 bits in groups of 8"),
        (lambda: af.build("gpt", "tiny"), "no linear layer in few bits: anyformer compress --to int4 --zeros whole"),
    ],
)
def test_what_the_kernel_cannot_take_is_named_and_nothing_is_written(model: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        nbits.write(model(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_with_other_numbers_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, model = nbits._arrays, small("gpt", 4, 32)

    def swapped(grid: Grid) -> dict[str, np.ndarray]:
        arrays = real(grid)
        return {**arrays, "s": np.roll(arrays["s"], 1, 0)}

    monkeypatch.setattr(nbits, "_arrays", swapped)
    with pytest.raises(ValueError, match="would differ from the model"):
        nbits.write(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_from_a_model_to_a_file_by_two_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    af.build("gpt", "tiny", seed=0).save(tmp_path / "full")
    few_, file = tmp_path / "few", tmp_path / "few.onnx"
    assert main(["compress", str(tmp_path / "full"), "--to", "int4", "--zeros", "whole", "--out", str(few_)]) == 0
    assert main(["convert", str(few_), str(file)]) == 0
    assert "12 of 13 matrices in few bits are MatMulNBits, accuracy level 4" in capsys.readouterr().out
    assert main(["convert", str(few_), str(file)]) == 2 and "exists" in capsys.readouterr().err
    call = ["compress", str(tmp_path / "full"), "--to", "int4", "--method", "hqq", "--zeros", "whole", "--out"]
    assert main([*call, str(tmp_path / "not")]) == 2 and "hqq fits zeros that are not whole" in capsys.readouterr().err
