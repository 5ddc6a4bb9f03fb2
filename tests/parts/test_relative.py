"""Transformer-XL's relative positions against their definition and against XLNet's code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.core.recipe import Recipe
from anyformer.parts import Attention, Relative, Window
from anyformer.parts.attention import relative
from anyformer.parts.attention.masks import Causal, Full, View
from tests.parts.mixing import flow, made, run, slopes_are_right, step_by_step

RECIPE = Attention.of(heads=3, kv_heads=1, scores=[Relative.of()])


def definition(mixer: Attention, x: Tensor, causal: bool, far: int = 1 << 30) -> Tensor:
    """Pair by pair, one text."""
    part, H, K = mixer.scores[0], mixer.heads, mixer.head_dim
    q, k, v = (p(x[0]).unflatten(-1, (-1, K)) for p in (mixer.q, mixer.k, mixer.v))
    T, D, rows = len(q), x.shape[-1], []
    w = 10000.0 ** (-torch.arange(0, D, 2, dtype=x.dtype) / D)
    for i in range(T):
        heads = []
        for h in range(H):
            g, scores = h * mixer.kv_heads // H, []
            for j in range(i + 1 if causal else T):
                d = max(-far, min(far, i - j))
                R = torch.cat(((d * w).sin(), (d * w).cos()))
                r = (part.r.weight @ R).unflatten(0, (H, K))[h]
                scores.append((q[i, h] + part.u[h]) @ k[j, g] + (q[i, h] + part.v[h]) @ r)
            heads.append((torch.stack(scores) / math.sqrt(K)).softmax(0) @ v[: len(scores), g])
        rows.append(mixer.o(torch.cat(heads)))
    return torch.stack(rows)[None]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("far", [None, 3])
def test_is_the_definition(causal: bool, far: int | None) -> None:
    mixer = made(RECIPE.but({"scores.0.far": far}))
    x = torch.randn(1, 7, 12, dtype=torch.float64)
    # sines are made in float64 and handed on in float32
    torch.testing.assert_close(run(mixer, x, causal), definition(mixer, x, causal, far or 99), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_is_xlnets(causal: bool) -> None:
    theirs = pytest.importorskip("transformers.models.xlnet.modeling_xlnet", reason="needs transformers")
    B, T, M, H, K, D = 2, 5, 4, 3, 4, 12  # M: keys of an earlier segment, which have smaller indices
    part = Relative.of().build(D, H, K)
    q, k, v = torch.randn(B, T, H, K), torch.randn(B, M + T, H, K), torch.randn(B, M + T, H, K)
    layer = theirs.XLNetRelativeAttention(theirs.XLNetConfig(d_model=D, n_head=H, d_inner=4, n_layer=1))
    layer.r_w_bias.data, layer.r_r_bias.data, layer.dropout = part.u.data, part.v.data, torch.nn.Identity()
    distance = torch.arange(M + T, -T, -1.0)
    waves = theirs.XLNetModel.positional_embedding(distance, 1 / 10000 ** (torch.arange(0, D, 2.0) / D))  # (N, 1, D)
    r = part.r(waves).unflatten(-1, (H, K)).expand(-1, B, -1, -1)
    hidden = torch.ones(T, M + T).triu(M + 1)[:, :, None, None].expand(-1, -1, B, H) if causal else None
    turn = lambda t: t.transpose(0, 1)  # noqa: E731
    expected = layer.rel_attn_core(turn(q), turn(k), turn(v), r, attn_mask=hidden)  # (T, B, H, K)
    from anyformer.parts.attention.kernels import attend
    from anyformer.parts.attention.scores import Call, changed

    view = View(Causal() if causal else Full(), 0, T, -M, M + T)
    call = Call(torch.empty(B, T, D), q.transpose(1, 2), K**-0.5, view, flow(T, causal))
    queries, bias, _ = changed([part], call, None)
    assert bias is not None
    found = attend(queries, k.transpose(1, 2), v.transpose(1, 2), view, None, bias(view))
    torch.testing.assert_close(found.permute(2, 0, 1, 3), expected, atol=1e-5, rtol=1e-5)


def test_without_its_parameters_it_is_nothing() -> None:
    mixer, x = made(RECIPE), torch.randn(2, 6, 12, dtype=torch.float64)
    plain = made(RECIPE.but(scores=[]))
    plain.load_state_dict({n: p for n, p in mixer.state_dict().items() if "scores" not in n})
    with torch.no_grad():
        mixer.scores[0].u.zero_(), mixer.scores[0].r.weight.zero_()
    torch.testing.assert_close(run(mixer, x), run(plain, x))


@pytest.mark.parametrize("recipe", [RECIPE, RECIPE.but(mask=Window(2))], ids=["full", "window"])
def test_token_by_token_padding_and_gradient(recipe: Recipe) -> None:
    mixer, x = made(recipe), torch.randn(2, 11, 12, dtype=torch.float64)
    whole = run(mixer, x)
    for pieces in ([1] * 11, [4, 1, 6]):
        torch.testing.assert_close(step_by_step(mixer, x, pieces), whole)
    keep = torch.ones(2, 11, dtype=torch.bool)
    keep[1, :4] = False
    for causal in (True, False):
        both = run(mixer, x * keep[..., None], causal, keep)
        torch.testing.assert_close(both[1, 4:], run(mixer, x[1:, 4:], causal)[0])
        slopes_are_right(mixer, x[:, :5], causal)


def test_long_texts_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = made(RECIPE), torch.randn(1, 300, 12, dtype=torch.float64)
    monkeypatch.setattr("anyformer.parts.attention.masks.CHUNK", 1000)
    whole = run(mixer, x)
    monkeypatch.undo()
    pieces: list[int] = []

    def shifted(every: Tensor, keys: int) -> Tensor:
        pieces.append(every.shape[2])
        return plain(every, keys)

    plain = relative.shifted
    monkeypatch.setattr(relative, "shifted", shifted)
    torch.testing.assert_close(run(mixer, x), whole)
    assert pieces == [128, 128, 44]


def test_a_page_takes_it_by_one_line_and_keeps_it(tmp_path: object) -> None:
    model = (
        af.recipe("llama", "tiny").but({"**.mixer.positions": None, "**.mixer.scores": [Relative.of(far=9)]}).build()
    )
    model.save(tmp_path)
    ids = torch.arange(24)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, af.load(str(tmp_path))(ids).logits)


def test_what_makes_no_sense_is_named() -> None:
    with pytest.raises(ValueError, match="far, the largest distance"):
        RECIPE.but({"scores.0.far": 0}).build(12)
    with pytest.raises(ValueError, match=r"scores: expected a list.*; write \[Relative.of\(\)\]"):
        RECIPE.but(scores=Relative.of()).build(12)
    with pytest.raises(ValueError, match="another one; leave it out"):
        RECIPE.but(cross=True).build(12)
    with pytest.raises(ValueError, match=r"scores\.0: expected a recipe of a Score, got Attention"):
        RECIPE.but(scores=[RECIPE]).build(12)
    with pytest.raises(ValueError, match=r"positions: expected a recipe of a Rotary or None, got Relative.of"):
        RECIPE.but(positions=Relative.of()).build(12)
