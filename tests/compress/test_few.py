"""Any model in few bits: on every page, with what was left and why; and files that are no such model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import anyformer as af
from anyformer.compress import awq, few, rounding
from anyformer.compress.calibrate import Seen, calibrate
from anyformer.compress.few import Work
from anyformer.contract.probe import outputs
from anyformer.core import pages
from anyformer.parts.embeddings import Table
from anyformer.parts.moe import Router
from anyformer.parts.quantised import Grid
from tests.later import later

NOW = ("bert", "clip", "encodec", "gpt", "jamba", "llama", "mamba2", "mixtral", "reformer", "t5", "vit", "whisper")


def example(model: Any, rows: int = 2) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = model.example(rows, {}, torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("name", [*NOW, *later(*(n for n in pages.names() if n not in NOW))])
def test_every_page_computes_with_matrices_in_few_bits(name: str, tmp_path: Path) -> None:
    model = af.build(name, "tiny", seed=0).eval()
    if not any(isinstance(m, nn.Linear | Table) for m in model.modules()):
        with pytest.raises(ValueError, match="nothing can be changed"):
            few.plan(model, 8, 8)
        return
    plain, small = copy.deepcopy(model), copy.deepcopy(model)
    work = Work("rtn", 8, few.plan(small, 8, 8))
    few.quantise(small, work)
    few.verify(small, work)
    left = {e.path for e in work.entries if e.bits is None}
    for path, module in plain.named_modules():  # the same numbers in full matrices
        if isinstance(module, nn.Linear | Table) and path in {e.path for e in work.changed}:
            module.weight.data = rounding.rtn(module.weight.data, 8, 8).matrix()
    assert not any(isinstance(m, Router) and any(isinstance(g, Grid) for g in m.modules()) for m in small.modules())
    assert (all(why for why in (e.why for e in work.entries if e.bits is None)) and work.coverage < 1) or not left
    with torch.no_grad():
        torch.manual_seed(0)
        ours = outputs(small(**example(small)))
        torch.manual_seed(0)
        theirs = outputs(plain(**example(plain)))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-4, msg=key)
    small.save(tmp_path / "few")
    again = af.load(tmp_path / "few")
    few.verify(again, work)
    for (key, one), two in zip(small.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two), key


def test_what_is_left_has_a_reason() -> None:
    entries = {e.path: e for e in few.plan(af.build("mixtral", "tiny"), 4, 8, ["blocks.1.mixer"])}
    assert "router" in entries["blocks.0.ffn.router.proj"].why
    assert entries["blocks.1.mixer.q"].why == "kept, as asked" and entries["blocks.0.mixer.q"].bits == 4
    assert entries["embed.tokens"].bits == entries["head.proj"].bits == 8
    whole = {e.path: e for e in few.plan(af.build("vit", "tiny"), 4, 8)}
    assert any("convolution" in e.why for e in whole.values())
    with pytest.raises(ValueError, match="nothing can be changed"):
        few.plan(af.build("gpt", "tiny"), 4, 8, ["**"])
    with pytest.raises(ValueError, match=r"no Module has a path that matches 'blocks\.9'"):
        few.plan(af.build("gpt", "tiny"), 4, 8, ["blocks.9"])


def test_the_matrices_that_matter_have_8_bits_while_there_is_room() -> None:
    model = af.build("gpt", "tiny", seed=0).eval()
    with torch.no_grad():
        model.blocks[1].ffn.down.weight.mul_(30)  # its rounding is seen
    entries, batch = few.plan(model, 4, 32), example(model)
    with torch.no_grad():
        before = model(**batch).logits

    def harm(one: Any) -> float:
        return float((one(**batch).logits - before).square().mean())

    numbers = model.blocks[1].ffn.down.weight.numel()
    made = few.finer(model, entries, 32, numbers / 2 + 64, harm)
    changed = [e.path for e, was in zip(made, entries, strict=True) if e != was]
    assert changed[0] == "blocks.1.ffn.down" and len(changed) == 1
    assert few.finer(model, entries, 32, 0, harm) == entries
    every = few.finer(model, entries, 32, 1e9, harm)
    assert {e.bits for e in every} <= {8, None} and [e.path for e in every] == [e.path for e in entries]


def test_experts_without_tokens_are_named() -> None:
    model = af.build("mixtral", "tiny", seed=0).eval()
    batches = [{"input_ids": torch.randint(0, 128, (2, 20))} for _ in range(2)]  # 160 pairs for four experts
    work = Work("gptq", 8, few.plan(model, 4, 8))
    few.quantise(model, work, batches)
    named = {path for path, note in work.notes.items() if "fewer than 64" in note}
    assert named and all(".experts." in path for path in named)
    with pytest.raises(ValueError, match="of the calibration"):
        few.check({"blocks.0.mixer.q": Seen(torch.zeros(2, 2), 8, 1)}, set(), 2)


def test_calibration_counts_every_token_of_every_matrix() -> None:
    model = af.build("gpt", "tiny", seed=0).eval()
    linears = {p: m for p, m in model.named_modules() if isinstance(m, nn.Linear)}
    batches = [{"input_ids": torch.randint(0, 128, (2, 16))} for _ in range(3)]
    seen = calibrate(model, linears, batches)
    assert {(s.rows, s.batches) for s in seen.values()} == {(96, 3)}
    met: list[torch.Tensor] = []
    with torch.no_grad():
        hook = linears["blocks.1.ffn.down"].register_forward_pre_hook(lambda _, args: met.append(args[0]))
        for batch in batches:
            model(**batch)
        hook.remove()
    x = torch.cat([m.flatten(0, 1) for m in met])
    torch.testing.assert_close(seen["blocks.1.ffn.down"].mean, x.T @ x / 96)


def test_scales_are_folded_where_the_function_stays_the_same() -> None:
    model = af.build("llama", "tiny", seed=0).eval()
    with torch.no_grad():  # a few inputs with large values, as real models have
        for norm in ("blocks.0.norm.mixer", "blocks.0.norm.ffn"):
            model.get_parameter(f"{norm}.weight")[::7] *= 20
    inputs = {"input_ids": torch.randint(0, 128, (4, 32), generator=torch.Generator().manual_seed(0))}
    linears = {p: m for p, m in model.named_modules() if isinstance(m, nn.Linear) and p != "head.proj"}
    seen: dict[str, Seen] = calibrate(model, linears, [inputs])
    with torch.no_grad():
        before = model(**inputs).logits
        done = awq.fold(model, linears, seen, inputs, 4, 8)
        assert float((model(**inputs).logits - before).abs().max()) < 1e-3 * float(before.abs().max())
    assert len(done) > len(linears) / 2
    assert {"blocks.0.mixer.o", "blocks.0.ffn.down"} & done.keys()
    again = calibrate(model, linears, [inputs])
    for path in done:  # what is known of the inputs follows the scales
        torch.testing.assert_close(seen[path].mean, again[path].mean, rtol=1e-2, atol=1e-3)


def test_a_norm_that_a_residual_reads_is_not_divided() -> None:
    model = af.build("bert", "tiny", seed=0).eval()  # norms behind the sum
    inputs = {"input_ids": torch.randint(0, 128, (2, 16))}
    linears = {p: m for p, m in model.named_modules() if isinstance(m, nn.Linear)}
    with torch.no_grad():
        before = model(**inputs).hidden
        done = awq.fold(model, linears, calibrate(model, linears, [inputs]), inputs, 4, 8)
        torch.testing.assert_close(model(**inputs).hidden, before, rtol=1e-3, atol=1e-3)
    assert all(path.endswith(".o") for path in done)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(quantised=[1]), "must be a dictionary of paths"),
        (lambda c: c["quantised"].update({"blocks.9.ffn.up": [4, 8]}), "has no matrix there"),
        (lambda c: c["quantised"].update({"blocks.0.ffn.up": [5, 8]}), "bits must be one of 3, 4, 8"),
        (lambda c: c["quantised"].update({"blocks.0.ffn.up": [4, 12]}), "group must be a multiple of 8"),
        (lambda c: c["quantised"].update({"blocks.0.ffn.up": [4, 1 << 20]}), "group must be a multiple of 8"),
        (lambda c: c["quantised"].update({"blocks.0.ffn.up": "4"}), r"must be \[bits, group\]"),
        (lambda c: c["quantised"].update({"blocks.0.ffn.up": [8, 8]}), "shape"),
        (lambda c: c["quantised"].pop("blocks.0.ffn.up"), "missing in the file"),
    ],
)
def test_a_config_that_does_not_fit_the_file_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    model = af.build("gpt", "tiny", seed=0).eval()
    few.quantise(model, Work("rtn", 8, few.plan(model, 4, 8)))
    with pytest.warns(UserWarning, match="in few bits"):
        model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        af.load(tmp_path)


def test_a_change_of_type_leaves_the_numbers() -> None:
    model = af.build("gpt", "tiny", seed=0).eval()
    few.quantise(model, Work("rtn", 8, few.plan(model, 4, 8)))
    before = {p: m.dequantised() for p, m in model.named_modules() if isinstance(m, Grid)}
    model.to(torch.bfloat16)
    assert all(torch.equal(m.dequantised(), before[p]) for p, m in model.named_modules() if isinstance(m, Grid))
    assert model(input_ids=torch.tensor([[1, 2]])).logits.dtype == torch.bfloat16
