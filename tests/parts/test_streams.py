"""Conditions, adaptive norms and joint attention, at limits with a known answer.

B batch, T cells of the picture, S positions of the text, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.core.init import initialise
from anyformer.parts import (
    MLP,
    Adaptive,
    AdaptiveNorm,
    Attention,
    JointAttention,
    JointBlock,
    Label,
    LastJointAttention,
    PatchGrid,
    PlainNorm,
    RMSNorm,
    Side,
    Sines2D,
    States,
    Time,
    Unpatch,
)
from anyformer.parts.adaptive import Told
from anyformer.parts.embeddings import Cells
from anyformer.parts.streams import Border, first_alone, joined
from anyformer.train.model_setup import with_text

DIM, HEADS, T, S = 8, 2, 6, 4
NORM = {"mixer": PlainNorm.of(), "ffn": PlainNorm.of()}


def drawn(part: Any, seed: int = 0) -> Any:
    noise = torch.Generator().manual_seed(seed)
    for parameter in part.parameters():
        parameter.data.normal_(0, 0.3, generator=noise)
    return part.eval()


def flow(keep: Tensor | None = None, words: int = S) -> Flow:
    start = Flow(torch.arange(T))
    start.put(Cells(2, 3, first=0))
    start.put(Told(torch.randn(2, DIM, generator=torch.Generator().manual_seed(9))))
    return joined(torch.zeros(2, T, DIM), torch.zeros(2, words, DIM), start, keep)[1]


def stream(length: int, seed: int = 1) -> Tensor:
    return torch.randn(2, length, DIM, generator=torch.Generator().manual_seed(seed))


def test_joint_attention_without_a_second_stream_is_attention() -> None:
    joint = drawn(JointAttention.of(heads=HEADS, norm=RMSNorm.of(eps=1e-6)).build(DIM))
    plain = Attention.of(heads=HEADS, bias=True, norm=RMSNorm.of(eps=1e-6)).build(DIM).eval()
    plain.load_state_dict(joint.first.state_dict())
    x = stream(T)
    torch.testing.assert_close(joint(x, flow(words=0)), plain(x, Flow(torch.arange(T))))


def test_joint_attention_of_equal_projections_is_attention_over_both() -> None:
    joint = drawn(JointAttention.of(heads=HEADS).build(DIM))
    joint.second.load_state_dict(joint.first.state_dict())
    plain = Attention.of(heads=HEADS, bias=True).build(DIM).eval()
    plain.load_state_dict(joint.first.state_dict())
    x = stream(T + S)
    torch.testing.assert_close(joint(x, flow()), plain(x, Flow(torch.arange(T + S))))


def test_the_last_one_gives_what_the_others_give_the_first_stream() -> None:
    joint, last = (drawn(p.of(heads=HEADS).build(DIM)) for p in (JointAttention, LastJointAttention))
    last.load_state_dict({k: v for k, v in joint.state_dict().items() if not k.startswith("second.o")})
    x = stream(T + S)
    torch.testing.assert_close(last(x, flow()), joint(x, flow())[:, :T])


def test_masked_text_is_seen_by_nobody_and_unmasked_padding_by_all() -> None:
    joint, keep = drawn(JointAttention.of(heads=HEADS).build(DIM)), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    x = stream(T + S)
    other = x.clone()
    other[0, T + 2 :] = 7.0
    masked = joint(x, flow(keep))
    torch.testing.assert_close(masked[:, : T + 2], joint(other, flow(keep))[:, : T + 2])
    torch.testing.assert_close(masked[:1, : T + 2], joint(x[:1, : T + 2], flow(words=2)))
    assert (joint(x, flow()) - joint(other, flow()))[0, :T].abs().max() > 0.01  # as published, without a mask


def test_a_block_is_the_identity_at_first_and_drops_the_text_at_last() -> None:
    side = Side.of(norm=NORM, ffn=MLP.of(), own=Attention.of(heads=HEADS))
    block = JointBlock.of(JointAttention.of(heads=HEADS), side, Side.of(norm=NORM, ffn=MLP.of())).build(DIM)
    initialise(block, seed=0)
    x = stream(T + S)
    assert torch.equal(block(x, flow()), x) and block.behind(flow()).find(Border) is not None
    last = JointBlock.of(LastJointAttention.of(heads=HEADS), side, AdaptiveNorm.of(norm=PlainNorm.of())).build(DIM)
    initialise(last, seed=0)
    after = last.behind(flow())
    assert torch.equal(last(x, flow()), x[:, :T])
    assert after.find(Border) is None and after.find(Cells) == Cells(2, 3, first=0) and len(after.positions) == T


def test_the_picture_alone_has_no_padding() -> None:
    keep = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    assert first_alone(flow(keep)).keep is None
    whole = flow(keep).keep
    assert whole is not None and whole[:, :T].all() and torch.equal(whole[:, T:], keep)


def test_a_second_stream_that_ends_is_prepared_by_a_norm_alone() -> None:
    side = Side.of(norm=NORM, ffn=MLP.of())
    for mixer, second in ((JointAttention, AdaptiveNorm.of(norm=PlainNorm.of())), (LastJointAttention, side)):
        with pytest.raises(ValueError, match="LastJointAttention goes with an AdaptiveNorm"):
            JointBlock.of(mixer.of(heads=HEADS), side, second).build(DIM)
    with pytest.raises(ValueError, match="norm has the entries 'mixer' and 'ffn'; got mixer"):
        Side.of(norm={"mixer": PlainNorm.of()}, ffn=MLP.of()).build(DIM)


def test_an_adaptive_block_is_a_plain_one_between_its_shifts_scales_and_gates() -> None:
    block = drawn(Adaptive.of(mixer=Attention.of(heads=HEADS), norm=NORM, ffn=MLP.of()).build(DIM))
    here = flow(words=0)
    shift, scale, gate, shift2, scale2, gate2 = block.told(
        torch.nn.functional.silu(here.get(Told, "test").vector)
    )[:, None].chunk(6, -1)  # fmt: skip
    x = stream(T)

    def normed(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    x1 = x + gate * block.mixer(normed(x) * (1 + scale) + shift, here)
    wanted = x1 + gate2 * block.ffn(normed(x1) * (1 + scale2) + shift2, here)
    torch.testing.assert_close(block(x, here), wanted, rtol=1e-4, atol=1e-5)


def test_parts_without_a_denoiser_name_it() -> None:
    with pytest.raises(ValueError, match="AdaptiveNorm reads Told, which the skeleton Denoiser leaves"):
        AdaptiveNorm.of(norm=PlainNorm.of()).build(DIM)(stream(T), Flow(torch.arange(T)))
    with pytest.raises(ValueError, match="JointAttention reads Border, which a Denoiser with a text leaves"):
        JointAttention.of(heads=HEADS).build(DIM)(stream(T), Flow(torch.arange(T)))


@pytest.mark.parametrize("last", [True, False])
def test_waves_of_times_are_those_of_diffusers_at_fractions_too(last: bool) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    times = torch.tensor([0.0, 0.5, 3.25, 500.7, 999.0])
    wanted = embeddings.get_timestep_embedding(times, 32, flip_sin_to_cos=True, downscale_freq_shift=float(last))
    assert torch.equal(Time.of(width=32, last=last).build(DIM).waves(times), wanted)
    other = Time.of(width=32, last=not last).build(DIM).waves(times)
    assert not torch.allclose(other, wanted, atol=1e-2)


def test_nothing_has_the_row_behind_the_classes() -> None:
    label = drawn(Label.of(classes=7).build(DIM))
    told = label({"class_labels": torch.tensor([7, 0])}, Flow(torch.arange(1)))
    assert torch.equal(told[:, 0], label.table.weight[[7, 0]])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"class_labels": torch.tensor([6, 0])}, "class_labels has 6; classes go from 0 to 4, and 5 means no class"),
        ({"class_labels": torch.zeros(2, 1).long()}, r"class_labels must be \(batch, \), got \(2, 1\)"),
        ({"timestep": torch.zeros(3)}, "timestep has 3 rows, the picture 2"),
        ({"timestep": None}, "this model reads timestep"),
        ({"pixel_values": torch.zeros(2, 3, 9, 8)}, "9 x 8 pixels are no whole number of patches of 2"),
        ({"encoder_hidden_states": torch.zeros(2, 3, 4)}, "no part of this model reads 'encoder_hidden_states'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs: dict[str, Any], message: str) -> None:
    model = af.build("dit", "tiny", seed=0)
    given = {"pixel_values": torch.zeros(2, 3, 8, 8), "timestep": torch.zeros(2), "class_labels": torch.zeros(2).long()}
    with pytest.raises(ValueError, match=message):
        model(**{k: v for k, v in (given | inputs).items() if v is not None})


def texts(model: Any, words: int, rows: int = 2) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(3)
    made = model.example(rows, {"encoder_": (words,)}, noise)
    return {**made, "pixel_values": torch.randn(rows, 3, 4, 6, generator=noise)}


def test_a_text_mask_makes_padding_harmless_and_without_it_the_picture_changes() -> None:
    model = drawn(af.build("mmdit", "tiny", seed=0))
    inputs = texts(model, 5)
    longer = {**inputs, "encoder_hidden_states": torch.cat((inputs["encoder_hidden_states"], torch.zeros(2, 3, 10)), 1)}
    mask = (torch.arange(8) < 5).long().expand(2, -1)
    alone, padded, seen = (model(**x).logits for x in (inputs, {**longer, "encoder_attention_mask": mask}, longer))
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)
    assert (seen - alone).abs().max() > 1e-3
    assert alone.shape == (2, 3, 4, 6)
    with pytest.raises(ValueError, match="encoder_attention_mask"):
        model(**inputs, encoder_attention_mask=mask)
    with pytest.raises(ValueError, match=r"states of a text must be \(batch, time, 10\), got \(2, 5, 3\)"):
        model(**{**inputs, "encoder_hidden_states": torch.zeros(2, 5, 3)})


class Same(torch.nn.Module):
    """A norm that changes nothing."""

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return x


def test_unpatch_is_the_inverse_of_cutting_patches() -> None:
    """With the identity as both linear maps, a picture comes back, whatever its shape."""
    front = PatchGrid.of(image=8, patch=2, channels=3).build(12)
    head = Unpatch.of(patch=2, channels=3, norm=AdaptiveNorm.of(norm=PlainNorm.of())).build(12)
    head.norm = Same()  # type: ignore[assignment]
    order = torch.eye(12).view(12, 2, 2, 3).permute(0, 3, 1, 2)  # patches are stored (row, column, channel)
    assert front.project.bias is not None
    front.project.weight.data, front.project.bias.data = order.contiguous(), torch.zeros(12)
    assert head.proj.bias is not None
    head.proj.weight.data, head.proj.bias.data = torch.eye(12), torch.zeros(12)
    for shape in ((8, 8), (4, 16), (2, 6)):
        picture, here = torch.randn(2, 3, *shape), Flow(torch.arange(shape[0] * shape[1] // 4))
        torch.testing.assert_close(head(front({"pixel_values": picture}, here), here), picture)


def test_places_cover_the_trained_range_or_are_cut_from_the_middle() -> None:
    device = torch.device("cpu")
    plain, spread = Sines2D.of().build(DIM), Sines2D.of(base=4).build(DIM)
    assert torch.equal(spread(4, 4, device), plain(4, 4, device))
    assert torch.equal(spread(8, 8, device).view(8, 8, DIM)[::2, ::2].flatten(0, 1), plain(4, 4, device))
    cut = Sines2D.of(base=9, crop=9).build(DIM)
    whole = plain(9, 9, device).view(9, 9, DIM)
    assert torch.equal(cut(3, 4, device), whole[3:6, 2:6].flatten(0, 1))
    cut.table.data = torch.randn_like(cut.table)  # it is what the file says
    assert torch.equal(cut(9, 9, device), cut.table[0])
    with pytest.raises(ValueError, match="a grid of 10 x 2 patches is larger than its table of 9 x 9"):
        cut(10, 2, device)
    for option in ("base", "crop"):
        with pytest.raises(ValueError, match=f"{option} is a number of rows"):
            Sines2D.of(**{option: 0}).build(DIM)


def test_states_declare_a_mask_that_may_be_left_out() -> None:
    reads = af.build("mmdit", "tiny").inputs()
    assert [n for n, read in reads.items() if not read.required] == ["encoder_attention_mask"]
    assert States.of(width=5).build(DIM).inputs()["hidden_states"].fixed == ("channels",)


def test_a_painter_reads_a_padded_text_as_the_text_alone() -> None:
    """Token ids beside a picture: padding on either side changes nothing, and files keep the model."""
    model = painter()
    noise = torch.Generator().manual_seed(0)
    picture = {"pixel_values": torch.randn(2, 3, 8, 8, generator=noise), "timestep": torch.tensor([3.0, 700.0])}
    ids = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 5, 6, 7]])
    keep = (torch.arange(5) < torch.tensor([[3], [5]])).long()
    both = model(**picture, input_ids=ids, attention_mask=keep).logits
    left = model(**picture, input_ids=ids[:, [3, 4, 0, 1, 2]], attention_mask=keep[:, [3, 4, 0, 1, 2]]).logits[:1]
    alone = model(**{k: v[:1] for k, v in picture.items()}, input_ids=ids[:1, :3]).logits
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left, alone, rtol=1e-4, atol=1e-5)
    other = model(**picture, input_ids=ids[:, [1, 0, 2, 3, 4]], attention_mask=keep).logits
    assert (other - both).abs().max() > 1e-3


def test_files_keep_a_painter_and_every_weight_learns(tmp_path: Path) -> None:
    model = painter()
    model.save(tmp_path)
    again = af.load(tmp_path)
    assert again.recipe == model.recipe
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    inputs = model.example(3, {}, torch.Generator().manual_seed(0))
    assert inputs.keys() == {"pixel_values", "timestep", "input_ids"}
    model(**inputs).logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("part", "message"), [("picture", "reads no encoder_hidden_states"), ("text", "needs a pool")])
def test_a_painter_of_parts_that_do_not_fit_is_refused(part: str, message: str) -> None:
    recipe = painter().recipe
    other = af.recipe("dit", "tiny") if part == "picture" else recipe["text"].but({"pool": None})
    with pytest.raises(ValueError, match=message):
        recipe.but({part: other}).build()


def painter() -> Any:
    recipe = af.recipe("mmdit", "tiny", text=12, pooled=12)
    return drawn(af.build(with_text(recipe, 11), seed=0))
