"""GPTQ's layout, written and read: bit by bit by another reader, and files that are no such ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer import hub
from anyformer.cli import main
from anyformer.compress import few, shrink
from anyformer.hub.formats import gptq
from anyformer.parts.quantised import Grid, full

GROUP = 16


def small(page: str = "llama", bits: int = 4) -> Any:
    model = af.build(page, "tiny", seed=0).eval()
    entries = [shrink._only(e, bits, GROUP, model) for e in few.plan(model, bits, GROUP)]
    few.quantise(model, few.Work("rtn", GROUP, entries, True))
    return model


def unpacked(tensors: dict[str, torch.Tensor], name: str, bits: int, layout: str) -> list[list[float]]:
    """W of a layer, number by number, as the layout is described by those who made it."""
    q, z, s, group = (tensors[f"{name}.{part}"].tolist() for part in ("qweight", "qzeros", "scales", "g_idx"))
    each, mask = 32 // bits, 2**bits - 1
    more = 1 if layout == "gptq" else 0
    return [
        [
            s[group[i]][o]
            * (
                ((q[i // each][o] >> bits * (i % each)) & mask)
                - (((z[group[i]][o // each] >> bits * (o % each)) & mask) + more)
            )
            for i in range(len(group))
        ]
        for o in range(len(s[0]))
    ]


@pytest.mark.parametrize(("page", "bits"), [("llama", 4), ("bert", 8)])
def test_another_reader_finds_the_numbers_and_ours_the_model(page: str, bits: int, tmp_path: Path) -> None:
    model = small(page, bits)
    count = hub.save_gptq(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    described = json.loads((tmp_path / "config.json").read_text())[gptq.KEY]
    assert (described["bits"], described["group_size"], described["quant_method"]) == (bits, GROUP, "gptq")
    assert count == sum(n.endswith(".qweight") for n in tensors) == sum(isinstance(m, Grid) for m in model.modules())
    again, wanted = af.load(tmp_path), full(model).state_dict()
    assert again.page == page and all(torch.equal(t, wanted[n]) for n, t in again.state_dict().items())
    names = sorted(n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight"))
    for name in names[:2]:
        there = torch.tensor(unpacked(tensors, name, bits, "gptq"))
        assert any(w.shape == there.shape and torch.allclose(w, there, atol=1e-7) for w in wanted.values())


def test_files_of_others_have_groups_in_any_order_and_zeros_of_two_kinds(tmp_path: Path) -> None:
    model = small()
    hub.save_gptq(model, tmp_path)
    tensors, file = load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors"
    config = json.loads((tmp_path / "config.json").read_text())
    name = next(n for n in sorted(tensors) if n.endswith("down_proj.qweight")).removesuffix(".qweight")
    order = torch.randperm(len(tensors[f"{name}.g_idx"]), generator=torch.Generator().manual_seed(0))
    tensors[f"{name}.g_idx"] = tensors[f"{name}.g_idx"][order].contiguous()  # act order
    save_file(tensors, file, {"format": "pt"})
    for layout in ("gptq", "gptq_v2"):
        config[gptq.KEY]["checkpoint_format"] = layout
        (tmp_path / "config.json").write_text(json.dumps(config))
        want = torch.tensor(unpacked(tensors, name, 4, layout))
        assert torch.allclose(af.load(tmp_path).blocks[0].ffn.down.weight, want, atol=1e-7)


def test_what_the_layout_cannot_hold_is_named(tmp_path: Path) -> None:
    mixed = af.build("llama", "tiny", seed=0).eval()
    few.quantise(mixed, few.Work("rtn", GROUP, few.plan(mixed, 4, GROUP), True))
    with pytest.raises(ValueError, match=r"head\.proj has 8 bits in groups of 16, and blocks\.0\.mixer\.q 4"):
        hub.save_gptq(mixed, tmp_path / "out")
    other = small()
    other.recipe = other.recipe.but({"blocks.0.ffn.act": "gelu"})
    with pytest.raises(ValueError, match="is of published formats, and this model has none"):
        hub.save_gptq(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c, t: c.update(bits=3), "quantization_config.bits"),
        (lambda c, t: c.update(checkpoint_format="marlin"), "checkpoint_format"),
        (lambda c, t: t.pop("model.layers.0.mlp.up_proj.g_idx"), "g_idx"),
        (lambda c, t: t["model.layers.0.mlp.up_proj.g_idx"].add_(99), "numbers from 0 to"),
        (lambda c, t: t.update({"model.layers.0.mlp.up_proj.scales": torch.ones(1, 8)}), "up_proj"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(change: Any, says: str, tmp_path: Path) -> None:
    hub.save_gptq(small(), tmp_path)
    tensors, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    change(config[gptq.KEY], tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=says):
        af.load(tmp_path)


def test_words_come_back() -> None:
    numbers = torch.randint(0, 16, (3, 24), generator=torch.Generator().manual_seed(0))
    assert torch.equal(gptq._fields(gptq.words(numbers, 4), 4), numbers.to(torch.int32))


def test_the_command_writes_it_and_checks_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    af.build("llama", "tiny", seed=0).save(tmp_path / "full")
    call = ["compress", str(tmp_path / "full"), "--to", "int4", "--group", "16", "--form", "gptq", "--out"]
    assert main([*call, str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "in 4 bits" in out and "GPTQ's layout is of linear layers" in out
    assert gptq.is_gptq(json.loads((tmp_path / "a" / "config.json").read_text()))
    assert main([*call, str(tmp_path / "b"), "--method", "hqq"]) == 2
    assert "hqq fits zeros that are not whole" in capsys.readouterr().err
    monkeypatch.setattr(gptq, "LAYOUTS", {"gptq": 0})
    real = hub.load

    def shifted(source: Any, **more: Any) -> Any:
        model = real(source, **more)
        if (Path(source) / "config.json").exists() and gptq.is_gptq(
            json.loads((Path(source) / "config.json").read_text())
        ):
            model.blocks[0].ffn.up.weight.data += 1e-3
        return model

    monkeypatch.setattr(hub, "load", shifted)
    assert main([*call, str(tmp_path / "c")]) == 2 and "holds other numbers" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
