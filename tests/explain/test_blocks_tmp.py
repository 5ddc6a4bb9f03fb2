"""Weights in blocks: the same as all at once, and a long text without a tensor of all pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import anyformer as af
from anyformer.core import pages
from anyformer.core.taps import Taps
from anyformer.explain import attention_picture, blocks, roles
from anyformer.explain import maps as maps_module
from anyformer.explain.attention import implied, kinds
from anyformer.explain.blocks import InBlocks, Weights, rollout
from anyformer.explain.features import Explained
from anyformer.explain.maps import attention_maps
from anyformer.explain.reading import Reading
from anyformer.explain.report import report
from anyformer.explain.rows import attention_row
from anyformer.hub.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor that any operation made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor))])
        return made


def _paths(model: Any) -> list[str]:
    return [path for layers in {**kinds(model), **implied(model)}.values() for path in layers.values()]


@pytest.mark.parametrize("name", [n for n in pages.names() if _paths(pages.empty(af.recipe(n, "tiny")))])
def test_blocks_are_the_whole(name, monkeypatch):
    """On every page: to the bit, or by one rounding where products of other shapes round otherwise."""
    model = af.build(name, "tiny", seed=0).eval()
    call = Explained(model, model.complete(model.example(1, {}, torch.Generator().manual_seed(0))))
    paths = _paths(model)
    with torch.no_grad(), Taps(model, *(f"{path}.weights" for path in paths)) as taps:
        call.run()
    monkeypatch.setattr(blocks, "NUMBERS", 300)
    with torch.no_grad(), InBlocks(model, paths) as made:
        call.run()
    several = False
    for path in paths:
        whole, each = taps[f"{path}.weights"], made.maps[path]
        assert each.shape == tuple(whole.shape)
        if whole.ndim != 4:
            continue
        parts = list(each.blocks())
        several |= len(parts) > 1
        again = torch.zeros_like(whole)
        for rows, columns, block in parts:
            again[..., rows, columns] = block
        torch.testing.assert_close(again, whole, rtol=0, atol=2e-7)
        torch.testing.assert_close(each.row(1), whole[..., 1, :], rtol=0, atol=2e-7)
        high, wide = each.pooled(4).shape[2:]  # the largest of each cell, also of a smaller one at the end
        for i, j in ((0, 0), (high - 1, wide - 1)):
            corner = whole[..., 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten(2).amax(-1)
            torch.testing.assert_close(each.pooled(4)[..., i, j], corner, rtol=0, atol=2e-7)
    assert several or name in ("detr", "informer", "vit_hybrid")  # whose maps are small


def test_rollout_in_blocks_is_that_of_the_whole(monkeypatch):
    layers = [Weights.of(torch.rand(1, 2, 11, 11).softmax(-1)) for _ in range(3)]
    whole, coarse = rollout(layers), rollout(layers, 2)
    monkeypatch.setattr(blocks, "NUMBERS", 40)
    torch.testing.assert_close(rollout(layers), whole)
    torch.testing.assert_close(rollout(layers, 2), coarse)
    by_hand = torch.eye(6)  # cells of 2 tokens, the last one of 1
    for layer in layers:
        mean = layer.pooled(1)[0].mean(0)
        into = torch.stack([mean[:, 2 * i : 2 * i + 2].sum(1) for i in range(6)], 1)
        by_hand = 0.5 * (torch.stack([into[2 * i : 2 * i + 2].mean(0) for i in range(6)]) + torch.eye(6)) @ by_hand
    torch.testing.assert_close(coarse, by_hand)
    even = [Weights.of((torch.rand(1, 2, 4, 4) / 8).repeat_interleave(2, -1).repeat_interleave(2, -2)) for _ in "ab"]
    fine = rollout(even).unflatten(1, (4, 2)).sum(2).unflatten(0, (4, 2)).mean(1)
    torch.testing.assert_close(rollout(even, 2), fine)  # exact where the tokens of a cell read alike


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_roles_in_blocks_are_those_of_the_whole(name, monkeypatch):
    model = af.build(name, "tiny", vocab=257, context=100, seed=0).eval()
    model.tokenizer = Tokenizer.bytes_level()
    text = "Some text, to be read: again, and again."
    whole = roles(model, text)
    monkeypatch.setattr(blocks, "NUMBERS", 500)
    made = roles(model, text)
    for role, scores in whole.scores.items():
        torch.testing.assert_close(made.scores[role], scores, rtol=1e-5, atol=1e-6)


def test_a_text_of_4000_tokens_is_explained_in_bounded_memory(tmp_path, monkeypatch):
    """No tensor of all pairs, 16 million for each head: the largest one is a block, or grows with the length."""
    monkeypatch.setattr(blocks, "NUMBERS", 1 << 20)
    monkeypatch.setattr(maps_module, "MOST", blocks.NUMBERS)
    model = af.build("llama", "tiny", vocab=257, context=4096, heads=2, kv_heads=1, depth=1, seed=0).eval()
    model.tokenizer = Tokenizer.bytes_level()
    ids = torch.randint(32, 126, (1, 4000), generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        made = report(model, Reading({"input_ids": ids}, "text", "4000 tokens"), method="grad")
    assert largest.most <= max(blocks.NUMBERS, 4000 * 257 * 2)
    (maps,) = made.data["maps"]
    assert (maps["rows"], maps["columns"]) == (4000, 4000) and maps["cell"] >= 4 and maps["rollout"]
    assert len(made.html().encode()) <= 3_000_000
    with Largest() as largest:
        looked = attention_row(model, ids[0, :3990].tolist(), ids[0, 3990:].tolist())
    assert looked.rows[0].weights.shape == (2, 3999) and largest.most <= 4000 * 257
    with Largest() as largest:
        picture = attention_picture(model, ids, tmp_path / "a.png", layer=0, head=0)
    assert picture.exists() and largest.most <= blocks.NUMBERS


def test_the_largest_tensor_is_seen():
    """The measure above finds a map that is made whole."""
    model = af.build("llama", "tiny", context=4096, seed=0).eval()
    with torch.no_grad(), Largest() as largest, Taps(model, "blocks.0.mixer.weights"):
        model(torch.zeros(1, 600, dtype=torch.long))
    assert largest.most >= 4 * 600 * 600


def test_many_heads_are_kept_in_cells(monkeypatch):
    model = af.build("llama", "tiny", seed=0).eval()
    call = Explained(model, {"input_ids": torch.arange(1, 12)[None]})
    (whole,), _ = attention_maps(call)
    monkeypatch.setattr(maps_module, "MOST", 2 * 4 * 6 * 6)
    (made,), _ = attention_maps(call)
    assert made.cell == 2 and made.weights.shape == (2, 4, 6, 6) and (made.rows, made.columns) == (11, 11)
    assert torch.equal(made.weights[..., 5, 5], whole.weights[..., 10, 10])
