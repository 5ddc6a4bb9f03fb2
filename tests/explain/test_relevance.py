"""Relevance: a ledger that adds up on every page, the shares of LXT, and errors that name a part without a rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.core import pages
from anyformer.explain import attribute
from anyformer.explain.features import Explained
from anyformer.explain.linearised import Linearised
from anyformer.explain.relevance import relevance
from anyformer.explain.rules import FUNCTIONS, RULES
from tests.later import later

READ_BESIDE = {
    "bart",
    "flamingo",
    "informer",
    "mmdit",
    "musicgen",
    "switch",
    "t5",
    "transformer",
    "whisper",
}  # a memory, pictures
EPS = 1e-13  # the stabiliser of LXT
SLOW = {"alphafold2", "dalle", "encodec", "esmfold", "informer", "vit_hybrid", "clip", "autoformer", "conformer"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def _wide(name: str) -> tuple[Any, dict[str, Tensor]]:
    """A page in float64 with redrawn weights: zeros and ones at the start hide what is not booked."""
    model = af.build(name, "tiny", seed=0).eval().double()
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=noise, dtype=torch.float64))
    call = model.complete(model.example(1, {}, torch.Generator().manual_seed(0)))
    return model, {n: v.double() if v.is_floating_point() else v for n, v in call.items()}


def _mixed(out: Any) -> Tensor:
    x = (out.hidden if out.logits is None else out.logits).flatten(1)
    return x @ torch.randn(x.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x)


@pytest.mark.parametrize("name", [*(n for n in pages.names() if n not in SLOW), *later(*sorted(SLOW))])
def test_the_ledger_adds_up_on_every_page(name):
    model, call = _wide(name)
    with torch.no_grad():
        plain = float(_mixed(Explained(model, call).run()))
    made = relevance(Explained(model, call), _mixed).ledger
    assert plain and abs(made.score - plain) <= 1e-6 * abs(plain)  # routers round to float32 in the model, not here
    assert any(made.inputs.values())
    total = sum(made.inputs.values()) + sum(made.added.values())
    assert abs(total - made.score) <= 1e-9 * max(abs(made.score), made.size)
    layers = [row for row in made.rows if row.stream is not None]
    assert layers or name in ("dvae", "encodec", "vit_hybrid", "swin", "alphafold2", "esmfold", "autoformer")
    for row in layers:  # what a layer keeps and adds is what it hands on
        assert name in READ_BESIDE or abs(row.beside) <= 1e-9 * made.size, row
    assert all(p.requires_grad for p in model.parameters()) and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["llama", "bert", "mamba", "mixtral", "gemma3", "vit"])
def test_each_layer_is_a_cut(name):
    """The stream before a layer and all that enters from there on are the score."""
    model, call = _wide(name)
    made = relevance(Explained(model, call), _mixed).ledger
    layers = [row.name for row in made.rows if row.stream is not None]
    early = {"embed", "entry"}
    late = sum(sum(row.added.values()) for row in made.rows if row.stream is None and row.name not in early)
    assert len(layers) >= 2
    for n, layer in enumerate(layers):
        rows = [row for row in made.rows if row.name in layers[n:]]
        before = next(row for row in made.rows if row.name == layer).stream
        assert before is not None
        total = before + sum(sum(row.added.values()) for row in rows) + late
        assert abs(total - made.score) <= 1e-9 * max(abs(made.score), made.size), layer


def test_an_encoders_layers_hand_on_what_the_decoder_reads_beside():
    model, call = _wide("t5")
    made = relevance(Explained(model, call), _mixed).ledger
    last = [row for row in made.rows if row.name.startswith("encoder.blocks.")][-1].behind
    beside = sum(row.beside for row in made.rows if row.name.startswith("decoder.blocks."))
    between = sum(sum(row.added.values()) for row in made.rows if row.name == "encoder")
    assert last is not None and abs(beside) > 1e-6 and abs(last + between - beside) <= 1e-9 * made.size


def test_a_linear_model_has_the_shares_of_its_sum():
    """x w of a linear score, whatever the rules: the only right answer."""
    model = af.build("vit", "tiny", seed=0, depth=1).eval().double()
    with torch.no_grad():
        model.blocks[0].mixer.o.weight.zero_()
        model.blocks[0].ffn.down.weight.zero_()
    call = {n: v.double() for n, v in model.example(1, {}, torch.Generator().manual_seed(0)).items()}

    def score(out: Any) -> Tensor:
        return out.hidden[:, 1:].sum((1, 2)) if model.norm is None else out.hidden[:, 1:, 0].sum(1)

    made = attribute(model, call, score, "relevance", baseline="zeros")
    x = call["pixel_values"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(_fixed_scale(model, x, score).sum(), x)
    torch.testing.assert_close(made.each["pixel_values"], x.detach() * slope)
    assert float(made.residual.abs()) < 1e-12 and made.ledger is not None


def _fixed_scale(model: Any, x: Tensor, score: Any) -> Tensor:
    from anyformer.explain.direct import fixed

    hooks = [m.register_forward_hook(fixed) for m in model.modules() if type(m).__name__ == "LayerNorm"]
    try:
        return score(model(pixel_values=x))
    finally:
        for hook in hooks:
            hook.remove()


def _lxt_attention(lf: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention (B, T, H, K) in LXT's functions."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = _Identity.apply(lf.matmul(q, k.mT.contiguous(), False, EPS), lambda s: s * q.shape[-1] ** -0.5)
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e9)
    return lf.matmul(lf.softmax(scores, -1), v, False, EPS).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_lxt_has_the_same_relevance(name):
    """LXT 2.1's explicit functions, put together to the same model, with stabilisers near 0. That of its LayerNorm,
    1e-6, is no argument of `layer_norm`: it is one of the function behind it."""
    lf = pytest.importorskip("lxt.explicit.functional")
    model, _ = _wide(name)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    at, token = (5, 3) if name == "llama" else (2, 3)
    made = attribute(model, ids, token, "relevance", at=at, baseline="zeros")
    vectors = model.embed.tokens.weight[ids].detach().clone().requires_grad_()
    logits = _by_lxt(lf, model, ids, vectors, name)
    with torch.no_grad():
        torch.testing.assert_close(logits[0, at, token], model(ids).logits[0, at, token])
    logits[0, at, token].backward(gradient=logits[0, at, token].detach())  # LXT's graph carries relevance
    theirs = vectors.grad.sum(-1)
    torch.testing.assert_close(made.values["input_ids"], theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_the_stabiliser_of_lxts_norm_is_all_that_differs():
    """LayerNorm by itself: with LXT's own 1e-6 the relevance misses some 1e-6 / |y| of each number, with 1e-13 none."""
    lf = pytest.importorskip("lxt.explicit.functional")
    draws = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(n, generator=draws, dtype=torch.float64) for n in ((4, 8), (8,), (8,)))
    leaf = x.clone().requires_grad_()
    with Linearised(nn.Linear(1, 1), RULES, FUNCTIONS):
        y = F.layer_norm(leaf, (8,), weight, bias)
    (slope,) = torch.autograd.grad((y * y.detach()).sum(), leaf)  # the relevance of y is y y
    ours = x * slope

    def theirs(norm: Any) -> Tensor:
        other = x.clone().requires_grad_()
        made = norm(other)
        made.backward(gradient=made.detach() ** 2)
        return other.grad  # type: ignore[return-value]

    tight = theirs(lambda v: lf.layer_norm_grad_fn.apply(v, weight, bias, 1e-5, EPS))
    torch.testing.assert_close(tight, ours, rtol=1e-9, atol=1e-10)
    loose = theirs(lambda v: lf.layer_norm(v, weight, bias, 1e-5))
    assert 1e-8 < float((loose - ours).abs().max()) < 1e-4


