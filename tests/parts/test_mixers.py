"""Every other mixer: padding, decoding, gradients, limits, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer.core.recipe import Recipe
from anyformer.parts import (
    Convolution,
    Favor,
    Fourier,
    GatedDelta,
    LinearAttention,
    Linformer,
    Mamba,
    Mamba2,
    Nystrom,
)
from anyformer.parts.recurrent import chunked
from tests.parts.mixing import made, padded_is_alone, run, slopes_are_right, step_by_step

DECODES: dict[str, Recipe] = {
    "mamba": Mamba.of(state=3, chunk=4),
    "mamba 2": Mamba2.of(heads=6, state=5, groups=2, chunk=4),
    "mamba 2, one group": Mamba2.of(heads=2, state=3, conv_kernel=1, longest=0.6, chunk=5),
    "gated delta": GatedDelta.of(heads=3, value_dim=5, chunk=4),
    "delta": GatedDelta.of(heads=2, gated=False, conv_kernel=2, chunk=4),
    "convolution": Convolution.of(width=4),
    "one token": Convolution.of(width=1),
    "long convolution": Convolution.of(width=70),
}
BOTH: dict[str, Recipe] = {
    "linformer": Linformer.of(length=20, rank=5, heads=3, kv_heads=1),
    "linformer, shared": Linformer.of(length=13, rank=30, heads=2, shared=True),
    "nystrom": Nystrom.of(heads=3, landmarks=4),
    "fourier": Fourier.of(),
    "convolution": Convolution.of(width=4),
    "long convolution": Convolution.of(width=71),
}
EVERY = [*((n, r, True) for n, r in DECODES.items()), *((n, r, False) for n, r in BOTH.items())]
names = pytest.mark.parametrize(("name", "recipe", "causal"), EVERY, ids=[f"{n}-{c}" for n, _, c in EVERY])


def text(rows: int, time: int) -> torch.Tensor:
    return torch.randn(rows, time, 12, dtype=torch.float64)


@names
def test_padding_is_not_seen(name: str, recipe: Recipe, causal: bool) -> None:
    padded_is_alone(made(recipe), text(2, 11), causal)


@names
def test_gradients(name: str, recipe: Recipe, causal: bool) -> None:
    keep = torch.ones(2, 6, dtype=torch.bool)
    keep[1, :2] = False
    if recipe.part is Fourier:
        return  # linear, with no parameters: its gradient is itself
    slopes_are_right(made(recipe), text(2, 6) * keep[..., None], causal, keep)
    slopes_are_right(made(recipe), text(1, 5), causal)


@pytest.mark.parametrize("name", DECODES)
def test_token_by_token_is_the_whole(name: str) -> None:
    mixer, x = made(DECODES[name]), text(2, 13)
    whole = run(mixer, x)
    torch.testing.assert_close(run(mixer, x[:, :8]), whole[:, :8])  # and no token sees a later one
    for pieces in ([1] * 13, [6, 1, 6], [12, 1]):
        torch.testing.assert_close(step_by_step(mixer, x, pieces), whole)


@pytest.mark.parametrize("name", BOTH)
def test_an_encoder_sees_both_ways(name: str) -> None:
    mixer, x = made(BOTH[name]), text(1, 7).requires_grad_()
    for at, other in ((2, 3), (4, 3)):
        (slope,) = torch.autograd.grad(run(mixer, x, causal=False)[0, at].square().sum(), x)
        assert slope[0, other].abs().max() > 0


def test_a_long_kernel_by_fft_is_the_same_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = made(Convolution.of(width=9, bias=False)), text(2, 31)
    direct = run(mixer, x, causal=False)
    monkeypatch.setattr("anyformer.parts.recurrent.convolution.SHORT", 0)
    torch.testing.assert_close(run(mixer, x, causal=False), direct)


def test_fourier_is_the_definition() -> None:
    x = text(1, 7)
    angle = lambda n: torch.outer(torch.arange(n), torch.arange(n)).double() * (-2j * math.pi / n)  # noqa: E731
    expected = (angle(7).exp() @ x.to(torch.complex128) @ angle(12).exp()).real
    torch.testing.assert_close(run(Fourier.of().build(12), x, causal=False), expected)


def test_the_delta_rule_reads_back_what_was_written_last() -> None:
    """With orthogonal keys, full writing and no fading, what is read at a key is its last value: not the sum."""
    from anyformer.parts.recurrent.chunked import delta

    keys = torch.eye(3, dtype=torch.float64)[[0, 1, 0, 2, 1]][None]
    values = torch.randn(1, 5, 4, dtype=torch.float64)
    one = torch.ones(1, 5, dtype=torch.float64)
    y, _ = delta(keys, keys, values, one, 0 * one, torch.zeros(1, 3, 4, dtype=torch.float64))
    torch.testing.assert_close(y, values)


def test_gated_delta_is_transformers() -> None:
    theirs = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next", reason="needs transformers")
    from anyformer.parts.recurrent.chunked import delta
    from anyformer.parts.recurrent.delta import unit

    q, k, v = torch.randn(3, 2, 19, 3, 4).unbind()  # (B, T, H, K)
    fade, beta = -torch.rand(2, 19, 3), torch.rand(2, 19, 3)
    expected, last = theirs.torch_recurrent_gated_delta_rule(
        q, k, v, fade, beta, initial_state=None, output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    a, b, c, d, e = (t.transpose(1, 2) for t in (unit(q) / 2, unit(k), v, beta, fade))
    y, state = delta(a, b, c, d, e, torch.zeros(2, 3, 4, 4), 5)
    torch.testing.assert_close(y.transpose(1, 2), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_mamba_2_without_decay_is_linear_attention_without_its_quotient() -> None:
    mixer, x = made(Mamba2.of(heads=2, state=3, conv_kernel=1)), text(1, 9)
    with torch.no_grad():
        mixer.A_log.fill_(-100.0)  # A = -4e-44
    found = run(mixer, x)
    gate, mixed, step = mixer.into(x).split([24, 30, 2], -1)
    u, k, q = F.silu(mixer.conv(mixed.mT).mT).split([24, 3, 3], -1)
    step = F.softplus(step + mixer.step)[..., None]  # (B, T, H, 1)
    v = u.unflatten(-1, (2, 12))
    y = torch.einsum("bts,bshp->bthp", (q @ k.mT).tril(), step * v) + mixer.skip[:, None] * v
    torch.testing.assert_close(found, mixer.out(mixer.norm(y.flatten(2), gate)))


@pytest.mark.parametrize("name", [n for n in BOTH if "convolution" not in n])
def test_what_cannot_decode_says_so(name: str) -> None:
    recipe = BOTH[name]
    with pytest.raises(ValueError, match=f"{recipe.part.__name__} mixes every token with all others"):
        run(made(recipe), text(1, 5), causal=True)
    small = recipe if recipe.part is Fourier else recipe.but(heads=4)
    decoder = af.build(af.recipe("gpt", "tiny").but({"blocks.*.mixer": small}), seed=0)
    with pytest.raises(ValueError, match=f"{recipe.part.__name__} cannot decode step by step"):
        decoder.start(1)


@pytest.mark.parametrize("name", ["delta", "mamba", "mamba 2"])
def test_a_recurrence_in_an_encoder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="sees only earlier tokens"):
        run(made(DECODES[name]), text(1, 5), causal=False)


PIECEWISE = [DECODES["mamba 2"], DECODES["gated delta"], LinearAttention.of(heads=3), Favor.of(heads=3)]


@pytest.mark.parametrize("recipe", PIECEWISE, ids=repr)
def test_a_long_text_in_pieces_is_the_same(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = made(recipe), text(2, 23)
    keep = torch.ones(2, 23, dtype=torch.bool)
    keep[0, :8], keep[1, 20:] = False, False
    whole = run(mixer, x, keep=keep)
    monkeypatch.setattr(chunked, "PIECE", 5)
    torch.testing.assert_close(run(mixer, x, keep=keep), whole)
    slopes_are_right(mixer, x, True, keep)


def test_a_longer_text_than_linformer_was_built_for_is_refused() -> None:
    with pytest.raises(ValueError, match="Linformer was built for 20 tokens, the text has 21"):
        run(made(BOTH["linformer"]), text(1, 21), causal=False)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Convolution.of(width=0), "width is the tokens"),
        (Linformer.of(length=0), "at least 1"),
        (Linformer.of(length=5, heads=4, kv_heads=3), "kv_heads=3 does not divide heads=4"),
        (Nystrom.of(landmarks=0), "at least 1"),
        (Nystrom.of(heads=5), "does not divide into 5 heads"),
        (GatedDelta.of(heads=2, chunk=0), "at least 1"),
        (GatedDelta.of(heads=2, head_dim=0), "head_dim must be at least 1"),
        (Mamba2.of(heads=7), "heads=7 must divide the inner width 24"),
        (Mamba2.of(heads=0), "at least 1"),
        (Mamba2.of(heads=4, shortest=2.0, longest=1.0), "shortest <= longest"),
    ],
)
def test_what_makes_no_sense_is_named(recipe: Recipe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe.build(12)


@pytest.mark.parametrize("name", ["mamba 2", "gated delta"])
def test_half_precision_keeps_its_state_in_float32(name: str) -> None:
    mixer: Any = made(DECODES[name], dtype=torch.bfloat16)
    slot = mixer.start(1, 4, next(mixer.parameters()))
    assert slot.held[-1].dtype == torch.float32
    exact, x = made(DECODES[name], dtype=torch.float32), text(1, 40).float()
    off = (run(mixer, x.bfloat16()).float() - run(exact, x)).norm() / run(exact, x).norm()
    assert off < 0.05
