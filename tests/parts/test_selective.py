"""The scan in blocks: value and gradient of the recurrence written out, whatever the block, and with documents."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anyformer.parts.recurrent import mamba_cpu as selective
from anyformer.parts.recurrent.mamba import side_by_side

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(batch: int = 2, time: int = 37, inner: int = 5, state: int = 3) -> Inputs:
    noise = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    u, step, A = draw(batch, time, inner), 0.1 * draw(batch, time, inner).exp(), -draw(inner, state).exp()
    B, C, h = draw(batch, time, state), draw(batch, time, state), draw(batch, inner, state)
    for t in (every := (u, step, A, B, C, h)):
        t.requires_grad_()
    return every


def written_out(
    u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, begins: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows = []
    for t in range(u.shape[1]):
        fade = (step[:, t, :, None] * A).exp()
        fade = fade if begins is None else fade * ~begins[:, t, None, None]
        h = fade * h + (step * u)[:, t, :, None] * B[:, t, None]
        rows.append((h * C[:, t, None]).sum(-1))
    return torch.stack(rows, 1), h


def slopes(found: tuple[Tensor, Tensor], given: Inputs) -> list[Tensor]:
    y, h = found
    return list(torch.autograd.grad(y.square().sum() + (h * h.detach().cos()).sum(), given))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("numbers", [1, 400, 1 << 18])  # of a block's states: blocks of 8, 13 and all 37 tokens
def test_scan_in_blocks_is_the_recurrence(numbers: int, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective, "NUMBERS", numbers)
    given = inputs()
    begins = torch.rand(2, 37, generator=torch.Generator().manual_seed(1)) < 0.2 if packed else None
    wanted, found = written_out(*given, begins), selective.scan_in_blocks(*given, begins)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(slopes(found, given), slopes(wanted, given))


def test_chunks_side_by_side_are_the_recurrence() -> None:
    given = inputs()
    wanted = written_out(*given, None)
    steep = slopes(wanted, given)
    for chunk in (1, 8, 37, 64):
        found = side_by_side(*given, chunk)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(slopes(found, given), steep)