def _by_lxt(lf: Any, model: Any, ids: Tensor, x: Tensor, name: str) -> Tensor:

    def linear(layer: nn.Linear, x: Tensor) -> Tensor:
        return lf.linear_epsilon(x, layer.weight, layer.bias, EPS)

    def norm(part: Any, x: Tensor) -> Tensor:
        if name == "llama":
            return lf.rms_norm_identity(x, part.weight, part.eps)
        return lf.layer_norm_grad_fn.apply(x, part.weight, part.bias, part.eps, EPS)

    def sure(act: Any, x: Tensor) -> Tensor:  # the identity rule: the relevance of the output is that of the input
        return _Identity.apply(x, act)

    if name == "bert":
        held: dict[str, Tensor] = {}
        hook = model.blocks[0].register_forward_pre_hook(lambda m, a: held.update(x=a[0]))
        pre = model.embed.norm.register_forward_pre_hook(lambda m, a: held.update(sum=a[0]))
        model(ids)
        hook.remove(), pre.remove()
        x = norm(model.embed.norm, lf.add2(x, (held["sum"] - x).detach(), False, EPS))
    mask = torch.ones(6, 6, dtype=torch.bool).tril() if name == "llama" else None
    flow = type("F", (), {"positions": torch.arange(6), "once": lambda self, key, make: make()})()
    for block in model.blocks:
        m = block.mixer

        def mixed(h: Tensor, m: Any = m) -> Tensor:
            q, k, v = (linear(p, h).unflatten(-1, (-1, m.head_dim)) for p in (m.q, m.k, m.v))
            if m.positions is not None:
                q, k = _Rotated.apply(q, m.positions, flow), _Rotated.apply(k, m.positions, flow)
            return linear(m.o, _lxt_attention(lf, q, k, v, mask))

        def fed(h: Tensor, f: Any = block.ffn) -> Tensor:
            if name == "llama":
                return linear(f.down, lf.mul2(sure(f.act, linear(f.gate, h)), linear(f.up, h)))
            return linear(f.down, sure(f.act, linear(f.up, h)))

        if name == "llama":
            x = lf.add2(x, mixed(norm(block.norm["mixer"], x)), False, EPS)
            x = lf.add2(x, fed(norm(block.norm["ffn"], x)), False, EPS)
        else:
            x = norm(block.norm["mixer"], lf.add2(x, mixed(x), False, EPS))
            x = norm(block.norm["ffn"], lf.add2(x, fed(x), False, EPS))
    if name == "llama":
        return lf.linear_epsilon(norm(model.norm, x), model.head.proj.weight, None, EPS)
    head = model.heads["mlm"]
    h = norm(head.norm, sure(head.act, linear(head.dense, x)))
    return lf.linear_epsilon(h, model.embed.tokens.weight, head.bias, EPS)


