"""Fewer key and value heads: exact where heads were equal, refused where they do not divide, saved as what it is."""

import pytest
import torch

import anyformer as af
from anyformer.compress.grouped import pool_heads
from anyformer.contract.subjects import redrawn

IDS = torch.randint(0, 128, (2, 11), generator=torch.Generator().manual_seed(0))


def model(page, **changes):
    return redrawn(af.build(page, "tiny", **changes)).eval()


def repeated(page, groups, **changes):
    """A model whose key and value heads are equal within each of `groups`."""
    made = model(page, **changes)
    with torch.no_grad():
        for part in (b.mixer for b in made.blocks):
            for weight in [*part.k.parameters(), *part.v.parameters()]:
                heads = weight.unflatten(0, (groups, -1, part.head_dim))
                heads.copy_(heads[:, :1].expand_as(heads).clone())
    return made


@pytest.mark.parametrize(("page", "changes"), [("llama", {"kv_heads": 4, "bias": True}), ("gpt", {}), ("bert", {})])
def test_equal_heads_are_pooled_without_a_change(page, changes):
    made = repeated(page, 2, **changes)
    before = made(IDS).hidden
    size = sum(p.numel() for p in made.parameters())
    assert pool_heads(made, 2) == ["blocks.0.mixer", "blocks.1.mixer"]
    torch.testing.assert_close(made(IDS).hidden, before)
    assert sum(p.numel() for p in made.parameters()) < size
    assert {b.mixer.kv_heads for b in made.blocks} == {2} and made.blocks[0].mixer.k.out_features == 16


def test_means_are_of_neighbours():
    made = model("llama", kv_heads=4)
    old = made.blocks[0].mixer.v.weight.detach().clone()  # 4 heads of 8
    pool_heads(made, 2, "blocks.0.mixer")
    torch.testing.assert_close(made.blocks[0].mixer.v.weight[8:16], (old[16:24] + old[24:32]) / 2)
    assert made.blocks[1].mixer.kv_heads == 4 and made.page is None


def test_it_stays_a_model_of_its_page_and_decodes_with_a_smaller_state(tmp_path):
    made = model("llama", kv_heads=4)
    state = made.start(1, 16).bytes()
    pool_heads(made, 1)
    assert made.page == "llama" and made.config.kv_heads == 1
    made.save(tmp_path / "m")
    again = af.load(tmp_path / "m")
    assert again.config.kv_heads == 1 and torch.equal(again(IDS).logits, made(IDS).logits)
    assert 4 * again.start(1, 16).bytes() == state


def test_heads_that_do_not_divide_are_named_and_nothing_changes():
    made = model("llama", kv_heads=4)
    before = made.recipe
    with pytest.raises(ValueError, match=r"blocks.0.mixer has 4 key and value heads, which cannot form 3 groups"):
        pool_heads(made, 3)
    assert made.recipe == before and made.blocks[0].mixer.k.out_features == 32
