"""Training in few bits: a step is the straight-through estimator's, and the numbers are those that compress writes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.compress import few, rounding
from anyformer.parts.moe import Router
from anyformer.train import objectives
from anyformer.train.aware import GROUP, Aware
from anyformer.train.loop import fit
from anyformer.train.settings import Settings


def gpt(seed: int = 0) -> Any:
    return af.build("gpt", "tiny", vocab=64, seed=seed)


def batches(number: int) -> dict[str, torch.Tensor]:
    start = torch.randint(0, 64, (4, 1), generator=torch.Generator().manual_seed(number))
    ids = (start + 7 * torch.arange(24)) % 64  # learned in a few steps
    return {"input_ids": ids, "labels": objectives.next_tokens(ids, torch.ones_like(ids))}


def rounded(model: Any, bits: int) -> dict[str, torch.Tensor]:
    """The matrices as `compress` rounds them, by path."""
    entries = [e for e in few.plan(model, bits, GROUP) if e.bits is not None]
    return {e.path: rounding.rtn(model.get_parameter(f"{e.path}.weight"), e.bits or 0, GROUP).matrix() for e in entries}


def test_a_step_is_that_of_the_straight_through_estimator(tmp_path: Path) -> None:
    settings = Settings(1, lr=1e-2, warmup=0, aware=4, weight_decay=0.0, chunked_loss="off")
    model, other = gpt(), gpt()
    fit(model, batches, objectives.causal_lm, settings, tmp_path)
    held: dict[str, Any] = {n: p.detach().clone().requires_grad_() for n, p in other.named_parameters()}
    with torch.no_grad():
        near = rounded(other, 4)
    through = {n: w + (near[n[:-7]] - w).detach() if n[:-7] in near else w for n, w in held.items()}
    batch = batches(0)
    labels = batch.pop("labels")
    output = torch.func.functional_call(other, through, kwargs=batch, tie_weights=True)
    objectives.causal_lm(output, labels, int((labels != -100).sum())).backward()
    torch.nn.utils.clip_grad_norm_(held.values(), 1.0)
    for name, weight in held.items():  # the first step of AdamW: the sign of the gradient, where it is not tiny
        moved, slope = model.get_parameter(name) - weight, weight.grad
        sure = slope.abs() > 1e-6
        torch.testing.assert_close(moved[sure], -settings.lr * slope.sign()[sure], rtol=0.05, atol=1e-6, msg=name)
    assert len(near) > 8


def test_what_is_evaluated_is_what_compress_writes(tmp_path: Path) -> None:
    model, seen = gpt(), list[dict[str, torch.Tensor]]()

    def note(now: Any) -> float:
        seen.append({n: p.detach().clone() for n, p in now.named_parameters()})
        return 0.0

    fit(model, batches, objectives.causal_lm, Settings(3, warmup=0, aware=4, eval_every=3), tmp_path, measure=note)
    small = copy.deepcopy(model)
    few.quantise(small, few.Work("rtn", GROUP, few.plan(small, 4, GROUP)))
    for path, near in rounded(model, 4).items():
        assert torch.equal(seen[-1][f"{path}.weight"], near)
        assert torch.equal(small.get_submodule(path).dequantised(), near)
        assert not torch.equal(model.get_parameter(f"{path}.weight"), near)


def test_few_bits_cost_nothing_when_training_knew_of_them(tmp_path: Path) -> None:
    costs, batch = {}, batches(10**6)
    for aware in (0, 3):
        model, losses = gpt(), []
        fit(model, batches, objectives.causal_lm, Settings(40, lr=1e-2, warmup=5, aware=aware), tmp_path / str(aware))
        small = copy.deepcopy(model)
        few.quantise(small, few.Work("rtn", GROUP, few.plan(small, 3, GROUP)))
        for one in (model.eval(), small.eval()):
            with torch.no_grad():
                logits = one(input_ids=batch["input_ids"]).logits.flatten(0, 1)
            losses.append(
                float(torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), ignore_index=-100))
            )
        costs[aware] = losses[1] - losses[0]
    assert costs[0] > 0 and costs[3] < costs[0] / 2


def test_weights_come_back_after_an_error_and_routers_stay() -> None:
    model = af.build("mixtral", "tiny", seed=0)
    before = copy.deepcopy(model.state_dict())
    aware = Aware(model, 4)
    routers = [f"{p}.{n}" for p, m in model.named_modules() if isinstance(m, Router) for n, _ in m.named_parameters()]
    with pytest.raises(RuntimeError, match="stop"), aware.rounded():
        now = model.state_dict()
        assert routers and all(torch.equal(now[n], before[n]) for n in routers)
        assert any(not torch.equal(now[n], t) for n, t in before.items())
        raise RuntimeError("stop")
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())


def test_bits_that_no_matrix_has_are_refused() -> None:
    with pytest.raises(ValueError, match="aware must be 0 or bits of a matrix, 3, 4, 8, got 5"):
        Settings(1, aware=5)
