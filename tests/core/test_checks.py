"""Masks and places in other conventions than ours: understood, or refused with what to give instead."""

import pytest
import torch

import anyformer as af
from anyformer.core import checks
from anyformer.train import Settings, memory, objectives

PAGES = {"llama": {}, "bert": {}, "t5": {"decoder_input_ids": torch.tensor([[0, 5, 6]])}}
IDS = torch.randint(3, 90, (1, 6), generator=torch.Generator().manual_seed(0))
SEEN = torch.tensor([[1, 1, 1, 1, 0, 0]])
HIDDEN = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 1.0]])


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int32, torch.long, torch.float16, torch.float32])
@pytest.mark.parametrize("page", PAGES)
def test_ones_and_zeros_of_any_type_are_one_mask(page, kind):
    model = af.build(page, "tiny", seed=0).eval()
    wanted = model(IDS, attention_mask=SEEN, **PAGES[page]).logits
    assert torch.equal(model(IDS, attention_mask=SEEN.to(kind), **PAGES[page]).logits, wanted)


MASKS = {
    "-inf is added": (torch.where(HIDDEN == 1, float("-inf"), 0.0), "pass mask == 0"),
    "a large number is added": (HIDDEN * -1e4, "pass mask == 0"),
    "the smallest number is added": (HIDDEN * torch.finfo(torch.float16).min, "pass mask == 0"),
    "whole numbers are added": ((HIDDEN * -10_000).long(), "pass mask == 0"),
    "nothing is hidden by adding": (HIDDEN * 0, "pass mask == 0"),
    "texts are numbered": (torch.tensor([[1, 1, 2, 2, 2, 0]]), "pass document_ids"),
    "NaN": (torch.where(HIDDEN == 1, float("nan"), 1.0), "got nan"),
    "weights": (1 - HIDDEN / 2, "got 0.5"),
    "four dimensions": (SEEN[None, None], "must be (1, 6), got (1, 1, 1, 6)"),
    "another length": (SEEN[:, :5], "(1, 6), got (1, 5)"),
}


@pytest.mark.parametrize(("mask", "said"), MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("page", PAGES)
def test_other_masks_are_refused(page, mask, said):
    with pytest.raises(ValueError) as caught:
        af.build(page, "tiny", seed=0)(IDS, attention_mask=mask, **PAGES[page])
    assert said in str(caught.value)


PLACES = {
    "texts begin anew": ([[0, 1, 2, 0, 1, 2]], None, "go back in row 0, from 2 to 0"),
    "a text goes on and another begins": ([[7, 8, 9, 0, 1, 2]], None, "from 9 to 0"),
    "of some rows": ([[0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 0, 1]], None, "in row 1, from 1 to 0"),
    "behind padding": ([[0, 0, 1, 2, 0, 1]], [[0, 1, 1, 1, 1, 1]], "from 2 to 0"),
    "numbers with a point": ([[0.0, 1, 2, 3, 4, 5]], None, "must be whole numbers, got torch.float32"),
    "too few": ([[0, 1, 2]], None, "(batch, tokens) = (1, 6), got (1, 3)"),
}


@pytest.mark.parametrize(("given", "keep", "said"), PLACES.values(), ids=PLACES.keys())
def test_places_that_mean_several_texts_are_refused(given, keep, said):
    model = af.build("llama", "tiny", seed=0)
    places, mask = torch.tensor(given), None if keep is None else torch.tensor(keep)
    with pytest.raises(ValueError) as caught:
        model(IDS.expand(len(places), 6), attention_mask=mask, position_ids=places)
    assert said in str(caught.value) and ("go back" not in said or "document_ids" in str(caught.value))


def test_places_as_others_give_them_are_taken():
    """One row for all, and 1 at padding on the left, as transformers' `generate` counts."""
    model = af.build("llama", "tiny", seed=0).eval()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    wanted = model(IDS, attention_mask=mask).logits[:, 2:]
    given = model(IDS, attention_mask=mask, position_ids=torch.tensor([[1, 1, 0, 1, 2, 3]])).logits[:, 2:]
    torch.testing.assert_close(given, wanted)
    for places in (torch.arange(6), torch.arange(6)[None], torch.tensor([[3, 4, 5, 9, 9, 20]])):
        assert checks.position_ids(places, 2 if places.ndim == 1 else 1, 6) is places


def test_global_tokens_are_ones_and_zeros():
    model = af.build("longformer", "tiny", seed=0)
    with pytest.raises(ValueError, match="global_attention_mask must hold only 1 and 0"):
        model(IDS, global_attention_mask=SEEN * 2)


def test_nothing_is_looked_at_where_there_is_nothing():
    mask, places = SEEN.to("meta"), torch.arange(6, device="meta")
    assert checks.attention_mask(mask, 1, (6,)).is_meta and checks.position_ids(places, 1, 6).is_meta


@pytest.mark.parametrize("named", [{"attention_mask": SEEN}, {"document_ids": torch.tensor([[0, 0, 1, 1, -1, -1]])}])
def test_shapes_alone_are_predicted(named):
    """Checks do not look into tensors without content, so the memory of a run is known before it."""
    model = af.build("llama", "tiny", seed=0)
    batch = {"input_ids": IDS, "labels": IDS.roll(-1, 1), **named}
    assert memory.estimate(model, batch, objectives.causal_lm, Settings(1)).peak > 0
