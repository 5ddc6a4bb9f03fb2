"""Gradients through a decoding state: the same, however a text is cut into pieces."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer.core import pages
from anyformer.parts import LatentAttention, LocalAttention, Window
from anyformer.skeletons.decoder import CausalLM

STOPPED = {"compressive", "memorizing", "transformerxl"}  # their gradient ends at what is remembered, by design
CUTS = ([6, 6], [1] * 12, [5, 1, 6])
MIXERS = {
    "local": {"blocks.*.mixer": LocalAttention.of(heads=4, size=3)},
    "window": {"blocks.*.mixer.mask": Window(2)},
    "latent": {"blocks.*.mixer": LatentAttention.of(heads=4, kv_rank=8)},
}


def gradients(model, ids, sizes, evaluate=False):
    """Of the summed loss of a text that is read in pieces."""
    model.zero_grad()
    state, at, loss = model.start(len(ids), 12), 0, torch.zeros(())
    for n in sizes:
        logits = model(ids[:, at : at + n], state=state).logits
        loss = loss + F.cross_entropy(logits.flatten(0, 1), ids[:, at + 1 : at + n + 1].flatten(), reduction="sum")
        at += n
    if evaluate:  # decoding goes on without gradients, before backward
        with torch.no_grad():
            model(ids[:, :3], state=state)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check(model):
    ids = torch.randint(3, model.vocab, (2, 13), generator=torch.Generator().manual_seed(0))
    ids[torch.isin(ids, torch.tensor([*model.placeholders], dtype=torch.long))] = 3  # a text without media
    wanted = gradients(model, ids, [12])
    for sizes in CUTS:
        found = gradients(model, ids, sizes)
        assert found.keys() == wanted.keys()
        for name, slope in found.items():
            torch.testing.assert_close(slope, wanted[name], rtol=1e-9, atol=1e-11)


TINY = {name: pages.page(name).recipe(pages.page(name).at("tiny")) for name in pages.names()}
DECODERS = [
    name for name, recipe in TINY.items() if issubclass(recipe.part, CausalLM) and pages.empty(recipe).generates
]


@pytest.mark.parametrize("page", sorted({*DECODERS} - STOPPED))
def test_pieces_give_the_gradient_of_the_whole(page):
    check(af.build(page, "tiny", seed=0).double())


@pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS.keys())
def test_so_do_other_mixers(changes):
    check(af.build(af.recipe("llama", "tiny").but(changes), seed=0).double())


@pytest.mark.parametrize("page", sorted({"llama", "gemma3", *STOPPED}))
def test_decoding_on_leaves_the_gradient_as_it_was(page):
    model = af.build(page, "tiny", seed=0).double()
    ids = torch.randint(3, model.embed.vocab, (2, 13), generator=torch.Generator().manual_seed(0))
    wanted = gradients(model, ids, [6, 6])
    for name, slope in gradients(model, ids, [6, 6], evaluate=True).items():
        assert torch.equal(slope, wanted[name])


def test_without_gradients_nothing_is_copied():
    """Keys and values are written into memory that is there: decoding costs what it did."""
    model = af.build("llama", "tiny", seed=0).eval()
    state = model.start(1, 12)
    slot: Any = next(iter(state.slots.values()))
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]), state=state)
        place = slot.memory.data_ptr()
        for _ in range(4):
            model(torch.tensor([[8]]), state=state)
    assert slot.memory.data_ptr() == place and slot.length == 7
