"""Parts that are taken out are gone: the smaller model computes what the larger one computes without them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anyformer as af
from anyformer.compress.prune import Cut, factor, prune
from anyformer.contract.probe import outputs
from anyformer.core import pages
from anyformer.parts.attention.attention import Attention
from anyformer.parts.factored import Factored, factors
from anyformer.parts.ffn import MLP, GatedMLP
from tests.later import later

NOW = ("bert", "gpt", "jamba", "llama", "mixtral", "t5", "vit", "whisper")
PAGES = [*NOW, *later(*(n for n in pages.names() if n not in NOW))]


def batches(model: Any) -> list[dict[str, Tensor]]:
    return [model.example(2, {}, torch.Generator().manual_seed(seed)) for seed in range(2)]


def same(small: Any, plain: Any) -> None:
    with torch.no_grad():
        ours, theirs = (outputs(m(**batches(m)[0])) for m in (small, plain))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-4, msg=key)


def tried(model: Any, rule: str) -> Cut | None:
    """The cut, or None where the page has no part that the rule can take."""
    try:
        return prune(model, rule, batches(model))
    except ValueError as error:
        assert "nothing can be removed" in str(error)
        return None


@pytest.mark.parametrize("rule", ["heads=50%", "ffn=50%"])
@pytest.mark.parametrize("name", PAGES)
def test_what_is_taken_out_is_what_was_without_effect(name: str, rule: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = af.build(name, "tiny", seed=0).eval()
    small, plain = copy.deepcopy(model), copy.deepcopy(model)
    cut = tried(small, rule)
    if cut is None:
        return
    for path in cut.changed:  # the same parts, silenced in the model before: columns of 0 in the last matrix
        old: Any = plain.get_submodule(path)
        new: Any = small.get_submodule(path)
        last, first = (old.o, new.o) if isinstance(old, Attention) else (old.down, new.down)
        kept = [j for j in range(last.in_features) if bool((last.weight[:, j, None] == first.weight).all(0).any())]
        gone = torch.ones(last.in_features, dtype=torch.bool)
        gone[kept] = False
        last.weight.data[:, gone] = 0
        assert int(gone.sum()) == last.in_features - first.in_features
    same(small, plain)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    small.save(tmp_path / "small")
    again = af.load(tmp_path / "small")
    same(again, small)
    assert pages.empty(small.recipe).state_dict().keys() == small.state_dict().keys()


def test_the_heads_of_a_group_go_together() -> None:
    model = af.build("llama", "tiny", seed=0).eval()
    part: Any = model.blocks[0].mixer
    heads, groups = part.heads, part.kv_heads
    assert 1 < groups < heads
    prune(model, "heads=50%", batches(model))
    assert (part.heads, part.kv_heads) == (heads // 2, groups // 2)
    assert part.k.out_features == part.kv_heads * part.head_dim and part.q.out_features == part.heads * part.head_dim
    one = af.build("llama", "tiny", seed=0, kv_heads=1).eval()
    prune(one, "heads=50%", batches(one))
    assert one.blocks[0].mixer.kv_heads == 1 and one.blocks[0].mixer.heads == heads // 2


def test_the_head_with_the_least_energy_goes_first() -> None:
    model = af.build("gpt", "tiny", seed=0).eval()
    part: Any = model.blocks[1].mixer
    with torch.no_grad():
        part.o.weight[:, part.head_dim : 2 * part.head_dim] *= 1e-3
        weak = part.q.weight[part.head_dim : 2 * part.head_dim].clone()
    prune(model, "heads=25%", batches(model))
    assert part.heads == 3 and not any(torch.equal(w, weak) for w in part.q.weight.split(part.head_dim))


def test_the_block_that_does_least_goes_first(tmp_path: Path) -> None:
    model = af.build("gpt", "tiny", seed=0, depth=5).eval()
    with torch.no_grad():
        for linear in (model.blocks[2].mixer.o, model.blocks[2].ffn.down):
            linear.weight.mul_(1e-4)
    small = copy.deepcopy(model)
    cut = prune(small, "depth=1", batches(model))
    assert cut.changed == {"blocks": "5 -> 4 blocks, without 2"}
    torch.testing.assert_close(
        small(**batches(model)[0]).logits, model(**batches(model)[0]).logits, rtol=0.01, atol=0.01
    )
    small.save(tmp_path / "small")
    same(af.load(tmp_path / "small"), small)
    with pytest.raises(ValueError, match="2 blocks are between the first and the last"):
        prune(small, "depth=3", batches(small))


def test_weights_are_zero_by_size_times_input() -> None:
    model = af.build("gpt", "tiny", seed=0).eval()
    up: Any = model.blocks[0].ffn.up
    met: list[Tensor] = []
    hook = up.register_forward_pre_hook(lambda _, args: met.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for inputs in batches(model):
            model(**inputs)
    hook.remove()
    score = up.weight.abs() * torch.cat(met).square().mean(0).sqrt()
    before = up.weight.clone()
    prune(model, "weights=50%", batches(model))
    least = score.topk(16, 1, largest=False).indices
    assert bool((up.weight.gather(1, least) == 0).all()) and int((up.weight == 0).sum()) == up.weight.numel() // 2
    assert bool(((up.weight == before) | (up.weight == 0)).all())
    fours = af.build("gpt", "tiny", seed=0).eval()
    prune(fours, "2:4", batches(fours))
    every = [m for m in fours.modules() if isinstance(m, nn.Linear)]
    assert all(bool(((m.weight == 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()) for m in every)


def test_factors_have_the_least_output_error_of_their_rank() -> None:
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=noise, dtype=torch.float64) * torch.logspace(-1, 1, 12, dtype=torch.float64)
    w, H = torch.randn(9, 12, generator=noise, dtype=torch.float64), x.T @ x / 200
    A, B = factors(w, 4, H)
    best = torch.linalg.svdvals(w @ x.T)[4:].square().sum()  # of any product of this rank (Eckart and Young)
    assert float(((w - A @ B) @ x.T).square().sum()) == pytest.approx(float(best), rel=1e-3)
    A, B = factors(w, 4)
    assert float((w - A @ B).square().sum()) == pytest.approx(float(torch.linalg.svdvals(w)[4:].square().sum()))
    full = factors(w, 9, H)
    torch.testing.assert_close(full[0] @ full[1], w)


@pytest.mark.parametrize("name", ["bert", "llama", "mixtral"])
def test_a_factored_model_is_read_again(name: str, tmp_path: Path) -> None:
    model = af.build(name, "tiny", seed=0).eval()
    before = sum(p.numel() for p in model.parameters())
    cut = factor(model, 4, batches(model))
    assert sum(isinstance(m, Factored) for m in model.modules()) == len(cut.changed) > 0
    assert sum(p.numel() for p in model.parameters()) < before
    model.save(tmp_path / "thin")
    same(af.load(tmp_path / "thin"), model)
    with pytest.raises(ValueError, match="no linear layer becomes smaller"):
        factor(af.build(name, "tiny").eval(), 1000, [])


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("heads=0%", "above 0 % and below 100 %"),
        ("ffn=100%", "above 0 % and below 100 %"),
        ("heads", "expected heads=25%"),
        ("depth=0", "at least 1"),
        ("heads=1%", "less than one"),
    ],
)
def test_mistakes_are_named(rule: str, said: str) -> None:
    model = af.build("gpt", "tiny", seed=0).eval()
    with pytest.raises(ValueError, match=said):
        prune(model, rule, batches(model))


def test_scores_with_numbers_for_each_head_are_left() -> None:
    model = af.build("t5", "tiny", seed=0).eval()
    with pytest.raises(ValueError, match="its scores have numbers for each head"):
        prune(model, "heads=50%", batches(model))
    assert isinstance(model.encoder.blocks[0].ffn, MLP | GatedMLP)
