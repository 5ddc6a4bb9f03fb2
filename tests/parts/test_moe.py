"""Mixtures of experts: routing against loops, losses against the oracle's functions and by hand, what is refused.

B batch, T tokens, D width, E experts.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.core.taps import Taps
from anyformer.parts import MLP, ExpertChoice, GatedMLP, MoE, TopK
from anyformer.parts.moe import load_balance, router_z

B, T, D, E = 3, 11, 8, 4


def made(router: Any, **options: Any) -> MoE:
    """A mixture with weights that hide nothing."""
    torch.manual_seed(0)
    moe = MoE.of(router=router, expert=GatedMLP.of(hidden=6), **options).build(D)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0.0, 0.5)
    return moe.eval()


def text(seed: int = 0) -> tuple[Tensor, Flow]:
    """(B, T, D) with padding on the left of one row and on the right of another."""
    x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed))
    keep = torch.ones(B, T, dtype=torch.bool)
    keep[1, :4], keep[2, 6:] = False, False
    return x, Flow(torch.arange(T), keep=keep)


def by_token(moe: MoE, x: Tensor, flow: Flow, top: int, places: list[int], renormalise: bool) -> Tensor:
    """One token after another, one expert after another."""
    assert flow.keep is not None
    y = torch.zeros_like(x)
    for b in range(B):
        used = [0] * E
        for t in range(T):
            if not flow.keep[b, t]:
                continue
            p = moe.router.proj(x[b, t]).softmax(-1)
            chosen = p.argsort(descending=True)[:top].tolist()
            whole = float(p[chosen].sum()) if renormalise else 1.0
            for e in chosen:
                used[e] += 1
                if used[e] <= places[b]:
                    y[b, t] += moe.experts[e](x[b, t], flow) * p[e] / whole
            if moe.shared is not None:
                y[b, t] += moe.shared(x[b, t], flow)
    return y


@pytest.mark.parametrize("top", [1, 2, 4])
@pytest.mark.parametrize("capacity", [None, 1, 3])
@pytest.mark.parametrize("renormalise", [True, False])
def test_routing_is_the_loop_over_tokens(top: int, capacity: int | None, renormalise: bool) -> None:
    shared = GatedMLP.of(hidden=5) if capacity == 3 else None
    moe = made(TopK.of(experts=E, top=top, capacity=capacity, renormalise=renormalise), shared=shared)
    x, flow = text()
    with torch.no_grad():
        expected = by_token(moe, x, flow, top, [capacity or 99] * B, renormalise)
        found = moe(x, flow)
    torch.testing.assert_close(found[flow.keep], expected[flow.keep])


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_a_capacity_factor_drops_in_training_only(factor: float) -> None:
    moe, (x, flow) = made(TopK.of(experts=E, top=2, factor=factor)), text()
    assert flow.keep is not None
    places = [math.ceil(factor * 2 * n / E) for n in flow.keep.sum(1).tolist()]
    with torch.no_grad():
        all_places = by_token(moe, x, flow, 2, [99] * B, False)
        torch.testing.assert_close(moe(x, flow)[flow.keep], all_places[flow.keep])
        found, expected = moe.train()(x, flow), by_token(moe, x, flow, 2, places, False)
    torch.testing.assert_close(found[flow.keep], expected[flow.keep])
    assert not torch.allclose(expected, all_places)


@pytest.mark.parametrize("factor", [0.5, 1.5, 9.0])
def test_experts_choose_their_likeliest_tokens(factor: float) -> None:
    moe, (x, flow) = made(ExpertChoice.of(experts=E, factor=factor)), text()
    expected = torch.zeros_like(x)
    assert flow.keep is not None
    with torch.no_grad():
        for b in range(B):
            real = flow.keep[b].nonzero()[:, 0].tolist()
            p = {t: moe.router.proj(x[b, t]).softmax(-1) for t in real}
            for e in range(E):
                likely = sorted((-float(p[t][e]), t) for t in real)
                for _, t in likely[: math.ceil(factor * len(real) / E)]:
                    expected[b, t] += p[t][e] * moe.experts[e](x[b, t], flow)
        torch.testing.assert_close(moe(x, flow), expected)


def test_losses_are_the_oracles() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    switch = pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")
    logits = torch.randn(2, 9, E) * 2
    p = logits.softmax(-1)
    keep = torch.rand(2, 9) < 0.7
    for top in (1, 2, 3):
        chosen = torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(top).indices, True)
        theirs = mixtral.load_balancing_loss_func((logits.flatten(0, 1),), E, top, keep.long())
        torch.testing.assert_close(load_balance(p, chosen, keep), theirs)
        layers = tuple(logits.unbind(0))  # two layers of one text: theirs pools them
        torch.testing.assert_close(load_balance(p, chosen), mixtral.load_balancing_loss_func(layers, E, top))
    first = torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(1).indices, True)
    for row in range(2):  # theirs is a mean over rows
        theirs = switch.load_balancing_loss_func(p[row][None], p[row].argmax(-1)[None])
        torch.testing.assert_close(load_balance(p[row], first[row]), theirs)
    torch.testing.assert_close(router_z(logits), switch.router_z_loss_func(logits))


def test_losses_by_hand_and_their_bounds() -> None:
    logits, keep = torch.randn(2, 5, E), torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]).bool()
    p = logits.softmax(-1)
    real = [(b, t) for b in range(2) for t in range(5) if keep[b, t]]
    f, mean = [0.0] * E, [0.0] * E
    for b, t in real:
        f[int(p[b, t].argmax())] += 1 / len(real)
        mean = [m + float(q) / len(real) for m, q in zip(mean, p[b, t], strict=True)]
    chosen = p == p.amax(-1, keepdim=True)
    assert float(load_balance(p, chosen, keep)) == pytest.approx(E * sum(a * b for a, b in zip(f, mean, strict=True)))
    z = sum(math.log(sum(math.exp(v) for v in logits[b, t].tolist())) ** 2 for b, t in real) / len(real)
    assert float(router_z(logits, keep)) == pytest.approx(z, rel=1e-5)
    even, one = torch.full((E, E), 1 / E), torch.eye(E)[:1].expand(E, E)
    assert float(load_balance(even, torch.eye(E).bool())) == pytest.approx(1.0)
    assert float(load_balance(one, one.bool())) == pytest.approx(E)
    nothing = torch.zeros_like(keep)
    assert float(load_balance(p, chosen, nothing)) == float(router_z(logits, nothing)) == 0.0


def test_losses_come_in_training_from_every_layer_and_both_stacks() -> None:
    model = af.build("switch", "tiny", depth=4, sparse=2, balance=1.0, z=1.0, seed=0)
    ids = torch.randint(0, 128, (2, 7))
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
    model.eval()
    assert model(**inputs).aux == {} and model(**inputs).figures == {}
    out = model.train()(**inputs)
    assert set(out.aux) == {"balance", "router_z"} and len(out.figures["usage"]) == 3
    logits = {}
    for path, module in model.named_modules():
        if isinstance(module, TopK):
            module.proj.register_forward_hook(lambda m, i, o, path=path: logits.update({path: o}))
    found = model(**inputs).aux
    encoder, decoder = ([v for k, v in logits.items() if k.startswith(side)] for side in ("encoder", "decoder"))
    z = sum(sum(router_z(v) for v in side) / len(side) for side in (encoder, decoder))
    torch.testing.assert_close(found["router_z"], z)  # the mean over a stack's layers: as theirs, which joins them


def test_losses_are_reported_once_with_recomputing() -> None:
    model = af.build("mixtral", "tiny", seed=0).train()
    ids = torch.randint(0, 128, (2, 9))
    plain = model(ids)
    module: Any
    for module in model.modules():
        if hasattr(module, "recompute"):
            module.recompute = True
    again = model(ids)
    (again.logits.square().mean() + again.aux["balance"]).backward()
    torch.testing.assert_close(again.aux["balance"], plain.aux["balance"])
    assert len(again.figures["usage"]) == len(plain.figures["usage"]) == 2


def test_noise_is_for_the_router_in_training() -> None:
    moe, (x, flow) = made(TopK.of(experts=1, top=1, jitter=0.5)), text()
    torch.testing.assert_close(moe.train()(x, flow), moe.eval()(x, flow))  # one expert: x itself enters it
    moe = made(TopK.of(experts=E, jitter=0.5))
    assert torch.equal(moe(x, flow), moe(x, flow))
    assert not torch.equal(moe.train()(x, flow), moe(x, flow))


def test_the_router_computes_in_float32() -> None:
    moe, (x, flow) = made(TopK.of(experts=E, top=2)), text()
    wide = moe.router.logits(x, flow)
    with torch.autocast("cpu", torch.bfloat16):
        assert moe.router.logits(x, flow).dtype == torch.float32
        assert torch.equal(moe.router.logits(x, flow), wide)
        y = moe(x, flow)
    torch.testing.assert_close(y.float(), moe(x, flow), atol=0.1, rtol=0.1)
    half = moe.bfloat16()(x.bfloat16(), flow)
    assert half.dtype == torch.bfloat16


def test_taps_show_who_takes_what() -> None:
    model = af.build("mixtral", "tiny", seed=0).eval()
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with Taps(model, "blocks.*.ffn.weights", "blocks.0.ffn.usage", "blocks.*.ffn.router.proj") as taps:
        model(torch.randint(0, 128, (2, 5)), attention_mask=mask)
    weights = taps["blocks.1.ffn.weights"]  # (B, T, E)
    torch.testing.assert_close(weights.sum(-1), mask.float())
    assert int((weights > 0).sum()) == 2 * int(mask.sum())
    torch.testing.assert_close(taps["blocks.0.ffn.usage"].sum(), torch.tensor(2.0))  # two experts a token


def test_no_token_and_no_expert_are_harmless() -> None:
    moe, (x, flow) = made(TopK.of(experts=E, capacity=1)), text()
    flow.keep = torch.zeros(B, T, dtype=torch.bool)
    with torch.no_grad():
        assert not moe(x, flow).any()
    moe(x, flow).sum().backward()
    assert all(p.grad is not None for p in moe.experts.parameters())


@pytest.mark.parametrize(
    ("router", "says"),
    [
        (TopK.of(experts=0), "experts=0"),
        (TopK.of(experts=2, top=3), "experts=2; got 3"),
        (TopK.of(experts=2, top=0), "got 0"),
        (TopK.of(experts=2, capacity=0), "capacity"),
        (TopK.of(experts=2, factor=0.0), "factor"),
        (TopK.of(experts=2, jitter=1.0), "jitter"),
        (ExpertChoice.of(experts=2, factor=-1.0), "factor"),
        (MLP.of(hidden=3), "MoE.router: expected a recipe of a Router, got MLP.of"),
    ],
)
def test_options_that_make_no_sense_are_refused(router: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MoE.of(router=router, expert=MLP.of(hidden=4)).build(8)
