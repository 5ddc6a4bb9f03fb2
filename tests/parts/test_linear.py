"""Linear attention and FAVOR+: the definition over all pairs, softmax as the limit, performer-pytorch's functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer.parts import Favor, LinearAttention
from anyformer.parts.approximate.linear import FEATURES, orthogonal, redraw
from tests.parts.mixing import made, run, slopes_are_right, step_by_step

MIXERS = {f: LinearAttention.of(heads=3, feature=f, chunk=4) for f in FEATURES} | {
    f"favor, {f}": Favor.of(heads=3, feature=f, features=9, chunk=4) for f in ("softmax", "relu")
}


def heads(mixer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as (B, H, T, K)."""
    return tuple(p(x).unflatten(-1, (mixer.heads, -1)).transpose(1, 2) for p in (mixer.q, mixer.k, mixer.v))  # type: ignore[return-value]


def joined(mixer: Any, weights: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention with weights (B, H, T, T) that need not sum to 1."""
    weights = weights.tril() if causal else weights
    total = weights.sum(-1, keepdim=True)
    y = weights @ v / total.where(total > 0, 1.0)
    return mixer.o(y.transpose(1, 2).flatten(2))


def over_all_pairs(mixer: Any, x: Tensor, causal: bool) -> Tensor:
    """The definition."""
    q, k, v = heads(mixer, x)
    parts = [mixer.features(t) for t in (q, k)]
    q, k = (f if size is None else f * size[..., None].exp() for f, size in parts)
    return joined(mixer, q @ k.mT, v, causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", MIXERS)
def test_is_attention_with_products_of_features_as_weights(name: str, causal: bool) -> None:
    mixer, x = made(MIXERS[name]), torch.randn(2, 11, 12, dtype=torch.float64)
    torch.testing.assert_close(run(mixer, x, causal), over_all_pairs(mixer, x, causal))


@pytest.mark.parametrize("name", MIXERS)
def test_decodes_with_a_state_of_fixed_size(name: str) -> None:
    mixer, x = made(MIXERS[name]), torch.randn(2, 13, 12, dtype=torch.float64)
    whole = run(mixer, x)
    for pieces in ([1] * 13, [5, 1, 7], [12, 1]):
        torch.testing.assert_close(step_by_step(mixer, x, pieces), whole)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", MIXERS)
def test_padding_is_not_seen(name: str, causal: bool) -> None:
    mixer, x = made(MIXERS[name]), torch.randn(2, 9, 12, dtype=torch.float64) * 3
    for side in (slice(0, 4), slice(5, 9)):
        keep = torch.ones(2, 9, dtype=torch.bool)
        keep[1, side] = False
        both = run(mixer, x, causal, keep)
        torch.testing.assert_close(both[0], run(mixer, x[:1], causal)[0])
        torch.testing.assert_close(both[1][keep[1]], run(mixer, x[1:, keep[1]], causal)[0])
        assert run(mixer, x, causal, torch.zeros_like(keep)).isfinite().all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", MIXERS)
def test_gradients(name: str, causal: bool) -> None:
    keep = torch.ones(2, 6, dtype=torch.bool)
    keep[1, :2] = False
    slopes_are_right(made(MIXERS[name]), torch.randn(2, 6, 12, dtype=torch.float64) * keep[..., None], causal, keep)


@pytest.mark.parametrize("causal", [True, False])
def test_favor_comes_closer_to_softmax_with_more_features(causal: bool) -> None:
    x = torch.randn(2, 16, 12, dtype=torch.float64) / 3  # the error grows with exp(|q + k|^2)
    errors = []
    for features in (16, 4096):
        mixer = made(Favor.of(heads=3, features=features, eps=0.0))
        q, k, v = heads(mixer, x)
        exact = joined(mixer, (q @ k.mT / math.sqrt(mixer.head_dim)).exp(), v, causal)
        tries = []
        for _ in range(4):
            mixer.redraw()
            tries.append(float(((run(mixer, x, causal) - exact).norm() / exact.norm()).detach()))
        errors.append(sum(tries) / 4)
    assert errors[1] < errors[0] / 4 and errors[1] < 0.06, errors  # as 1 / sqrt(features): sixteen times at best


def test_large_queries_and_keys_do_not_overflow() -> None:
    mixer = made(Favor.of(heads=3), dtype=torch.float32)
    for scale in (1e2, 1e4):
        x = (torch.randn(1, 200, 12) * scale).requires_grad_()
        y = run(mixer, x)
        y.sum().backward()
        assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_random_features_are_orthogonal_and_as_long_as_random_ones() -> None:
    w = orthogonal(2000, 8)
    blocks = w.unflatten(0, (250, 8))
    off = (blocks @ blocks.mT) * (1 - torch.eye(8))
    assert off.abs().max() < 1e-4
    assert abs(float(w.square().sum(1).mean()) - 8) < 0.3
    assert abs(float(w.mean())) < 0.05


def test_redraw_changes_the_features_and_nothing_else() -> None:
    mixer = made(Favor.of(heads=3))
    before = {name: value.clone() for name, value in mixer.state_dict().items()}
    mixer.apply(redraw)
    after = mixer.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"projection"}


@pytest.mark.parametrize("causal", [True, False])
def test_favor_is_performer_pytorchs(causal: bool) -> None:
    theirs = pytest.importorskip("performer_pytorch.performer_pytorch", reason="needs pip install performer-pytorch")
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    for feature in ("softmax", "relu"):
        mixer = made(Favor.of(heads=3, features=9, feature=feature, eps=0.0 if feature == "softmax" else None))
        q, k, v = heads(mixer, x)
        if feature == "softmax":
            f = lambda t, query: theirs.softmax_kernel(t, projection_matrix=mixer.projection, is_query=query, eps=0.0)  # noqa: B023, E731
        else:
            f = lambda t, query: theirs.generalized_kernel(t, projection_matrix=mixer.projection)  # noqa: B023, E731
        attend = theirs.linear_attention
        if causal:
            attend = lambda *given: theirs.causal_linear_attention_noncuda(*given, eps=0.0)  # noqa: E731
        y = mixer.o(attend(f(q, True), f(k, False), v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(run(mixer, x, causal), y)


def test_what_makes_no_sense_is_named() -> None:
    with pytest.raises(ValueError, match="feature must be one of 'elu'"):
        LinearAttention.of(feature="gauss").build(8)
    with pytest.raises(ValueError, match="width of 12 does not divide into 5 heads"):
        LinearAttention.of(heads=5).build(12)
    some: list[dict[str, Any]] = [{"chunk": 0}, {"heads": 0}, {"head_dim": 0}]
    for wrong in some:
        with pytest.raises(ValueError, match="at least 1"):
            LinearAttention.of(**wrong).build(8)
    for bad in ({"features": 0}, {"eps": -1.0}):
        with pytest.raises(ValueError, match="features must be at least 1 and eps at least 0"):
            Favor.of(heads=2, **bad).build(8)
