"""Convolutional networks: norms, sizes, and pictures of several sizes in one batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import anyformer as af
from anyformer.parts import Mamba
from anyformer.parts.convnet import BatchNorm, ConvNet, Extent, FrozenNorm, GroupNorm
from anyformer.parts.features import Features
from anyformer.parts.places import GridTable, ShareSines

SIZES = [(30, 21), (17, 33), (1, 1), (33, 8)]


def redrawn(module: nn.Module) -> nn.Module:
    """Random weights; variances and everything else that begins positive stay so."""
    for tensor in (*module.parameters(), *module.buffers()):
        positive = bool((tensor > 0).all())
        nn.init.normal_(tensor, std=0.3)
        tensor.data = tensor.abs() + 0.3 if positive else tensor.data
    return module


def padded(pictures: list[torch.Tensor], junk: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures in one batch, `junk` in the padding, and the mask of real pixels."""
    height, width = (max(p.shape[i] for p in pictures) for i in (1, 2))
    pixels = torch.full((len(pictures), 3, height, width), junk)
    mask = torch.zeros(len(pictures), height, width, dtype=torch.long)
    for i, one in enumerate(pictures):
        pixels[i, :, : one.shape[1], : one.shape[2]] = one
        mask[i, : one.shape[1], : one.shape[2]] = 1
    return pixels, mask


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
@pytest.mark.parametrize("early", [False, True])
def test_sides_are_counted_as_convolutions_make_them(kind, early):
    net = ConvNet.of(FrozenNorm.of(), 4, (8, 12), (1, 1), kind, first_stride=True, early=early).build(3)
    for side in range(1, 70, 3):
        assert net(torch.randn(1, 3, side, 2), None)[0].shape[2] == net.cells(side)


@pytest.mark.parametrize("junk", [0.0, 9.0, float("nan")])
@pytest.mark.parametrize("norm", [FrozenNorm.of(), GroupNorm.of(), BatchNorm.of()])
def test_a_picture_in_a_batch_has_the_cells_that_it_has_alone(norm, junk):
    """Published DETR lets padding into the convolutions: its results depend on the sizes in a batch."""
    net = redrawn(ConvNet.of(norm, 4, (8, 12), (1, 2)).build(3)).eval()
    pictures = [torch.randn(3, *size) for size in SIZES]
    pixels, mask = padded(pictures, junk)
    extent = Extent(mask.any(2).sum(1), mask.any(1).sum(1))
    x, behind = net(pixels, extent)
    for i, one in enumerate(pictures):
        alone, _ = net(one[None], None)
        assert (int(behind.rows[i]), int(behind.columns[i])) == tuple(alone.shape[2:])
        inside = x[i : i + 1, :, : alone.shape[2], : alone.shape[3]]
        torch.testing.assert_close(inside, alone, rtol=1e-5, atol=1e-5)
    assert not bool(x.masked_select(~behind.real(*x.shape[2:])).any())


@pytest.mark.parametrize("changes", [{}, {"norm": "group"}, {"places": "learned", "net.first_stride": True}])
def test_a_whole_model_finds_the_same_in_a_batch_as_alone(changes):
    model = redrawn(af.build("detr", "tiny", overrides=changes)).eval()
    pictures = [torch.randn(3, *size) for size in SIZES]
    pixels, mask = padded(pictures, 5.0)
    with torch.no_grad():
        together = model(pixel_values=pixels, pixel_mask=mask).heads
        for i, one in enumerate(pictures):
            alone = model(pixel_values=one[None]).heads
            for name, value in alone.items():
                torch.testing.assert_close(together[name][i : i + 1], value, rtol=1e-4, atol=1e-5)


def test_a_mask_of_real_pixels_alone_changes_no_bit():
    model, pixels = redrawn(af.build("detr", "tiny", norm="group")).eval(), torch.randn(2, 3, 20, 17)
    with torch.no_grad():
        plain, masked = model(pixel_values=pixels), model(pixel_values=pixels, pixel_mask=torch.ones(2, 20, 17))
    assert torch.equal(plain.logits, masked.logits) and torch.equal(plain.heads["boxes"], masked.heads["boxes"])


def test_a_frozen_norm_is_a_batch_norm_in_evaluation_and_never_changes():
    frozen, usual = redrawn(FrozenNorm.of().build(6)), nn.BatchNorm2d(6)
    usual.load_state_dict(frozen.state_dict(), strict=False)
    x = torch.randn(4, 6, 5, 3)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    for mode in (True, False):
        torch.testing.assert_close(frozen.train(mode)(x, None), usual.eval()(x))
    assert not list(frozen.parameters())
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_a_new_frozen_norm_says_that_it_is_empty():
    assert FrozenNorm.of().build(3).empty
    assert not redrawn(FrozenNorm.of().build(3)).empty


