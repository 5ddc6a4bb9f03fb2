"""Big Transfer's network and the front-end around it."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer.hub.load import outline
from anyformer.parts.bit import BiT, Standardised, completed, eighths


def test_a_filter_has_mean_0_and_variance_1():
    conv = Standardised(3, 4, 5)
    seen = conv(F.pad(torch.eye(75).view(75, 3, 5, 5), (2, 2, 2, 2)))[:, :, 4, 4]  # each weight alone
    torch.testing.assert_close(seen.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen.var(0, correction=0), torch.ones(4), atol=1e-5, rtol=0)
    x, before = torch.randn(2, 3, 6, 6), conv.weight.detach().clone()
    expected = conv(x)
    with torch.no_grad():
        conv.weight.mul_(7).add_(3)  # neither the size nor the mean of a filter matters
    torch.testing.assert_close(conv(x), expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(before, conv.weight)


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_size_is_completed(kernel, stride):
    for size in range(1, 12):
        x = torch.ones(1, 1, size, size + 1)
        out = F.conv2d(completed(x, kernel, stride), torch.ones(1, 1, kernel, kernel), stride=stride)
        assert tuple(out.shape[2:]) == (-(-size // stride), -(-(size + 1) // stride))


def test_an_odd_zero_stands_behind():
    assert completed(torch.ones(1, 1, 4, 4), 3, 2)[0, 0, 0].tolist() == [1, 1, 1, 1, 0]
    assert completed(torch.ones(1, 1, 5, 5), 3, 2)[0, 0, 1].tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_cells_are_counted_as_the_network_makes_them():
    net = BiT.of(8, (8, 16, 8), (1, 1, 2), groups=2).build(3)
    assert net.stride == 16
    for side in range(1, 70, 7):
        assert net(torch.randn(1, 3, side, 5)).shape[2] == net.cells(side)


def test_widths():
    assert [eighths(n) for n in (1, 8, 12, 16, 64, 70, 15)] == [8, 8, 16, 16, 64, 72, 16]
    for wrong in ({"widths": (12,), "depths": (1,)}, {"widths": (8,), "depths": (1, 1)}, {"widths": (), "depths": ()}):
        with pytest.raises(ValueError, match="multiples of 8"):
            BiT.of(8, **wrong, groups=2).build(3)
    with pytest.raises(ValueError, match="groups=3 does not divide 8 channels"):
        BiT.of(8, (8,), (1,), groups=3).build(3)


def test_any_picture_has_its_cells_and_places():
    model = af.build("vit_hybrid", "tiny", seed=0).eval()
    for size, cells in (((32, 32), 4), ((1, 1), 1), ((33, 50), 12)):
        out = model(pixel_values=torch.randn(2, 3, *size))
        assert out.hidden.shape == (2, 1 + cells, 16)
    with pytest.raises(ValueError, match=r"pixel_values must be \(batch, 3, height, width\)"):
        model(pixel_values=torch.randn(2, 1, 32, 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_hybrid": False}, "'is_hybrid' is False"),
        ({"patch_size": 32}, "'patch_size' is 32; the network makes a cell of 16 pixels"),
        ({"backbone_featmap_shape": [1, 8, 2, 2]}, "has 8 channels, and the network's last stage 16"),
        ({"num_channels": 1}, "'num_channels' is 1, and in 'backbone_config' 3"),
        ({"pooler_output_size": 7}, "'pooler_output_size' is 7"),
        ({"backbone_config": {"model_type": "bit", "layer_type": "preactivation"}}, "'layer_type' is 'preactivation'"),
    ],
)
def test_what_this_page_cannot_do_is_refused(changes, message, tmp_path):
    af.build("vit_hybrid", "tiny", seed=0).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        outline(tmp_path / "config.json")


def test_one_padding_only(tmp_path):
    af.build("vit_hybrid", "tiny", seed=0).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone_config"]["global_padding"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'global_padding' is None; this page supports 'same'"):
        outline(tmp_path / "config.json")
