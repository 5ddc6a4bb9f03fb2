"""Packed documents beyond what the contract draws: long rows, scalings by length, the open scan; and its own teeth."""

import itertools
import random
from dataclasses import replace

import pytest
import torch

import anyformer as af
from anyformer.contract import packing
from anyformer.contract.subjects import Subject
from anyformer.core.documents import lengths, positions_in_documents
from anyformer.parts import Attention, Rotary, Window
from anyformer.parts.attention import masks
from anyformer.parts.attention.kernels import attend
from anyformer.parts.attention.masks import CAUSAL, CHUNK, FULL, Causal, Packed, View
from anyformer.parts.attention.sparse_masks import BlockWindow, Global, Prefix, Strided
from anyformer.parts.positions import Dynamic, LongRope
from anyformer.parts.recurrent.chunked import convolved
from anyformer.parts.recurrent.mamba import scan, scan_open

torch.set_num_threads(1)


@pytest.mark.parametrize("mask", [CAUSAL, FULL, CAUSAL & Window(40)], ids=["causal", "full", "window"])
@pytest.mark.parametrize("groups", [4, 2])
def test_documents_one_after_the_other_are_those_of_the_mask(mask, groups, monkeypatch):
    """Values and gradients beside the formula; two rows of other documents, with padding in front and behind."""
    monkeypatch.setattr(masks, "CALL", 0)
    ids = torch.stack([
        torch.repeat_interleave(torch.tensor(i), torch.tensor(n))
        for i, n in (([-1, 0, 1, 2, 3], [3, 20, 57, 1, 19]), ([0, 1, 2, -1], [30, 30, 30, 10]))
    ])  # fmt: skip
    packed = Packed(ids, positions_in_documents(ids))
    seen = View(mask, 0, 100, 0, 100, ids >= 0, torch.device("cpu"), packed, packed)
    assert [len(row) for row in seen.cuts] == [5, 4] and masks.resolved(seen)[1] is None
    draw = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, 100, 8, generator=draw, dtype=torch.float64, requires_grad=True)
        for heads in (4, groups, groups)
    )
    found = []
    for kernel in ("auto", "reference"):
        y = attend(q, k, v, seen, kernel=kernel)
        found.append([y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), (q, k, v))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_documents_are_cut_only_where_that_computes_less():
    ids = torch.arange(8).repeat_interleave(512)[None]
    packed = Packed(ids, positions_in_documents(ids))

    def cuts(mask, ids, mine, theirs):
        return View(mask, 0, ids.shape[1], 0, ids.shape[1], ids >= 0, torch.device("cpu"), mine, theirs).cuts

    assert cuts(CAUSAL, ids, packed, packed) == [[(512, True)] * 8]
    assert not cuts(CAUSAL & Window(20), ids, packed, packed)  # local attention keeps less
    assert not cuts(CAUSAL, ids, packed, Packed(ids, packed.positions))  # keys of another text
    one = Packed(ids * 0, packed.positions)
    assert not cuts(CAUSAL, ids * 0, one, one)


def subject(recipe):
    return Subject(f"test {hash(recipe)}", recipe)


def test_positions_and_lengths_begin_again_in_each_document():
    ids = torch.tensor([[-1, 0, 0, 0, 1, 1, -1], [0, 3, 3, 4, 4, 4, 4]])
    assert positions_in_documents(ids)[:, 1:].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3]]
    assert lengths(positions_in_documents(ids))[1].tolist() == [1, 2, 2, 4, 4, 4, 4]


@pytest.mark.parametrize("ids", [[0, 1, 0], [0, -1, 0], [1, 0, 0], [0, -2, 1]])
def test_document_in_two_pieces_is_refused(ids):
    with pytest.raises(ValueError, match="one piece"):
        positions_in_documents(torch.tensor([ids]))


@pytest.mark.parametrize("scaling", [Dynamic(2.0, 6), LongRope((1.0,) * 4, (3.0,) * 4, 6, 1.2)])
def test_a_scaling_by_length_goes_by_the_length_of_the_document(scaling):
    recipe = af.recipe("llama", "tiny").but({"blocks.*.mixer.positions": Rotary.of(scaling=scaling)})
    for seed in range(3):
        packing.packing_changes_nothing(subject(recipe), random.Random(seed))


@pytest.mark.parametrize("mask", [None, Window(20)], ids=["full", "window"])
def test_rows_longer_than_a_chunk(mask):
    """A window goes through local attention, which sees a piece of the documents at a time."""
    recipe = af.recipe("llama", "tiny", depth=1, context=3 * CHUNK).but({"blocks.*.mixer.mask": mask})
    assert not mask or View(Causal() & mask, 0, 3 * CHUNK, 0, 3 * CHUNK).local()
    model = af.build(recipe, seed=0).eval()
    ids = torch.randint(0, 128, (1, 3 * CHUNK), generator=torch.Generator().manual_seed(0))
    cuts = [0, 100, 101, 290, 3 * CHUNK]
    documents = torch.cat([torch.full((b - a,), i) for i, (a, b) in enumerate(itertools.pairwise(cuts))])[None]
    together = model(ids, document_ids=documents).logits
    for a, b in itertools.pairwise(cuts):
        torch.testing.assert_close(together[:, a:b], model(ids[:, a:b]).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [Global(2), Strided(3), BlockWindow(4, 1, 0), Prefix(3)], ids=str)
def test_masks_by_place_go_by_the_place_in_the_document(mask):
    for name in ("llama", "bert"):
        recipe = af.recipe(name, "tiny", **({"task": "masked"} if name == "bert" else {}))
        for seed in range(3):
            packing.packing_changes_nothing(subject(recipe.but({"blocks.*.mixer.mask": mask})), random.Random(seed))


def test_open_scan_begins_again_too():
    noise = torch.Generator().manual_seed(0)
    u, step = torch.randn(2, 70, 3, generator=noise), torch.rand(2, 70, 3, generator=noise)
    A, B, C = -torch.rand(3, 4, generator=noise), *torch.randn(2, 2, 70, 4, generator=noise)
    begins = torch.rand(2, 70, generator=noise) < 0.1
    h = torch.randn(2, 3, 4, generator=noise)
    for ours, theirs in zip(scan_open(u, step, A, B, C, h, begins), scan(u, step, A, B, C, h, 32, begins), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("fault", ["convolution", "state"])
def test_the_contract_finds_a_mamba_that_looks_back(fault, monkeypatch):
    if fault == "convolution":
        blind = lambda conv, u, past, flow: convolved(conv, u, past, replace(flow, documents=None))  # noqa: E731
        monkeypatch.setattr("anyformer.parts.recurrent.mamba.convolved", blind)
    else:
        monkeypatch.setattr("anyformer.parts.recurrent.mamba.scan", lambda *a: scan(*a[:-1]))
    with pytest.raises(AssertionError):
        packing.no_gradient_between_documents(subject(af.recipe("mamba", "tiny")), random.Random(0))


def test_a_mixer_that_does_not_say_so_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(Attention, "packs", False)
    with pytest.raises(ValueError, match="Attention cannot keep packed documents apart"):
        af.build("gpt", "tiny")(torch.tensor([[1, 2]]), document_ids=torch.tensor([[0, 1]]))
