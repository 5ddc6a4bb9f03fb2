"""Rotary positions on three axes: their angles and the places of pictures in a text are those of Qwen2.5-Omni."""

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.parts import Attention, Rotary
from anyformer.parts.grid import Axes, RotaryAxes
from anyformer.skeletons import Medium, with_media
from anyformer.skeletons.media import laid, marks_of, on_axes

MARK = 99


def model() -> Any:
    """A decoder whose pictures of 2 x 2 patches have places of their own."""
    text = af.recipe("llama", "tiny").but({"blocks.*.mixer.positions": RotaryAxes.of(sections=(1, 2, 1))})
    tower = af.recipe("vit", "tiny", image=8, patch=4, depth=1)
    return af.build(with_media(text, image=Medium.of(MARK, tower, cut=1, grid=True)), seed=0).eval()


def test_without_places_it_is_rotary():
    x, flow = torch.randn(2, 7, 3, 8), Flow(torch.arange(7))
    axes = RotaryAxes.of(sections=(1, 2, 1), theta=500.0).build(8)
    torch.testing.assert_close(axes(x, flow), Rotary.of(theta=500.0).build(8)(x, flow), rtol=0, atol=0)
    flow = Flow(torch.arange(7))
    flow.put(Axes(torch.arange(7).expand(3, 2, 7)))
    torch.testing.assert_close(axes(x, flow), Rotary.of(theta=500.0).build(8)(x, Flow(torch.arange(7))))


def test_angles_are_those_of_transformers():
    modeling = pytest.importorskip("transformers.models.qwen2_5_omni.modeling_qwen2_5_omni")
    configuration = pytest.importorskip("transformers.models.qwen2_5_omni.configuration_qwen2_5_omni")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    config = configuration.Qwen2_5OmniTextConfig(**sizes, rope_parameters=rope)
    places = torch.randint(0, 50, (3, 2, 6), generator=torch.Generator().manual_seed(0))
    cos, sin = modeling.Qwen2_5OmniRotaryEmbedding(config)(torch.zeros(1), places)
    q = torch.randn(2, 2, 6, 16)  # (B, H, T, K)
    wanted, _ = modeling.apply_rotary_pos_emb(q, q, cos, sin)
    flow = Flow(torch.arange(6))
    flow.put(Axes(places))
    found = RotaryAxes.of(sections=(2, 3, 3)).build(16)(q.transpose(1, 2), flow)
    torch.testing.assert_close(found.transpose(1, 2), wanted, rtol=1e-5, atol=1e-5)


def test_places_of_pictures_in_a_text_are_those_of_transformers():
    """A picture's rows and columns count from where it begins, and the text goes on behind the largest."""
    modeling = pytest.importorskip("transformers.models.qwen2_5_omni.modeling_qwen2_5_omni")
    configuration = pytest.importorskip("transformers.models.qwen2_5_omni.configuration_qwen2_5_omni")
    config = configuration.Qwen2_5OmniThinkerConfig(image_token_id=MARK, vision_start_token_id=98)

    class Theirs(modeling.Qwen2_5OmniPreTrainedModelForConditionalGeneration):  # type: ignore[name-defined]
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.config, self.spatial_merge_size = config, 2

    rows = [[1, 98, *[MARK] * 6, 2, 3, 98, *[MARK] * 4, 4], [0, 0, 0, 5, 98, *[MARK] * 4, 6, 7, 8, 9, 10, 11, 12]]
    ids = torch.tensor(rows)
    keep = torch.tensor([[1] * 16, [0] * 3 + [1] * 13])
    grids = torch.tensor([[1, 4, 6], [1, 4, 4], [1, 4, 4]])  # patches; of four each one position
    wanted, _ = Theirs().get_rope_index(ids, grids, attention_mask=keep)
    index = [torch.arange(r * c) for r, c in ((2, 3), (2, 2), (2, 2))]
    place = [torch.stack((0 * i, i // (len(i) // 2), i % (len(i) // 2)), 1) for i in index]
    each = [marks_of(p, i, i == i[-1], p.max()) for p, i in zip(place, index, strict=True)]
    here, positions = ids == MARK, (keep.cumsum(1) - 1).clamp(min=0)
    marks = torch.where(here[..., None], laid(torch.cat(each), here), 0)  # (B, T, 5)
    found = on_axes(positions, marks, torch.zeros(2, dtype=torch.long))
    assert torch.equal(found[:, keep.bool()], wanted.long()[:, keep.bool()])
    for first in range(16):  # as the calls of a cache see them
        one = on_axes(positions[:, first:], marks[:, first:], marks[:, :first, 4].sum(1))
        assert torch.equal(one[:, keep[:, first:].bool()], found[:, :, first:][:, keep[:, first:].bool()])


@torch.no_grad()
def test_places_make_a_difference_and_a_cache_none():
    made, px = model(), torch.randn(3, 3, 8, 8)
    ids = torch.tensor([[1, *[MARK] * 4, 2, *[MARK] * 4, 3, 4], [5, 6, *[MARK] * 4, 7, 8, 9, 10, 11, 12]])
    whole = made(input_ids=ids, pixel_values=px).logits
    state, pieces = made.start(2), []
    spans = made.inserts({"input_ids": ids, "pixel_values": px})["pixel_values"][:, 1]
    for first, end in ((0, 3), (3, 7), (7, 9), (9, 12)):
        begun = px[(spans >= first) & (spans < end)]
        given = {"pixel_values": begun} if len(begun) else {}
        pieces.append(made(input_ids=ids[:, first:end], state=state, **given).logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-5)
    state.trim(7)
    again = made(input_ids=ids[:, 7:], state=state).logits
    torch.testing.assert_close(again, whole[:, 7:], rtol=1e-4, atol=1e-5)
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), ids), 1)
    keep = torch.cat((torch.zeros(2, 3), torch.ones(2, 12)), 1).long()
    left = made(input_ids=padded, attention_mask=keep, pixel_values=px).logits
    torch.testing.assert_close(left[:, 3:], whole, rtol=1e-4, atol=1e-5)
    for medium in made.mediums():
        medium.grid = False
    assert not torch.allclose(made(input_ids=ids, pixel_values=px).logits, whole)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"sections are pairs, 4 together; got \(1, 2\)"):
        RotaryAxes.of(sections=(1, 2)).build(8)
    flow = Flow(torch.arange(5))
    flow.put(Axes(torch.zeros(2, 1, 5)))
    with pytest.raises(ValueError, match="has 3 sections, and the tokens 2 places each"):
        Attention.of(heads=1, positions=RotaryAxes.of(sections=(1, 2, 1))).build(8)(torch.randn(1, 5, 8), flow)
    tower = af.recipe("vit", "tiny", image=8, patch=4)
    made: Any = af.build(with_media(af.recipe("llama", "tiny"), image=Medium.of(MARK, tower, grid=True)), seed=0)
    with pytest.raises(ValueError, match="grid=True needs a position for each cell of a picture"):
        made(input_ids=torch.tensor([[1, *[MARK] * 5]]), pixel_values=torch.randn(1, 3, 8, 8))
