"""Neurons: a planted unit is found, its absence is measured, and it promotes what its column says."""

from __future__ import annotations

import pytest
import torch

import anyformer as af
from anyformer.core import pages
from anyformer.explain.neurons import hidden_of, neurons
from anyformer.hub.text.tokenizer import Tokenizer
from tests.explain.test_relevance import _mixed, _wide
from tests.later import later

FEW = ("llama", "gpt", "bert", "vit", "t5", "gemma3")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def test_a_planted_unit_is_found():
    model = af.build("llama", "tiny", vocab=257, seed=0).eval()
    model.tokenizer = Tokenizer.bytes_level()
    token = model.tokenizer.encode("z", special=False)[0]
    ffn = model.blocks[-1].ffn
    with torch.no_grad():
        row = model.head.proj.weight[token]
        ffn.down.weight[:, 5] = 30 * row / row.norm()
    made = neurons(model, "abcabd", token, ["the quick brown fox", "jumps over a lazy dog", "a" * 400])
    first = made.found[0]
    assert first.path == "blocks.1.ffn" and first.unit == 5 and len(made.found) == 12
    sign = 1 if first.active > 0 else -1
    assert (first.promotes if sign > 0 else first.suppresses)[0][0] == token
    with torch.no_grad():
        plain = float(model(torch.tensor([model.tokenizer.encode("abcabd")])).logits[0, -1, token])
        held = ffn.down.weight[:, 5].clone()
        ffn.down.weight[:, 5] = 0
        gone = float(model(torch.tensor([model.tokenizer.encode("abcabd")])).logits[0, -1, token])
        ffn.down.weight[:, 5] = held
    assert made.score == pytest.approx(plain, rel=1e-5) and first.effect == pytest.approx(plain - gone, rel=1e-3)
    assert len(first.contexts) == 3 and all(len(c.ids) <= 13 and 0 <= c.at < len(c.ids) for c in first.contexts)
    assert all(c.active * sign >= 0 or abs(c.active) < abs(first.active) for c in first.contexts)


@pytest.mark.parametrize("name", [*FEW, *later(*(n for n in pages.names() if n not in FEW))])
def test_every_page_has_neurons_or_says_why(name):
    model, call = _wide(name)
    try:
        hidden_of(model)
    except ValueError as error:
        assert "no feed-forward part" in str(error) and name not in FEW
        return
    made = neurons(model, call, _mixed, top=4)
    assert len(made.found) == 4 and made.found[0].share
    for n in made.found:
        assert n.effect == pytest.approx(n.share, abs=abs(n.share) + 5)  # of first order
        assert n.promotes or made.silent or n.path.startswith(("encoder", "media", "images", "towers")), n
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_bad_calls_are_named():
    with pytest.raises(ValueError, match="no feed-forward part"):
        neurons(af.build("mamba", "tiny").eval(), [1, 2, 3], 4)
    with pytest.raises(ValueError, match="one score; got 2 rows"):
        neurons(af.build("llama", "tiny").eval(), torch.tensor([[1, 2], [3, 4]]), 4)
