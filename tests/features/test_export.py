import os

import pytest
import torch

import anyformer as af
from anyformer.compress import nf4
from anyformer.compress.int8 import quantise
from anyformer.contract.probe import outputs
from anyformer.edge import export as module
from anyformer.edge.export import export, inputs, static_axes
from anyformer.parts.recurrent import mamba as ssm
from anyformer.train import lora

from .models import model

# Models whose program would say something else at other sizes: `export` compares, refuses and writes nothing.
REFUSED = {"memorizing", "reformer"}


def reload(path):
    return torch.export.load(path).module()


def same(program, made, **sizes):
    given = inputs(made, **sizes)
    with torch.no_grad():
        ours, theirs = outputs(made(**given)), program(**given)
    for name, value in theirs.items():
        torch.testing.assert_close(value, ours[name], rtol=1e-4, atol=1e-4)


def padded():
    """Every page; `make test` has an encoder and an encoder-decoder. Without padding, the contract exports more."""
    quick = {"bert", "bart"}
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in [*af.names(), "hybrid"]]


@pytest.mark.parametrize("name", padded())
def test_every_model_with_open_sizes_and_padding(name, tmp_path, request):
    if name in REFUSED:
        request.applymarker(
            pytest.mark.xfail(strict=True, reason="`export` refuses it: it says that the program differs")
        )
    made = model(name)
    report = export(made, tmp_path / "m.pt2", inputs(made, padding=True))
    assert report.bytes == (tmp_path / "m.pt2").stat().st_size and report.outputs
    assert all(axis.startswith(("1…", "8…")) for axes in report.inputs.values() for axis in axes[:1])
    sides = [axis for axes in report.inputs.values() if len(axes) == 4 and not static_axes(made) for axis in axes[2:]]
    assert all(axis.startswith(("1…", "4…", "8…", "9…")) for axis in sides)  # from two cells of 2 or 4 pixels on
    assert 0 <= report.difference < 1e-3
    same(reload(tmp_path / "m.pt2"), made, batch=5, time=33, source=12, padding=True)
    assert os.listdir(tmp_path) == ["m.pt2"] and not made.training and not made._forward_hooks


def test_a_window_and_scaled_rotary_positions_at_any_length(tmp_path):
    """The eager model takes another kernel at 300 tokens (window) and other frequencies beyond 64 (dynamic)."""
    from anyformer.parts.positions import Dynamic

    made = af.build("llama", "tiny", window=7, scaling=Dynamic(2.0, 64), seed=0).eval()
    export(made, tmp_path / "m.pt2")
    program = reload(tmp_path / "m.pt2")
    for time in (3, 7, 8, 300):
        same(program, made, batch=2, time=time)


@pytest.mark.slow
def test_a_text_that_is_too_long_is_refused_by_the_program(tmp_path, monkeypatch):
    made = model("gpt")
    report = export(made, tmp_path / "m.pt2")
    assert report.inputs == {"input_ids": ("1…", "1…64")}
    with pytest.raises(AssertionError, match="64"):
        reload(tmp_path / "m.pt2")(input_ids=torch.zeros(2, 65, dtype=torch.long))

    monkeypatch.setattr(ssm, "OPEN", 70)
    made = model("mamba")
    assert export(made, tmp_path / "m.pt2").inputs == {"input_ids": ("1…", "1…70")}
    with pytest.raises(AssertionError, match="70"):
        reload(tmp_path / "m.pt2")(input_ids=torch.zeros(2, 71, dtype=torch.long))


@pytest.mark.parametrize("time", [2, 31, 32, 33, 64, 150])
def test_the_open_scan_is_the_scan(time):
    torch.manual_seed(time)
    u, step, h = torch.randn(2, time, 5), torch.rand(2, time, 5), torch.randn(2, 5, 3)
    A, B, C = -4 * torch.rand(5, 3), torch.randn(2, time, 3), torch.randn(2, time, 3)
    for ours, theirs in zip(ssm.scan_open(u, step, A, B, C, h), ssm.scan(u, step, A, B, C, h), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_rewritten_models_are_exported_too(tmp_path):
    made = model("llama")
    lora.add(made)
    export(made, tmp_path / "lora.pt2")
    lora.merge(made)
    nf4.quantise(made, targets=("**.ffn.*",))
    lora.add(made, dora=True)
    assert export(made, tmp_path / "nf4.pt2", inputs(made, padding=True)).difference < 1e-4
    lora.merge(made)
    nf4.dequantise(made)
    quantise(made, tables=True)
    report = export(made, tmp_path / "int8.pt2", inputs(made, padding=True))
    assert report.difference < 1e-4
    stored = torch.export.load(tmp_path / "int8.pt2").state_dict
    assert stored["blocks.0.mixer.q.weight"].dtype == torch.int8 and set(stored) == set(made.state_dict())


def test_more_inputs_by_example(tmp_path):
    made = model("bert")
    example = {**inputs(made, padding=True), "token_type_ids": torch.ones(2, 9, dtype=torch.long)}
    report = export(made, tmp_path / "m.pt2", example)
    assert list(report.inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    assert report.outputs == ("hidden", "logits", "pooled", "heads.mlm", "heads.nsp")


def test_on_a_mismatch_what_was_there_stays(tmp_path, monkeypatch):
    path = tmp_path / "m.pt2"
    made = model("gpt").train()
    real = module._named
    # the trace sees one function, the comparison another: what a part that keeps a constant of the example would do
    factor = iter([1.0, 2.0, 1.0, 2.0])
    monkeypatch.setattr(module, "_named", lambda out: {"logits": real(out)["logits"] * next(factor)})
    with pytest.raises(ValueError, match=r"'logits' is .* from the model's.*nothing was written"):
        export(made, path)
    assert os.listdir(tmp_path) == []
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="nothing was written"):
        export(made, path)
    assert os.listdir(tmp_path) == ["m.pt2"] and path.read_bytes() == b"before"
    assert made.training and not made._forward_hooks, "the model was changed"


def test_a_part_that_depends_on_the_length_is_told(tmp_path):
    made = model("gpt")

    class Fixed(torch.nn.Module):
        def forward(self, x):
            return x + torch.zeros(int(x.shape[1]), 1)  # int() closes the axis

    made.norm = Fixed()
    with pytest.raises(ValueError, match=r"CausalLM cannot be exported with open sizes"):
        export(made, tmp_path / "m.pt2")
    assert os.listdir(tmp_path) == []


def test_wrong_use_is_told(tmp_path):
    made = model("gpt")
    with pytest.raises(ValueError, match=r"end in \.pt2"):
        export(made, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"'input_idx' cannot be an input \(did you mean input_ids"):
        export(made, tmp_path / "m.pt2", {"input_idx": torch.zeros(2, 9)})
    with pytest.raises(ValueError, match=r"\(1, 9\).*use 2 or more"):
        export(made, tmp_path / "m.pt2", inputs(made, batch=1))
    with pytest.raises(OSError, match="nowhere"):
        export(made, tmp_path / "nowhere" / "m.pt2")
