"""ProbSparse attention and auto-correlation, beside their definitions and beside transformers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.core.recipe import Recipe
from anyformer.parts import Attention
from anyformer.parts.approximate.autocorrelation import AutoCorrelation
from anyformer.parts.approximate.probsparse import ProbSparse
from anyformer.parts.rows import rows
from tests.parts.mixing import flow, made, padding_is_not_read, run, slopes_are_right

SPARSE: dict[str, Recipe] = {
    "few": ProbSparse.of(heads=3, factor=1, seed=1),
    "many": ProbSparse.of(heads=2, head_dim=5, factor=2, draws="many", bias=False),
}
both = pytest.mark.parametrize("causal", [True, False])
EVERY = [(n, r, c) for n, r in SPARSE.items() for c in (True, False)]
EVERY += [(f"delays, {f}", AutoCorrelation.of(factor=f), False) for f in (0.5, 1.5)]
mixers = pytest.mark.parametrize(("name", "recipe", "causal"), EVERY, ids=[f"{n}-{c}" for n, _, c in EVERY])


def text(rows: int, time: int) -> Tensor:
    return torch.randn(rows, time, 12, dtype=torch.float64)


@mixers
def test_padding_is_not_seen(name: str, recipe: Recipe, causal: bool) -> None:
    padding_is_not_read(made(recipe), text(3, 13), causal, [slice(0, 4), slice(8, 13), slice(1, 13)])


@mixers
def test_gradients(name: str, recipe: Recipe, causal: bool) -> None:
    keep = torch.ones(2, 9, dtype=torch.bool)
    keep[1, :2] = False
    slopes_are_right(made(recipe), text(2, 9), causal, keep)
    slopes_are_right(made(recipe), text(1, 7), causal)


@both
def test_probsparse_with_every_query_active_is_attention(causal: bool) -> None:
    full, x = made(Attention.of(heads=3)), text(2, 9)
    ours = made(ProbSparse.of(heads=3, factor=9))
    ours.load_state_dict(full.state_dict())
    torch.testing.assert_close(run(ours, x, causal), run(full, x, causal))


@both
def test_probsparse_is_its_definition(causal: bool) -> None:
    mixer, x = made(ProbSparse.of(heads=3, factor=1, draws="many", seed=3)), text(1, 20)
    drawn = torch.randint(20, (20,), generator=torch.Generator().manual_seed(3))
    q, k, v = (p(x)[0].unflatten(-1, (3, 4)).transpose(0, 1) for p in (mixer.q, mixer.k, mixer.v))  # (H, T, K)
    score = q @ k.mT / 2
    y = v.cumsum(1) if causal else v.mean(1, keepdim=True).expand_as(v).clone()
    for h in range(3):
        m = score[h][:, drawn].amax(-1) - score[h][:, drawn].sum(-1) / 20
        for i in m.topk(math.ceil(math.log(21))).indices.tolist():
            end = i + 1 if causal else 20
            y[h, i] = score[h, i, :end].softmax(-1) @ v[h, :end]
    expected = mixer.o(y.transpose(0, 1).flatten(1))[None]
    torch.testing.assert_close(run(mixer, x, causal), expected)


@both
@pytest.mark.parametrize("length", [1, 2, 30])
def test_probsparse_is_informers(length: int, causal: bool) -> None:
    package = pytest.importorskip("transformers.models.informer.modeling_informer", reason="needs transformers")
    ours = made(ProbSparse.of(heads=3, factor=2, draws="many", seed=5))
    theirs = package.InformerProbSparseAttention(12, 3, is_decoder=causal, sampling_factor=2).double()
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
    theirs.load_state_dict(
        {f"{a}.{w}": getattr(getattr(ours, b), w) for a, b in names.items() for w in ("weight", "bias")}
    )
    x = text(2, length).requires_grad_()
    mask = torch.zeros(2, 1, length, length, dtype=torch.float64)
    mask = mask + torch.full((length, length), -1e9).triu(1) if causal else mask
    torch.manual_seed(5)
    expected = theirs.eval()(x, attention_mask=mask)[0]
    found = run(ours, x, causal)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # they sum in float32
    slopes = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-5)


def test_draws_differ_in_training_alone() -> None:
    x = text(1, 60)
    free, fixed = (made(ProbSparse.of(heads=2, factor=1, seed=seed)) for seed in (None, 0))
    assert torch.equal(run(free, x), run(fixed, x))
    free.train()
    fixed.train()
    assert not torch.equal(run(free, x), run(free, x))
    assert torch.equal(run(fixed, x), run(fixed, x))


def by_hand(mixer: AutoCorrelation, x: Tensor) -> Tensor:
    """The definition, for one text."""
    q, k, v = (p(x)[0] for p in (mixer.q, mixer.k, mixer.v))  # (T, D)
    time = len(q)
    likeness = torch.stack([(q.roll(-d, 0) * k).sum(0).mean() for d in range(time)])
    top, delay = likeness.topk(max(1, min(time, int(mixer.factor * math.log(time)))))
    y = sum(w * v.roll(-int(d), 0) for w, d in zip(top.softmax(0), delay, strict=True))
    return mixer.o(y)[None]


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17])
def test_autocorrelation_is_its_definition(length: int) -> None:
    for factor in (0.5, 1.0, 3.0, 100.0):
        mixer, x = made(AutoCorrelation.of(factor=factor)), text(1, length)
        torch.testing.assert_close(run(mixer, x, causal=False), by_hand(mixer, x))


@pytest.mark.parametrize("length", [3, 16, 17])
def test_autocorrelation_is_autoformers(length: int) -> None:
    package = pytest.importorskip("transformers.models.autoformer.modeling_autoformer", reason="needs transformers")
    ours = made(AutoCorrelation.of(factor=2.0), dtype=torch.float32)
    theirs = package.AutoformerAttention(12, 3, autocorrelation_factor=2)
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
    theirs.load_state_dict(
        {f"{a}.{w}": getattr(getattr(ours, b), w) for a, b in names.items() for w in ("weight", "bias")}
    )
    for training in (False, True):  # one row: of several, theirs takes the delays of other rows
        x = text(1, length).float().requires_grad_()
        found, expected = run(ours, x, causal=False), theirs.train(training)(x)[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        slopes = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
        torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)


def test_autocorrelation_finds_the_period() -> None:
    """A series of period 6, with the period as its only delay, is handed on as it is."""
    mixer = made(AutoCorrelation.of(factor=0.3, bias=False))  # one delay of 24 places
    with torch.no_grad():
        for layer in (mixer.q, mixer.k, mixer.v, mixer.o):
            layer.weight.copy_(torch.eye(12))
    x = text(1, 6).repeat(1, 4, 1)
    likeness = mixer.likeness(x, x, rows(flow(24, causal=False), x))
    assert set(likeness[0].topk(4).indices.tolist()) == {0, 6, 12, 18}
    torch.testing.assert_close(run(mixer, x, causal=False), x)


def test_what_cannot_decode_says_so() -> None:
    gpt = af.recipe("gpt", "tiny")
    for recipe in (ProbSparse.of(heads=4), AutoCorrelation.of()):
        name = recipe.part.__name__
        decoder = af.build(gpt.but({"blocks.*.mixer": recipe}), seed=0)
        with pytest.raises(ValueError, match=f"{name} cannot decode step by step.*cache=False"):
            decoder.generate([[1, 2]], max_new_tokens=2)
    with pytest.raises(ValueError, match="AutoCorrelation mixes every token with all others"):
        decoder(torch.tensor([[1, 2]]))


def test_probsparse_generates_without_a_cache() -> None:
    decoder = af.build(af.recipe("gpt", "tiny").but({"blocks.*.mixer": ProbSparse.of(heads=4)}), seed=0)
    (found,) = decoder.generate([[1, 2, 3]], max_new_tokens=4, temperature=0, cache=False)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (ProbSparse.of(heads=0), "at least 1"),
        (ProbSparse.of(factor=0), "at least 1"),
        (ProbSparse.of(heads=3, draws="some"), "draws must be one of 'few', 'many'"),
        (AutoCorrelation.of(factor=0.0), "factor must be above 0"),
    ],
)
def test_what_makes_no_sense_is_named(recipe: Recipe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe.build(12)
