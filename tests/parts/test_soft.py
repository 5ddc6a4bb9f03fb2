"""Soft masks: each is its formula by every kernel, decodes, has the right gradient, and is nothing at its limit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import anyformer as af
from anyformer.core.recipe import Recipe
from anyformer.parts import Alibi, Attention, Decay, Distances, Forget, Relative, SoftCap, Span, Temperature, Window
from anyformer.parts.attention import kernels as kernel_module
from anyformer.parts.attention.score_parts import slopes
from tests.parts.mixing import flow, made, padded_is_alone, run, slopes_are_right, step_by_step

PLAIN = Attention.of(heads=3, kv_heads=1)
SCORES: dict[str, list[Recipe]] = {
    "temperature": [Temperature.of(0.4)],
    "temperature, learned": [Temperature.of(2.0, learned=True)],
    "cap": [SoftCap.of(0.7)],
    "decay": [Decay.of(0.3)],
    "decay as a power": [Decay.of(1.5, shape="log")],
    "decay as a bell": [Decay.of(0.2, shape="square", learned=True)],
    "alibi": [Alibi.of()],
    "span": [Span.of(far=6, ramp=3)],
    "distances": [Distances.of(far=4)],
    "forget": [Forget.of()],
    "all": [
        SoftCap.of(0.7),
        Forget.of(),
        Temperature.of(0.5),
        Distances.of(far=2),
        Alibi.of(),
        Temperature.of(learned=True),
    ],
}
each = pytest.mark.parametrize("name", SCORES)
Formula = Callable[[Any, int, int, int, Tensor], Any]
BIAS: dict[type, Formula] = {  # of a head, at a query i and a key j
    Decay: lambda p, h, i, j, x: -(p.first if p.rate is None else p.rate[h]) * {
        "linear": abs(i - j), "log": math.log(1 + abs(i - j)), "square": (i - j) ** 2}[p.shape],
    Alibi: lambda p, h, i, j, x: -slopes(3)[h] * abs(i - j),
    Span: lambda p, h, i, j, x: (
        (p.ramp + p.far * p.span[h].sigmoid() - abs(i - j)) / p.ramp).clamp(1e-30, 1).log(),
    Distances: lambda p, h, i, j, x: p.table[h, max(-p.far, min(p.far, j - i)) + p.far],
    Forget: lambda p, h, i, j, x: sum((F.logsigmoid(p.gate(x[t]))[h] for t in range(j + 1, i + 1)), 0 * x[0, 0]),
}  # fmt: skip


def soft(name: str, **options: Any) -> Recipe:
    return PLAIN.but(scores=SCORES[name], **options)


def decoder_only(name: str) -> bool:
    return any(r.part is Forget for r in SCORES[name])


def definition(mixer: Attention, x: Tensor, causal: bool) -> Tensor:
    """Pair by pair, one text (T, D)."""
    K, rows = mixer.head_dim, []
    q, k, v = (p(x).unflatten(-1, (-1, K)) for p in (mixer.q, mixer.k, mixer.v))  # (T, H or 1, K)
    for i in range(len(x)):
        heads = []
        for h in range(mixer.heads):
            scores = []
            for j in range(i + 1 if causal else len(x)):
                s, b = q[i, h] @ k[j, 0] / math.sqrt(K), 0.0
                for part in mixer.scores:
                    if isinstance(part, Temperature):
                        s = s / (part.value if part.log is None else part.log[h].exp())
                    elif not isinstance(part, SoftCap):
                        b = b + BIAS[type(part)](part, h, i, j, x)
                for part in mixer.scores:
                    s = s if part.cap is None else part.cap * torch.tanh(s / part.cap)
                scores.append(s + b)
            heads.append(torch.stack(scores).softmax(0) @ v[: len(scores), 0])
        rows.append(mixer.o(torch.cat(heads)))
    return torch.stack(rows)


@each
@pytest.mark.parametrize("causal", [True, False])
def test_is_the_definition_by_every_kernel(name: str, causal: bool) -> None:
    if decoder_only(name) and not causal:
        return
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    mixer = made(soft(name))
    expected = torch.stack([definition(mixer, row, causal) for row in x])
    out = torch.randn_like(expected)
    slope = torch.autograd.grad((expected * out).sum(), tuple(mixer.parameters()), allow_unused=True)
    for kernel in ("auto", "reference", "sdpa", "chunked", "blockwise"):
        mixer.kernel = kernel
        if kernel == "sdpa" and any(p.cap for p in mixer.scores):
            with pytest.raises(ValueError, match=r'"sdpa" cannot cap scores \(SoftCap\); use "auto"'):
                run(mixer, x, causal)
            continue
        found = run(mixer, x, causal)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)  # ramps and rates are float32
        for ours, theirs in zip(
            torch.autograd.grad((found * out).sum(), tuple(mixer.parameters())), slope, strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@each
def test_flex_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(kernel_module, "_compiled_flex", lambda: flex_attention)
    mixer, x = made(soft(name), dtype=torch.float32), torch.randn(2, 9, 12)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # it warns that it is not compiled
        expected = run(mixer, x)
        mixer.kernel = "flex"
        torch.testing.assert_close(run(mixer, x), expected, atol=1e-5, rtol=1e-5)


@each
@pytest.mark.parametrize("mask", [None, Window(2)], ids=["full", "window"])
def test_token_by_token_is_the_whole(name: str, mask: Window | None) -> None:
    mixer, x = made(soft(name, mask=mask)), torch.randn(2, 11, 12, dtype=torch.float64)
    whole = run(mixer, x)
    torch.testing.assert_close(run(mixer, x[:, :6]), whole[:, :6])  # and no token sees a later one
    for pieces in ([1] * 11, [4, 1, 6], [10, 1]):
        torch.testing.assert_close(step_by_step(mixer, x, pieces), whole, atol=1e-6, rtol=1e-6)


@each
def test_padding_is_not_seen(name: str) -> None:
    mixer, x = made(soft(name)), torch.randn(2, 11, 12, dtype=torch.float64)
    for causal in (True,) if decoder_only(name) else (True, False):
        padded_is_alone(mixer, x, causal)


@each
def test_gradients(name: str) -> None:
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    keep = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    for kernel in ("auto", "blockwise"):
        slopes_are_right(made(soft(name, kernel=kernel)), x * keep[..., None], True, keep)


@each
def test_long_texts_are_the_same_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = made(soft(name)), torch.randn(1, 300, 12, dtype=torch.float64)
    near = made(soft(name, mask=Window(9)))
    near.load_state_dict(mixer.state_dict())
    mixer.kernel = near.kernel = "reference"
    whole, local = run(mixer, x), run(near, x)
    mixer.kernel = near.kernel = "auto"
    made_at_once: list[int] = []
    plain = kernel_module.weights if any(p.cap for p in mixer.scores) else F.scaled_dot_product_attention

    def watch(q: Tensor, *rest: Any, **named: Any) -> Tensor:
        made_at_once.append(q.shape[2])
        return plain(q, *rest, **named)

    monkeypatch.setattr(kernel_module, "weights", watch)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    torch.testing.assert_close(run(mixer, x), whole, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(run(near, x), local, atol=1e-6, rtol=1e-6)
    pieces = [128, 128, 44]
    assert made_at_once == ([300] if "temperature" in name else pieces) + pieces


def test_a_fixed_bias_is_made_once_for_all_layers_and_a_long_one_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Alibi.of_view

    def of_view(self: Alibi, view: Any) -> Tensor:
        sizes.append(view.count * view.keys)
        return plain(self, view)

    monkeypatch.setattr(Alibi, "of_view", of_view)
    recipe = af.recipe("llama", "tiny", depth=3, context=400).but(
        {"**.mixer.positions": None, "**.mixer.scores": [Alibi.of()]}
    )
    model, ids = af.build(recipe, seed=0).eval(), torch.arange(300)[None] % 100
    with torch.no_grad():
        found = model(ids).logits
        model(ids[:, :100])
        assert sizes.pop() == 100 * 100
        assert len(sizes) == 3 * 3 and max(sizes) == 128 * 256  # layers and pieces; a piece has the keys up to it
        monkeypatch.setattr("anyformer.parts.attention.masks.CHUNK", 1000)
        torch.testing.assert_close(found, model(ids).logits, atol=1e-5, rtol=1e-4)


LIMITS: dict[str, tuple[list[Recipe], Callable[[Any], Any]]] = {
    "temperature of 1": ([Temperature.of(1.0)], lambda p: None),
    "learned temperature, at first": ([Temperature.of(learned=True)], lambda p: p.reset_parameters()),
    "cap that nothing reaches": ([SoftCap.of(1e30)], lambda p: None),
    "cap far above all scores": ([SoftCap.of(1e6)], lambda p: None),
    "decay of 0": ([Decay.of(0.0)], lambda p: None),
    "span beyond the text": ([Span.of(far=1000, start=999, ramp=1)], lambda p: p.reset_parameters()),
    "distances, at first": ([Distances.of(far=3)], lambda p: p.reset_parameters()),
    "an open gate": ([Forget.of()], lambda p: (p.gate.weight.data.zero_(), p.gate.bias.data.fill_(100.0))),
}


@pytest.mark.parametrize("name", LIMITS)
def test_at_its_limit_it_is_nothing(name: str) -> None:
    scores, neutral = LIMITS[name]
    mixer, x = made(PLAIN.but(scores=scores)), torch.randn(2, 9, 12, dtype=torch.float64)
    plain = made(PLAIN)
    plain.load_state_dict({n: p for n, p in mixer.state_dict().items() if "scores" not in n})
    neutral(mixer.scores[0])
    torch.testing.assert_close(run(mixer, x), run(plain, x), atol=1e-9, rtol=1e-9)


def test_towards_0_the_largest_score_alone_counts() -> None:
    mixer, x = made(PLAIN.but(scores=[Temperature.of(1e-6)])), torch.randn(1, 9, 12, dtype=torch.float64)
    q, k = mixer.q(x[0]).unflatten(-1, (3, 4)), mixer.k(x[0])
    best = torch.einsum("thk,sk->hts", q, k).argmax(-1)  # (H, T)
    expected = mixer.o(mixer.v(x[0])[best].transpose(0, 1).flatten(1))
    torch.testing.assert_close(run(mixer, x, causal=False)[0], expected)


@pytest.mark.parametrize(
    ("scores", "closed"),
    [
        ([Decay.of(1e4)], lambda p: None),
        ([Span.of(far=1, ramp=1)], lambda p: p.span.data.fill_(-100.0)),
        ([Forget.of()], lambda p: (p.gate.weight.data.zero_(), p.gate.bias.data.fill_(-1e4))),
    ],
    ids=["decay", "span", "forget"],
)
def test_closed_a_token_sees_itself_alone(scores: list[Recipe], closed: Callable[[Any], Any]) -> None:
    mixer, x = made(PLAIN.but(scores=scores)), torch.randn(1, 9, 12, dtype=torch.float64)
    closed(mixer.scores[0])
    torch.testing.assert_close(run(mixer, x)[0], mixer.o(mixer.v(x[0]).repeat(1, 3)))


def test_an_infinite_temperature_or_a_cap_of_0_is_the_mean() -> None:
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    for part in (Temperature.of(1e12), SoftCap.of(1e-12)):
        mixer = made(PLAIN.but(scores=[part]))
        expected = mixer.o(mixer.v(x[0]).mean(0).repeat(3))
        torch.testing.assert_close(run(mixer, x, causal=False)[0], expected.expand(9, -1))


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 12, 20])
def test_alibi_is_transformers(heads: int) -> None:
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom", reason="needs transformers")
    mpt = pytest.importorskip("transformers.models.mpt.modeling_mpt", reason="needs transformers")
    keep = torch.ones(1, 7, dtype=torch.long)
    expected = bloom.build_alibi_tensor(keep, heads, torch.float32).view(heads, 7)  # - slope (i - j), up to a constant
    ours = Alibi.of().build(12, heads, 4).of_distance(torch.arange(-6, 1))
    torch.testing.assert_close(ours - ours[:, :1], expected)
    torch.testing.assert_close(ours, mpt.build_mpt_alibi_tensor(heads, 7).view(heads, 7))
    assert len(slopes(heads)) == heads


def test_cap_is_gemma_2s() -> None:
    theirs = pytest.importorskip("transformers.models.gemma2.modeling_gemma2", reason="needs transformers")
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind()
    module = torch.nn.Module()
    module.num_key_value_groups = 1  # type: ignore[assignment]
    expected, _ = theirs.eager_attention_forward(module, 9 * q, k, v, None, scaling=0.5, softcap=3.0)
    from anyformer.parts.attention.masks import Full, View

    found = kernel_module.attend(9 * q, k, v, View(Full(), 0, 9, 0, 9), scale=0.5, cap=3.0)
    torch.testing.assert_close(found.transpose(1, 2), expected, atol=1e-5, rtol=1e-5)


def test_a_window_keeps_the_gates_of_its_keys_alone() -> None:
    from anyformer.core.mixer import start_state

    mixer = made(soft("forget", mask=Window(3)))
    state = start_state([mixer], 1)
    for i in range(40):
        mixer(torch.randn(1, 1, 12, dtype=torch.float64), flow(1, first=i, state=state))
    assert state.slots[mixer.scores[0]].bytes() <= 3 * 8 * 8  # heads, float64, keys


def test_speculation_and_beams_take_the_gates_along() -> None:
    recipe = af.recipe("llama", "tiny").but({"**.mixer.positions": None, "**.mixer.scores": [Forget.of()]})
    model, ids = af.build(recipe, seed=0).eval(), torch.randint(0, 128, (3, 9))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3)
        expected = model(torch.cat((ids[[2, 0], :4], ids[[1, 1], 6:]), 1)).logits
        state = model.start(3)
        model(ids[:, :4], state=state)
        state.mark()
        model(ids[:, 4:6], state=state)
        state.trim(4)
        state.reorder(torch.tensor([2, 0]))
        found = model(ids[[1, 1], 6:], state=state).logits
    torch.testing.assert_close(found, expected[:, 4:], atol=1e-5, rtol=1e-4)


def test_recipes_are_kept(tmp_path: Any) -> None:
    recipe = af.recipe("llama", "tiny").but({"**.mixer.heads": 3, "**.mixer.kv_heads": 1, "**.mixer.head_dim": 4})
    recipe = recipe.but({"**.mixer.scores": [*SCORES["all"], Span.of(far=9, cost=0.1), Relative.of()]})
    model = af.build(recipe, seed=0).eval()
    model.save(tmp_path)
    again = af.load(str(tmp_path))
    assert again.recipe == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
        model(ids).aux["span"]  # what heads that look far cost


def test_weights_that_one_listens_to_are_those_that_are_used() -> None:
    recipe = af.recipe("llama", "tiny").but({"**.mixer.scores": [SoftCap.of(1.0), Alibi.of(), Forget.of()]})
    model, ids = af.build(recipe, seed=0).eval(), torch.arange(20)[None]
    with torch.no_grad():
        before = model(ids).logits
        with af.Taps(model, "blocks.0.mixer.weights", "blocks.0.mixer.v", "blocks.0.mixer.o") as taps:
            assert torch.equal(model(ids).logits, before)
        v = taps["blocks.0.mixer.v"].unflatten(-1, (2, -1)).repeat_interleave(2, 2)  # (B, S, H, K)
        y = torch.einsum("bhts,bshk->bthk", taps["blocks.0.mixer.weights"], v).flatten(2)
        torch.testing.assert_close(model.blocks[0].mixer.o(y), taps["blocks.0.mixer.o"])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([Temperature.of(0.0)], "value divides the scores and must be above 0; got 0.0"),
        ([SoftCap.of(-1.0)], "value is the largest score and must be above 0; got -1.0"),
        ([SoftCap.of(1.0), SoftCap.of(2.0)], "capped once"),
        ([Decay.of(-0.1)], "rate must be at least 0"),
        ([Decay.of(shape="cubic")], "shape must be one of 'linear', 'log', 'square'"),
        ([Span.of(far=0)], "far and ramp must be at least 1"),
        ([Span.of(far=4, start=4)], "start lies between 0 and far"),
        ([Distances.of(far=-1)], "must be at least 0; got -1"),
        (Alibi.of(), r"scores: expected a list.*; write \[Alibi.of\(\)\]"),
        ([Window(3)], r"scores\.0: expected a recipe of a Score, got Window"),
    ],
)
def test_what_makes_no_sense_is_named(scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PLAIN.but(scores=scores).build(12)


def test_heads_whose_scores_are_changed_stay_together_under_tensor_parallelism() -> None:
    from anyformer.train.distributed.tensor import plain

    assert plain(PLAIN.build(12))
    assert not plain(PLAIN.but(scores=[Alibi.of()]).build(12))  # its slopes are those of all heads


def test_what_does_not_fit_says_so() -> None:
    with pytest.raises(ValueError, match="Forget sees only earlier tokens"):
        run(made(soft("forget")), torch.randn(1, 4, 12, dtype=torch.float64), causal=False)
    with pytest.raises(ValueError, match="Alibi depends on distances inside one text"):
        PLAIN.but(scores=[Alibi.of()], cross=True).build(12)
    assert PLAIN.but(scores=[Temperature.of(2.0), SoftCap.of(3.0)], cross=True).build(12).scores is not None
