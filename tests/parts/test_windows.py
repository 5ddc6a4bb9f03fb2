"""Attention in windows is dense attention under the mask of windows and regions, for linear work; grids merge by four.

B batch, T cells of the grid, R rows, S columns, D width, H heads.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.parts import (
    MLP,
    Attention,
    Block,
    GridBias,
    LayerNorm,
    Mean,
    Merge,
    PatchGrid,
    Rotary2D,
    StochasticDepth,
    Windows,
)
from anyformer.parts.embeddings import Cells
from anyformer.parts.positions import Rotary
from anyformer.skeletons import Pyramid, Stack

DIM, HEADS = 8, 2


def grid(rows: int, columns: int, first: int = 0) -> Flow:
    flow = Flow(torch.arange(first + rows * columns))
    flow.put(Cells(rows, columns, first))
    return flow


def redrawn(module: Any, seed: int = 0) -> Any:
    noise = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.5, generator=noise)
    return module.eval()


def windows(window: int, shift: int = 0, side: int | None = None) -> Windows:
    inside = Attention.of(heads=HEADS, scores=[GridBias.of(side or window)], kernel="reference")
    return redrawn(Windows.of(inside=inside, window=window, shift=shift).build(DIM))


def dense(part: Windows, x: Tensor, rows: int, columns: int) -> Tensor:
    """The definition, pair by pair: a cell sees the cells of its window that stand beside it on the grid."""
    w, shift = part.window, part.shift
    if min(rows, columns) <= w:
        w, shift = min(rows, columns), 0
    R, S = math.ceil(rows / w) * w, math.ceil(columns / w) * w
    whole = torch.zeros(len(x), R, S, DIM)
    whole[:, :rows, :columns] = x.view(len(x), rows, columns, DIM)
    inside, n = part.inside, part.inside.scores[0].side
    cells = [(r, s) for r in range(R) for s in range(S)]
    flat = whole.flatten(1, 2)
    q, k, v = (p(flat).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (inside.q, inside.k, inside.v))
    scores = q @ k.mT / (DIM // HEADS) ** 0.5  # (B, H, T, T)

    def place(at: int, size: int) -> tuple[int, bool]:
        """The window of a line, and whether the shift brought the line there from the other end of the grid."""
        return (at - shift) % size // w, at < shift

    def inner(at: int, size: int) -> int:
        return (at - shift) % size % w

    seen, bias = torch.zeros(len(cells), len(cells), dtype=torch.bool), torch.zeros(HEADS, len(cells), len(cells))
    for i, (r, s) in enumerate(cells):
        for j, (other, across) in enumerate(cells):
            seen[i, j] = place(r, R) == place(other, R) and place(s, S) == place(across, S)
            down, right = inner(r, R) - inner(other, R), inner(s, S) - inner(across, S)
            if seen[i, j]:
                bias[:, i, j] = inside.scores[0].table[(down + n - 1) * (2 * n - 1) + right + n - 1]
    weights = (scores + bias).masked_fill(~seen, -math.inf).softmax(-1)
    y = inside.o((weights @ v).transpose(1, 2).flatten(2)).unflatten(1, (R, S))
    return y[:, :rows, :columns].flatten(1, 2)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), window=st.integers(1, 4), share=st.floats(0, 0.99),
    wider=st.integers(0, 2),
)  # fmt: skip
def test_windows_are_dense_attention_under_the_mask_of_windows_and_regions(rows, columns, window, share, wider):
    part = windows(window, int(share * window), window + wider)
    x = torch.randn(2, rows * columns, DIM, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(part(x, grid(rows, columns)), dense(part, x, rows, columns))


def test_work_is_linear_in_the_number_of_windows():
    def work(rows: int, columns: int) -> int:
        part = windows(4, 2)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            part(torch.zeros(1, rows * columns, DIM), grid(rows, columns))
        return counter.get_total_flops()

    one = work(8, 8) // 4
    assert one > 0 and [work(8, 16), work(16, 16), work(32, 64)] == [8 * one, 16 * one, 128 * one]


def test_a_window_of_the_whole_grid_is_full_attention_with_the_bias():
    part, x = windows(9, 4), torch.randn(2, 25, DIM)
    with torch.no_grad():
        torch.testing.assert_close(part(x, grid(5, 5)), part.inside(x, grid(5, 5)))


def test_layers_of_one_pass_share_the_flow_of_their_windows():
    flow, plain, shifted = grid(8, 8), windows(4), windows(4, 2)
    x = torch.randn(1, 64, DIM)
    plain(x, flow), shifted(x, flow)
    inner = [value for key, value in flow.shared.items()]
    plain(x, flow), shifted(x, flow)
    assert len(inner) == 2 and [id(v) for v in flow.shared.values()] == [id(v) for v in inner]


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda: windows(4, 4), "shift from 0 to below it; got window=4, shift=4"),
        (lambda: windows(0), "window is at least 1"),
        (lambda: windows(4, side=-1), "side is the longest side of the grid"),
        (lambda: windows(4, side=3)(torch.zeros(1, 16, DIM), grid(4, 4)), "side=3 is shorter than this grid, 4 x 4"),
        (lambda: windows(4)(torch.zeros(1, 17, DIM), grid(4, 4, 1)), "take PatchGrid for Patches"),
        (lambda: windows(4)(torch.zeros(1, 16, DIM), Flow(torch.arange(16))), "Windows reads Cells, which Patches or"),
        (lambda: padded(windows(4)), "without a mask"),
        (lambda: causal(windows(4)), "Windows .* fits an Encoder"),
        (lambda: Merge.of(LayerNorm.of()).build(8)(torch.zeros(1, 17, 8), grid(4, 4, 1)), "Merge reads a grid without"),
        (lambda: PatchGrid(8, image=3, patch=4), "an image of 3 pixels holds no whole patch of 4"),
        (lambda: StochasticDepth(8, 1.0), "from 0 to below 1; got 1.0"),
        (lambda: Pyramid(8, PatchGrid.of(), [], Merge.of(LayerNorm.of())), "stages is empty"),
        (lambda: af.build("swin", "tiny").start(1), "does not decode step by step"),
        (lambda: af.build("swin")(pixel_values=torch.zeros(1, 1, 8, 8)), r"must be \(batch, 3, height, width\)"),
        (lambda: af.build("swin", "tiny")(input_ids=torch.zeros(1, 3)), "no part of this model reads 'input_ids'"),
    ],
)  # fmt: skip
def test_refusals(run, says):
    with pytest.raises(ValueError, match=says):
        run()


def padded(part: Windows) -> Tensor:
    flow = grid(4, 4)
    flow.keep = torch.ones(1, 16, dtype=torch.bool)
    return part(torch.zeros(1, 16, DIM), flow)


def causal(part: Windows) -> Tensor:
    flow = grid(4, 4)
    flow.causal = True
    return part(torch.zeros(1, 16, DIM), flow)


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (5, 4), (3, 5), (1, 1)])
def test_four_neighbours_become_one_and_odd_sides_are_completed(rows, columns):
    part = redrawn(Merge.of(LayerNorm.of()).build(DIM))
    x, flow = torch.randn(2, rows * columns, DIM), grid(rows, columns)
    cells = {(r, s): x[:, r * columns + s] for r in range(rows) for s in range(columns)}
    found, behind = part(x, flow), part.behind(flow)
    height, width = -(-rows // 2), -(-columns // 2)
    assert behind.get(Cells, "") == Cells(height, width, 0) and behind.positions.tolist() == [*range(height * width)]
    for r in range(height):
        for s in range(width):
            four = [(2 * r, 2 * s), (2 * r + 1, 2 * s), (2 * r, 2 * s + 1), (2 * r + 1, 2 * s + 1)]
            joined = torch.cat([cells.get(at, torch.zeros(2, DIM)) for at in four], -1)
            torch.testing.assert_close(found[:, r * width + s], part.reduce(part.norm(joined)))


def test_a_picture_of_any_size_is_completed_with_pixels_of_0():
    part = redrawn(PatchGrid(DIM, image=12, patch=4, norm=LayerNorm.of(), positions=True))
    pixels, flow = torch.randn(2, 3, 9, 17), Flow(torch.arange(15))
    whole = torch.zeros(2, 3, 12, 20)
    whole[:, :, :9, :17] = pixels
    given = {"pixel_values": pixels}
    assert part.cells(given) == (3, 5) and part.length(given) == 15
    torch.testing.assert_close(part(given, flow), part({"pixel_values": whole}, flow))
    assert flow.get(Cells, "") == Cells(3, 5, 0)
    square = part({"pixel_values": torch.zeros(1, 3, 12, 12)}, flow)
    patch = part.norm(part.project(torch.zeros(1, 3, 4, 4)).flatten(2).mT)
    torch.testing.assert_close(square, patch + part.positions)


def test_rotary_positions_of_a_grid_count_from_its_first_cell():
    part = Rotary2D(8)
    alone, behind = (part.angles(grid(3, 4, first))[0] for first in (0, 1))
    torch.testing.assert_close(alone, behind[1:])


def test_stochastic_depth_drops_whole_rows_at_its_rate():
    part, x = StochasticDepth(1, 0.3), torch.ones(4000, 3, 1)
    torch.manual_seed(0)
    y = part(x)
    kept = y[:, 0, 0] > 0
    assert abs(float(kept.float().mean()) - 0.7) < 6 * (0.21 / 4000) ** 0.5
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / 0.7))
    assert not y[~kept].any() and torch.equal(part.eval()(x), x)
    half = StochasticDepth(1, 0.3)(torch.ones(8, 3, 1, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16


def test_a_pyramid_takes_any_mixer_and_makes_the_maps_of_its_stages():
    norm, turning = LayerNorm.of(), Attention.of(heads=2, positions=Rotary2D.of())
    layers = [Block.of(mixer=mixer, ffn=MLP.of(), norm=norm) for mixer in (turning, Windows.of(turning, window=2))]
    recipe = Pyramid.of(16, PatchGrid.of(image=8, patch=2), [Stack.of(layers)] * 3, Merge.of(norm), pool=Mean.of())
    model: Any = af.build(recipe, seed=0).eval()
    out = model(pixel_values=torch.randn(2, 3, 9, 13))
    assert [tuple(m.shape) for m in out.maps] == [(2, 16, 5, 7), (2, 32, 3, 4), (2, 64, 2, 2)]
    torch.testing.assert_close(out.maps[-1].flatten(2).mT, out.hidden)
    torch.testing.assert_close(out.pooled, out.hidden.mean(1))
    assert isinstance(model.stages[2].blocks[0].mixer.positions, Rotary)