class _Identity(torch.autograd.Function):
    """An activation, or a constant factor, whose relevance passes through unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: Any) -> Tensor:
        return act(x)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, None]:
        return relevance, None


class _Rotated(torch.autograd.Function):
    """Rotary positions, a linear map y = R x; relevance x R^T (r / y), as of any matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Any, flow: Any) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            made = positions(leaf, flow)
        ctx.leaf, ctx.made = leaf, made
        return made.detach()

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, None, None]:
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(ctx.made, ctx.leaf, relevance / ctx.made.detach())
        return ctx.leaf.detach() * slope, None, None


class Odd(nn.Module):
    """A part with an operation that has no rule."""

    def forward(self, x: Tensor, flow: Any) -> Tensor:
        return torch.special.bessel_j0(x)


def test_a_part_without_a_rule_is_named():
    model, call = _wide("llama")
    model.blocks[1].ffn = Odd()
    with pytest.raises(ValueError, match=r"blocks\.1\.ffn \(Odd\) has no rule of relevance for .*bessel_j0"):
        attribute(model, call, 3, "relevance")
    assert torch.autograd.Function.__dict__["apply"].__module__ == "torch.autograd.function"
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="ledger is of one score; got 2 rows"):
        attribute(model, torch.tensor([[1, 2], [3, 4]]), 3, "relevance")
    with pytest.raises(ValueError, match="routers must be one of 'half', 'fixed'; got 'sharp'"):
        attribute(af.build("llama", "tiny").eval(), [1, 2], 3, "relevance", routers="sharp")


def test_routers_are_chosen():
    model, call = _wide("mixtral")
    made = {way: attribute(model, call, 3, "relevance", routers=way) for way in ("half", "fixed")}
    assert all(m.ledger is not None and abs(m.ledger.missing) < 1e-12 for m in made.values())
    half, fixed = (m.values["input_ids"] for m in made.values())
    assert (half - fixed).abs().max() > 1e-6


