"""Training experts: they collapse without the load-balance loss; the log and the screen show it; upcycling."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.parts import MLP, MoE, TopK
from anyformer.train.loop import Settings, fit
from anyformer.train.objectives import causal_lm, classification, next_tokens
from anyformer.train.step_loss import with_auxiliary
from anyformer.train.upcycle import upcycle

EXPERTS = 4


def evenness(balance: float) -> float:
    """The entropy of the use of experts late in training, a share of the largest: 1 = even, 0 = one does all the work.

    Which half of an image is darker: all patches have a brightness in common, so that they look alike to a router.
    """
    router = TopK.of(experts=EXPERTS, balance=balance)
    recipe = af.recipe("vit", "tiny").but({"blocks.*.ffn": MoE.of(router=router, expert=MLP.of(hidden=16))})
    model = af.build(recipe, seed=0).train()
    noise, side = torch.Generator().manual_seed(1), model.embed.grid * model.embed.patch
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    late = []
    for step in range(100):
        images = torch.rand(16, model.embed.channels, side, side, generator=noise)
        labels = torch.randint(0, 2, (16,), generator=noise)
        images[:, :, : side // 2] *= (1 - 0.5 * labels)[:, None, None, None]
        images[:, :, side // 2 :] *= (0.5 + 0.5 * labels)[:, None, None, None]
        out = model(pixel_values=images)
        with_auxiliary(classification(out, labels, 16), out, 1.0).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 80:
            usage = torch.stack(out.figures["usage"])  # (layers, E)
            torch.testing.assert_close(usage.sum(1), torch.ones(len(usage)))
            late.append(usage)
    mean = torch.stack(late).mean(0)
    return float(-torch.xlogy(mean, mean).sum(1).mean() / torch.tensor(EXPERTS).log())


def test_without_the_balance_loss_experts_collapse() -> None:
    torch.set_num_threads(1)
    alone, balanced = evenness(0.0), evenness(0.1)
    assert alone < 0.35, f"without the loss the use is {alone:.2f} even"
    assert balanced > 0.8, f"with the loss the use is {balanced:.2f} even"


def a_run(out: Path, page: str) -> list[dict[str, Any]]:
    """Four steps, the rows of the log."""
    ids = torch.randint(0, 128, (4, 2, 9), generator=torch.Generator().manual_seed(0))
    batches = lambda i: {"input_ids": ids[i % 4], "labels": next_tokens(ids[i % 4])}  # noqa: E731
    fit(af.build(page, "tiny", seed=0), batches, causal_lm, Settings(steps=4, warmup=0, accumulate=2), out)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_log_shows_the_use_of_experts(tmp_path: Path) -> None:
    rows = a_run(tmp_path / "experts", "mixtral")
    for row in rows:
        assert 0 <= row["usage_least"] <= 1 / EXPERTS <= row["usage_greatest"] <= 1
        assert row["aux_balance"] > 0
    table = list(csv.DictReader((tmp_path / "experts" / "log.csv").open()))
    assert [{k: float(v) for k, v in row.items() if v} for row in table] == rows  # all of it, in both files
    assert not [name for row in a_run(tmp_path / "plain", "llama") for name in row if "usage" in name or "aux" in name]


def test_the_screen_shows_the_use_of_experts(capsys: pytest.CaptureFixture[str]) -> None:
    from anyformer.train.progress import Screen

    row = {"step": 1, "loss": 2.0, "lr": 1e-3, "grad_norm": 1.0, "tokens": 9}
    Screen().on_steps({**row, "usage_least": 0.031, "usage_greatest": 0.5, "aux_balance": 0.012}, 10.0, 1)
    assert "usage 0.031 to 0.500" in (said := capsys.readouterr().out) and "balance 0.012" in said


def test_an_upcycled_model_is_saved_and_learns(tmp_path: Path) -> None:
    model, ids = af.build("llama", "tiny", seed=0).eval(), torch.randint(0, 128, (2, 9))
    before = model(ids).logits
    assert upcycle(model, "blocks.1.ffn", experts=3, top=2) == ["blocks.1.ffn"]
    torch.testing.assert_close(model(ids).logits, before)
    assert model.save(tmp_path) == "anyformer"
    again = af.load(tmp_path)
    assert again.recipe == model.recipe and torch.equal(again(ids).logits, model(ids).logits)
    out = model.train()(ids)
    with_auxiliary(out.logits.square().mean(), out, 1.0).backward()
    slopes = [expert.up.weight.grad for expert in model.blocks[1].ffn.experts]
    assert all(s is not None and s.any() for s in slopes) and not torch.equal(slopes[0], slopes[1])
    assert model.blocks[1].ffn.router.proj.weight.grad.any()


def test_upcycling_refuses_what_it_cannot_do() -> None:
    model = af.build("mixtral", "tiny")
    with pytest.raises(ValueError, match="mixture of experts already"):
        upcycle(model)
    model = af.build("llama", "tiny")
    with pytest.raises(ValueError, match="no Part has a path"):
        upcycle(model, "blocks.9.ffn")
    with pytest.raises(ValueError, match="top"):
        upcycle(model, experts=2, top=3)
    with pytest.raises(ValueError, match="linear layer"):
        upcycle(model, "blocks.0.norm.ffn")
    assert model.page == "llama"
