"""Rounding that is learned: better than rounding to nearest on what was seen, on its grid, and in no other weight."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.compress import few, learned, rounding
from anyformer.core.rewrite import select


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "STEPS", 40)


def batches(model: Any, count: int = 2) -> list[dict[str, Tensor]]:
    """Random inputs of a model."""
    return [model.example(3, {}, torch.Generator().manual_seed(seed)) for seed in range(count)]


def apart(one: Any, two: Any, inputs: list[dict[str, Tensor]]) -> float:
    """The squared difference of the answers of two models."""
    with torch.no_grad():
        return sum(float((one(**i).hidden - two(**i).hidden).square().mean()) for i in inputs)


@pytest.mark.parametrize("page", ["llama", "bert", "t5", "vit", "mixtral", "mamba"])
@pytest.mark.parametrize("whole", [False, True])
def test_answers_are_nearer_than_with_rounding_to_nearest(page: str, whole: bool) -> None:
    """Of a model of any kind, by twelve per cent at least; no gradient and no other weight is left changed."""
    model = af.build(page, "tiny", seed=0).eval()
    entries = [e for e in few.plan(model, 3, 8) if e.bits == 3 and "blocks" in e.path]
    made = {}
    for method in ("rtn", "signround"):
        work = few.Work(method, 8, entries, whole)
        made[method] = copy.deepcopy(model)
        few.quantise(made[method], work, batches(model))
        few.verify(made[method], work)
    assert apart(made["signround"], model, batches(model)) < 0.88 * apart(made["rtn"], model, batches(model))
    changed = {e.path for e in entries}
    for name, weight in made["signround"].named_parameters():
        assert weight.grad is None
        if name.removesuffix(".weight") not in changed:
            assert torch.equal(weight, model.get_parameter(name)), name
    for path in changed:
        grid: Any = made["signround"].get_submodule(path)
        assert not whole or bool((grid.zero == grid.zero.round()).all() and (grid.zero >= 1).all())


def test_one_matrix_is_between_rounding_to_nearest_and_the_best_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear layer with three weights in each group, against every rounding of them on the grids that are learned."""
    monkeypatch.setattr(learned, "STEPS", 200)
    noise = torch.Generator().manual_seed(0)
    layer: Any = torch.nn.Sequential(torch.nn.Linear(3, 8, bias=False))
    weight = torch.randn(8, 3, generator=noise)
    layer[0].weight.data.copy_(weight)
    x = torch.randn(16, 3, generator=noise) @ torch.tensor([[1.0, 2, 0], [0, 1, 3], [2, 0, 1]])
    found = learned.learn(layer, {"0": 2}, 3, False, [{"input": x}])["0"]
    products = x.T @ x / len(x)
    error = rounding.output_error(weight, found.matrix(), products)
    codes = torch.cartesian_prod(*[torch.arange(4.0)] * 3)  # every rounding of a row, (64, 3)
    best = 0.0
    for row, scale, zero in zip(weight, found.scale, found.zero, strict=True):
        off = row - (codes - zero) * scale
        best += float(((off @ products) * off).sum(1).min())
    nearest = rounding.output_error(weight, rounding.rtn(weight, 2, 3).matrix(), products)
    assert best - 1e-6 <= error < 0.9 * nearest
    assert torch.equal(layer[0].weight, found.matrix())


def test_weights_of_half_precision_keep_their_type() -> None:
    model = af.build("llama", "tiny", seed=0, depth=1).eval().bfloat16()
    exact = copy.deepcopy(model)
    entries = [e for e in few.plan(model, 3, 8) if e.bits == 3]
    few.quantise(model, few.Work("signround", 8, entries), batches(model))
    few.quantise(nearest := copy.deepcopy(exact), few.Work("rtn", 8, entries))
    assert apart(model, exact, batches(exact)) < apart(nearest, exact, batches(exact))


def test_units_are_the_outermost_elements_of_lists() -> None:
    assert learned.units(
        ["blocks.1.ffn.experts.0.up", "blocks.1.mixer.q", "pool.proj", "encoder.blocks.0.mixer.q"]
    ) == {
        "blocks.1": ["blocks.1.ffn.experts.0.up", "blocks.1.mixer.q"],
        "pool.proj": ["pool.proj"],
        "encoder.blocks.0": ["encoder.blocks.0.mixer.q"],
    }


def test_experts_that_met_few_tokens_are_rounded_to_nearest() -> None:
    model = af.build("mixtral", "tiny", seed=0).eval()
    entries = [e for e in few.plan(model, 4, 8) if e.bits == 4 and ".experts." in e.path]
    work = few.Work("signround", 8, entries)
    few.quantise(model, work, [model.example(1, {}, torch.Generator().manual_seed(0))])
    assert work.notes and set(work.notes) <= set(select(model, *work.notes, kind=torch.nn.Module))
    few.verify(model, work)