def test_fixed_softmax_has_no_remainder():
    model, call = _wide("llama")
    made = relevance(Explained(model, call), 3, softmax="fixed").ledger
    assert made.added["softmax"] == 0 and abs(made.missing) < 1e-12


def test_padding_and_the_future_have_no_share():
    model, _ = _wide("llama")
    made = attribute(model, list(range(5, 15)), 7, "relevance", at=4)
    assert made.values["input_ids"][0, :5].abs().min() > 0 and not made.values["input_ids"][0, 5:].any()
    ids = torch.tensor([[5, 6, 7, 0, 0]])
    padded = attribute(model, {"input_ids": ids, "attention_mask": (ids > 0).long()}, 7, "relevance")
    alone = attribute(model, [5, 6, 7], 7, "relevance")
    torch.testing.assert_close(padded.values["input_ids"][:, :3], alone.values["input_ids"])
    assert not padded.values["input_ids"][:, 3:].any()


@pytest.mark.parametrize(
    "run",
    [
        lambda x: F.gelu(x, approximate="tanh"),
        F.gelu,
        F.silu,
        torch.tanh,
        F.elu,
        torch.sigmoid,
        torch.exp,
        F.softplus,
        lambda x: x.softmax(-1),
        lambda x: F.layer_norm(x, x.shape[-1:]),
        lambda x: x**3,
        lambda x: x.clamp(-0.2, 0.3),
        lambda x: F.pad(x, (1, 1), value=2.0),
        lambda x: (1 - x) * x,
        lambda x: torch.where(x > 0, x, 2.0),
        lambda x: torch.cat((x, torch.ones(2, 3, dtype=x.dtype)), 1),
        lambda x: F.glu(x),
        lambda x: torch.zeros(2, 4, dtype=x.dtype).index_add(0, torch.tensor([1, 1]), x),
        lambda x: x.mul(2).add_(1),
    ],
)
def test_each_rule_conserves(run):
    """y = sum of leaves times slopes for each operation by itself, where the value is the plain one."""
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    with Linearised(nn.Linear(1, 1), RULES, FUNCTIONS) as made:
        y = run(leaf)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(y, run(x))
    leaves = [leaf, *(s.leaf for s in made.sources)]
    slopes = torch.autograd.grad((y * weight).sum(), leaves)
    total = sum((v.detach() * g).sum() for v, g in zip(leaves, slopes, strict=True))
    torch.testing.assert_close(total, (run(x) * weight).sum())


def test_a_ledger_that_misses_in_float32_is_made_in_float64(monkeypatch):
    model = af.build("llama", "tiny", seed=0).eval()
    monkeypatch.setattr("anyformer.explain.relevance.LOOSE", 1e-12)
    made = attribute(model, [5, 6, 7], 9, "relevance")
    assert abs(float(made.residual)) < 1e-12 and next(model.parameters()).dtype == torch.float32
    assert made.values["input_ids"].dtype == torch.float64


def test_a_baseline_is_an_entry_of_its_own():
    """The shares are of an input less its baseline; the ledger holds the baseline, and adds up as before."""
    model = redrawn(af.build("vit", "tiny", seed=0)).eval().double()
    call = {n: v.double() + 3 for n, v in model.example(1, {}, torch.Generator().manual_seed(0)).items()}
    plain = attribute(model, call, 3, "relevance", baseline="zeros")
    made = attribute(model, call, 3, "relevance", baseline="mean")
    x, slope = call["pixel_values"], plain.each["pixel_values"] / call["pixel_values"]
    base = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(made.each["pixel_values"], (x - base) * slope)
    assert made.ledger is not None and plain.ledger is not None
    (row,) = [row for row in made.ledger.rows if row.name == "baseline of pixel_values"]
    assert row.added["others"] == pytest.approx(float((base * slope).sum()), rel=1e-9)
    assert made.ledger.missing == pytest.approx(plain.ledger.missing, abs=1e-9)
    assert float(made.score) == float(plain.score) and float(made.residual.abs()) < 1e-9
