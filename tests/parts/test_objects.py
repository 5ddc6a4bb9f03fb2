"""LXMERT's parts: objects of a picture, and layers in which a text and objects read each other.

B batch, T tokens, N objects, D width.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.parts import MLP, Attention, Block, LayerNorm
from anyformer.parts.objects import AnswerHead, Crossing, ObjectHeads, Objects

DIM = 8


def drawn(part: Any, seed: int = 0) -> Any:
    noise = torch.Generator().manual_seed(seed)
    for parameter in part.parameters():
        parameter.data.normal_(0, 0.3, generator=noise)
    return part.eval()


def inputs(model: Any, tokens: int, objects: int, rows: int = 2) -> dict[str, Tensor]:
    return model.example(rows, {"": (tokens,), "visual_": (objects,)}, torch.Generator().manual_seed(3))


def test_text_and_objects_may_differ_in_number_and_each_in_padding() -> None:
    model = drawn(af.build("lxmert", "tiny"))
    alone = inputs(model, 4, 3)
    more = {name: torch.cat((value, torch.ones_like(value[:, :2])), 1) for name, value in alone.items()}
    masks = {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)}
    masks["visual_attention_mask"] = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    one, both = model(**alone), model(**more, **masks)
    torch.testing.assert_close(both.hidden[:, :4], one.hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.heads["objects"][:, :3], one.heads["objects"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.heads["answer"], one.heads["answer"], rtol=1e-4, atol=1e-5)
    assert (model(**more).hidden[:, :4] - one.hidden).abs().max() > 1e-3  # without masks all are read


def test_the_order_of_objects_permutes_them_alone() -> None:
    model, order = drawn(af.build("lxmert", "tiny")), torch.tensor([2, 0, 3, 1])
    given = inputs(model, 5, 4)
    moved = given | {name: given[name][:, order] for name in ("visual_feats", "visual_pos")}
    one, other = model(**given), model(**moved)
    torch.testing.assert_close(other.hidden, one.hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.heads["objects"], one.heads["objects"][:, order], rtol=1e-4, atol=1e-5)


def test_both_directions_read_the_streams_as_they_came_by_one_attention() -> None:
    block = Block.of(mixer=Attention.of(heads=2), ffn=MLP.of(), norm=LayerNorm.of(), wiring="post")
    layer = drawn(Crossing.of(Attention.of(heads=2, cross=True), LayerNorm.of(), block, block).build(DIM))
    layer.second.load_state_dict(layer.first.state_dict())
    noise = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 3, DIM, generator=noise), torch.randn(2, 5, DIM, generator=noise)
    one, other = Flow(torch.arange(3)), Flow(torch.arange(5))
    first, second = layer((x, one), (y, other))
    swapped = layer((y, other), (x, one))
    torch.testing.assert_close(swapped, (second, first))


def test_objects_are_the_mean_of_two_normed_maps() -> None:
    front = drawn(Objects.of(features=6, norm=LayerNorm.of(), place=4).build(DIM))
    given = front.example(2, (3,), torch.Generator().manual_seed(0))
    x = front(given, Flow(torch.arange(3)))
    parts = front.norm["features"](front.features(given["feats"])), front.norm["place"](front.place(given["pos"]))
    torch.testing.assert_close(x, (parts[0] + parts[1]) / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual_feats": torch.zeros(2, 3, 5)}, r"feats of objects must be \(batch, 3, 20\), got \(2, 3, 5\)"),
        ({"visual_pos": torch.zeros(2, 4, 4)}, r"pos of objects must be \(batch, 3, 4\), got \(2, 4, 4\)"),
        ({"visual_pos": None}, "this model reads visual_pos"),
        ({"visual_attention_mask": torch.ones(2, 4)}, "visual_attention_mask"),
        ({"boxes": torch.ones(2, 3, 4)}, "no part of this model reads 'boxes'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    model = af.build("lxmert", "tiny", seed=0)
    given = {k: v for k, v in (inputs(model, 4, 3) | changes).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        model(**given)


def test_heads_of_objects_are_one_layer_with_several_ends() -> None:
    heads = drawn(ObjectHeads.of(scores={"object": 5, "attribute": 3}, norm=LayerNorm.of()).build(DIM))
    x = torch.randn(2, 4, DIM)
    said = heads(x)
    assert {name: tuple(value.shape) for name, value in said.items()} == {"object": (2, 4, 5), "attribute": (2, 4, 3)}
    inside = heads.norm(torch.nn.functional.gelu(heads.dense(x)))
    torch.testing.assert_close(said["object"], heads.out["object"](inside))
    with pytest.raises(ValueError, match="AnswerHead reads Pooled"):
        AnswerHead.of(answers=3, norm=LayerNorm.of()).build(DIM)(x, Flow(torch.arange(4)))
