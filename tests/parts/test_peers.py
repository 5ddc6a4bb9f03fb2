"""Pages that `transformers` does not know, beside the package that does: the same weights, the same numbers."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.parts import Attention, Linformer, Nystrom
from tests.parts.mixing import made, run


def copied(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    """Our weights into theirs; `names` has their prefixes for ours, and nothing may be left out."""
    state = {
        b + name.removeprefix(a): value
        for name, value in ours.state_dict().items()
        for a, b in names.items()
        if name.startswith(a)
    }
    found = theirs.load_state_dict(state, strict=False)
    assert not found.unexpected_keys, found
    assert all("proj_updater" in name for name in found.missing_keys), found  # the layers again, and a counter


def layers(depth: int, ours: dict[str, str]) -> dict[str, str]:
    """The names of every layer."""
    return {f"blocks.{i}.{a}": b.format(i=i) for i in range(depth) for a, b in ours.items()}


@pytest.mark.parametrize("case", ["tiny", "relu", "wide heads", "bias"])
def test_performer_is_performer_pytorchs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("performer_pytorch.performer_pytorch", reason="needs pip install performer-pytorch")
    page = af.page("performer")
    c = page.at("tiny", **page.module.CASES.get(case, {}))
    if c.feature == "softmax":  # their eps counts from the largest of all keys, the future included
        c = page.at("tiny", **page.module.CASES.get(case, {}) | {"feature_eps": 0.0})
        monkeypatch.setattr(package, "softmax_kernel", functools.partial(package.softmax_kernel, eps=0.0))
    noncuda = functools.partial(package.causal_linear_attention_noncuda, eps=0.0)
    monkeypatch.setattr(package, "causal_linear_attention_noncuda", noncuda)
    ours = redrawn(page.recipe(c).build()).eval()
    width = c.head_dim or c.dim // c.heads
    theirs = package.PerformerLM(
        num_tokens=c.vocab, max_seq_len=c.context, dim=c.dim, depth=c.depth, heads=c.heads, dim_head=width, causal=True,
        nb_features=c.features, generalized_attention=c.feature == "relu", tie_embed=c.tied, rotary_position_emb=False,
        qkv_bias=c.bias, attn_out_bias=c.bias,
    ).eval()  # fmt: skip
    for layer in theirs.performer.net.layers:  # their MLP is 4 x as wide as the stream
        layer[1].fn.fn.w1, layer[1].fn.fn.w2 = nn.Linear(c.dim, c.hidden), nn.Linear(c.hidden, c.dim)
    attention = "performer.net.layers.{i}.0."
    inner = {
        "norm.mixer.": attention + "norm.",
        "norm.ffn.": "performer.net.layers.{i}.1.norm.",
        "mixer.projection": attention + "fn.fast_attention.projection_matrix",
        **{f"mixer.{a}.": attention + f"fn.to_{b}." for a, b in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))},
        "ffn.up.": "performer.net.layers.{i}.1.fn.fn.w1.",
        "ffn.down.": "performer.net.layers.{i}.1.fn.fn.w2.",
    }
    names = {"embed.tokens.": "token_emb.", "embed.positions.": "pos_emb.emb.", "norm.": "norm."}
    copied(ours, theirs, names | {"head.proj.": "to_out.", "head.bias": "to_out.bias"} | layers(c.depth, inner))
    ids = torch.randint(c.vocab, (2, 21))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [64, 21])
@pytest.mark.parametrize("case", ["tiny", "shared", "wide heads"])
def test_linformer_is_linformers(case: str, length: int) -> None:
    package = pytest.importorskip("linformer.linformer", reason="needs pip install linformer")
    page = af.page("linformer")
    c = page.at("tiny", **page.module.CASES.get(case, {}))
    ours = redrawn(page.recipe(c).build()).eval()
    theirs = package.LinformerLM(
        num_tokens=c.vocab, dim=c.dim, seq_len=c.context, depth=c.depth, k=c.rank, heads=c.heads, dim_head=c.head_dim,
        one_kv_head=c.kv_heads == 1, share_kv=c.shared,
    ).eval()  # fmt: skip
    for layer in theirs.linformer.net.layers:
        layer[1].fn.w1, layer[1].fn.w2 = nn.Linear(c.dim, c.hidden), nn.Linear(c.hidden, c.dim)
    attention = "linformer.net.layers.{i}.0."
    inner = {
        "norm.mixer.": attention + "norm.",
        "norm.ffn.": "linformer.net.layers.{i}.1.norm.",
        "mixer.E": attention + "fn.proj_k",
        "mixer.F": attention + "fn.proj_v",
        **{f"mixer.{a}.": attention + f"fn.to_{b}." for a, b in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))},
        "ffn.up.": "linformer.net.layers.{i}.1.fn.w1.",
        "ffn.down.": "linformer.net.layers.{i}.1.fn.w2.",
    }
    names = {"embed.tokens.": "token_emb.", "embed.positions.": "pos_emb.", "heads.tokens.proj.": "to_logits."}
    copied(ours, theirs, names | {"heads.tokens.bias": "to_logits.bias"} | layers(c.depth, inner))
    ids = torch.randint(c.vocab, (2, length))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids), rtol=1e-5, atol=1e-5)


def test_nystrom_is_nystrom_attentions() -> None:
    package = pytest.importorskip("nystrom_attention.nystrom_attention", reason="needs pip install nystrom-attention")
    ours = made(Nystrom.of(heads=1, landmarks=4, bias=False), 12)  # all their heads start at that of the largest
    theirs = package.NystromAttention(12, dim_head=12, heads=1, num_landmarks=4, residual=False).double()
    state: dict[str, Any] = {"to_qkv.weight": torch.cat([ours.q.weight, ours.k.weight, ours.v.weight])}
    theirs.load_state_dict(state | {"to_out.0.weight": ours.o.weight, "to_out.0.bias": torch.zeros(12)})
    for length in (12, 16):  # other lengths it pads with a token that is seen
        x = torch.randn(1, length, 12, dtype=torch.float64)
        torch.testing.assert_close(run(ours, x, causal=False), theirs(x))


def test_linformer_of_full_rank_with_identities_is_attention() -> None:
    ours, full = made(Linformer.of(length=9, rank=9, heads=3), 12), made(Attention.of(heads=3), 12)
    with torch.no_grad():
        ours.E.copy_(torch.eye(9))
        ours.F.copy_(torch.eye(9))
    full.load_state_dict({n: v for n, v in ours.state_dict().items() if n not in ("E", "F")})
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(run(ours, x, causal=False), run(full, x, causal=False))


def test_nystrom_with_a_landmark_for_each_token_is_attention() -> None:
    full = made(Attention.of(heads=3), 12)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    for landmarks in (9, 14):
        ours = made(Nystrom.of(heads=3, landmarks=landmarks, steps=30), 12)
        ours.load_state_dict(full.state_dict())
        torch.testing.assert_close(run(ours, x, causal=False), run(full, x, causal=False), rtol=1e-5, atol=1e-6)
