"""Batch norm over real frames, and convolutions that padding does not enter."""

from __future__ import annotations

import torch
from torch import nn

from anyformer.core.flow import Flow
from anyformer.hub.tables.weights import Columns
from anyformer.parts import LayerNorm
from anyformer.parts.norms import TimeBatchNorm
from anyformer.parts.sound.conformer import ConvModule
from anyformer.parts.sound.positions import NormedPositions

torch.set_num_threads(1)


def test_batch_norm_is_pytorchs_over_the_real_frames_alone() -> None:
    ours, theirs, x = TimeBatchNorm(4, momentum=0.2), nn.BatchNorm1d(4, momentum=0.2), torch.randn(2, 5, 4)
    keep = torch.tensor([[True] * 5, [True, True, False, False, False]])
    y = ours(x, keep)
    expected = theirs(x[keep])
    torch.testing.assert_close(y[keep], expected)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    torch.testing.assert_close(ours.eval()(x, None), theirs.eval()(x.mT).mT)


def test_padding_never_reaches_a_real_frame() -> None:
    keep = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    for part in (
        ConvModule(8, LayerNorm.of(), TimeBatchNorm.of(), width=5),
        NormedPositions(8, width=4, groups=2, act="gelu"),
        NormedPositions(8, width=3, groups=1, act="relu"),
    ):
        for norm in (m for m in part.modules() if isinstance(m, TimeBatchNorm)):
            nn.init.normal_(norm.running_mean)  # so that padding of 0 is moved off 0
        part.eval()
        x = torch.randn(2, 6, 8)
        flow = Flow(torch.arange(6), keep=keep)
        together = part(x, flow)
        alone = part(x[1:, :3], Flow(torch.arange(3)))
        torch.testing.assert_close(together[1, :3], alone[0])
        x[1, 3:] = 1e4
        torch.testing.assert_close(part(x, flow)[1, :3], together[1, :3], rtol=0, atol=0)


def test_columns_go_there_and_back() -> None:
    for width in (6, 7):
        theirs = torch.arange(2 * width).view(2, width)
        (ours,) = Columns().read([theirs], [(2, width)])
        assert ours[0].tolist() == [*range(0, width, 2), *range(1, width, 2)]
        assert torch.equal(Columns().write([ours])[0], theirs)