def test_norms_of_groups_and_batches_are_torchs():
    x = torch.randn(3, 12, 5, 4) + 1
    groups = redrawn(GroupNorm.of(size=4).build(12))
    usual = nn.GroupNorm(3, 12)
    usual.load_state_dict(groups.state_dict())
    torch.testing.assert_close(groups(x, None), usual(x))
    whole = Extent(torch.full((3,), 5), torch.full((3,), 4))
    torch.testing.assert_close(groups(x, whole), usual(x))
    batch, theirs = BatchNorm.of().build(12), nn.BatchNorm2d(12)
    for _ in range(3):
        torch.testing.assert_close(batch(x, None), theirs(x))
        x = x * 2 - 1
    torch.testing.assert_close(batch.running_mean, theirs.running_mean)
    torch.testing.assert_close(batch.running_var, theirs.running_var)
    torch.testing.assert_close(batch.eval()(x, None), theirs.eval()(x))


def test_a_batch_norm_counts_real_cells_alone():
    norm, x = BatchNorm.of().build(2), torch.randn(2, 2, 4, 4)
    extent = Extent(torch.tensor([4, 2]), torch.tensor([3, 4]))
    norm(extent.clear(x, 100.0), extent)
    real = torch.cat((x[0, :, :, :3].flatten(1), x[1, :, :2].flatten(1)), 1)
    torch.testing.assert_close(norm.running_mean, 0.1 * real.mean(1))


def test_groups_are_the_largest_that_divide():
    assert [GroupNorm.of(size=8).build(n).groups for n in (64, 12, 7, 6, 11)] == [8, 2, 1, 1, 11]
    with pytest.raises(ValueError, match="at least 1"):
        GroupNorm.of(size=0).build(4)


def test_places_are_those_of_a_pictures_own_share():
    """A cell at the end of its picture has one place, whatever the size of picture or batch."""
    places, like = ShareSines.of().build(8), torch.zeros(1)
    small, large = (places(n, 3, None, like).unflatten(1, (n, 3)) for n in (4, 9))
    torch.testing.assert_close(small[0, -1, -1], large[0, -1, -1])
    mixed = places(9, 3, Extent(torch.tensor([4, 9]), torch.tensor([3, 3])), like).unflatten(1, (9, 3))
    torch.testing.assert_close(mixed[0, :4], small[0])
    torch.testing.assert_close(mixed[1], large[0])


def test_mistakes_are_named():
    front = Features.of(net=ConvNet.of(FrozenNorm.of(), 4, (8,), (1,)), places=GridTable.of(most=2))
    for wrong, message in (
        ({"stem": 0}, "from 1"), ({"widths": (8, 8)}, "one number a stage"), ({"widths": (6,)}, "divided by 4"),
        ({"kind": "plain"}, "kind must be one of"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            front.but({f"net.{name}": value for name, value in wrong.items()}).build(8)
    model = af.build(af.recipe("detr", "tiny").but({"embed.places": GridTable.of(most=2)})).eval()
    with pytest.raises(ValueError, match="3 x 1 cells, and the table has 2"):
        model(pixel_values=torch.randn(1, 3, 24, 5))
    with pytest.raises(ValueError, match=r"pixel_values must be \(batch, 3, height, width\)"):
        model(pixel_values=torch.randn(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"pixel_mask must be \(1, 8, 8\)"):
        model(pixel_values=torch.randn(1, 3, 8, 8), pixel_mask=torch.ones(1, 8))
    mask = torch.ones(2, 8, 8)
    for hole in ((1, 3, 3), (1, slice(0, 1)), (1,)):
        wrong_mask = mask.clone()
        wrong_mask[hole] = 0
        with pytest.raises(ValueError, match="row 1 must mark a rectangle from the top left"):
            model(pixel_values=torch.randn(2, 3, 8, 8), pixel_mask=wrong_mask)
    with pytest.raises(ValueError, match=r"only Attention reads the places.*Mamba"):
        af.build(af.recipe("detr", "tiny").but({"encoder.blocks.*.mixer": Mamba.of(state=4)}))
    with pytest.raises(ValueError, match="divided by 4"):
        ShareSines.of().build(6)
    with pytest.raises(ValueError, match="at least 1"):
        af.build("detr", "tiny", queries=0)


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_every_second_cell_of_a_dilated_network_is_the_plain_one(kind):
    """Of the same weights: the last stage of DC5 has the plain cells, and those between them."""
    recipe = ConvNet.of(FrozenNorm.of(), 5, (8, 12), (2, 3), kind)
    plain, wide = redrawn(recipe.build(3)), recipe.but({"dilated": True}).build(3)
    wide.load_state_dict(plain.state_dict())
    x, extent = torch.randn(2, 3, 50, 67), Extent(torch.tensor([50, 33]), torch.tensor([41, 67]))
    x = extent.clear(x)
    for sizes in (None, extent):
        few, fewer = plain.eval()(x, sizes)
        many, more = wide.eval()(x, sizes)
        torch.testing.assert_close(many[:, :, ::2, ::2], few)
        assert few.shape != many.shape and few.abs().max() > 0
        if sizes is not None:
            assert torch.equal((more.rows + 1) // 2, fewer.rows) and torch.equal(
                more.columns, wide.cells(sizes.columns)
            )
    assert (plain.stride, wide.stride) == (8, 4)
