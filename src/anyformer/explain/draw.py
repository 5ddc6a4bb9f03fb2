"""Drawing maps of attention with matplotlib, which is imported when something is drawn. T queries, S keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

WIDE = 18.0  # inches of all maps side by side, at most
DOTS = 150  # an inch
CELL = (0.055, 0.24)  # inches of one token: at least, at most
PAPER, HIDDEN = "#ffffff", "#e9e9ec"


@dataclass(frozen=True)
class Panel:
    """One map.

    Attributes:
        weights: (T, S); each row sums to 1, and hidden keys are exactly 0.
        queries, keys: labels of the rows and the columns.
        answer: the column where the answer begins; 0 = no answer.
    """

    title: str
    weights: Tensor
    queries: list[str]
    keys: list[str]
    answer: int = 0


def draw_maps(kinds: dict[str, list[Panel]], title: str, path: Path) -> None:
    """Writes a PNG with a grid of maps for each kind of attention, one below the other; a kind has one colour scale."""
    plt, colours = plotting()
    shapes = {k: _grid(p[0], len(p)) for k, p in kinds.items()}  # (rows, columns, inches of a token)
    sizes = {k: _size(p[0], *shapes[k]) for k, p in kinds.items()}  # (inches wide, inches high)
    high = sum(h for _, h in sizes.values())
    size = (max(w for w, _ in sizes.values()) + 1.1, high + 0.7 + 0.3 * len(kinds))
    figure = plt.figure(figsize=size, layout="constrained", facecolor=PAPER)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    parts = figure.subfigures(len(kinds), 1, height_ratios=[h for _, h in sizes.values()], squeeze=False)[:, 0]
    for part, (kind, panels) in zip(parts, kinds.items(), strict=True):
        rows, columns, cell = shapes[kind]
        norm = _scale(colours, [p.weights for p in panels])
        part.set_facecolor(PAPER)
        red = "; right of the red line: the answer" if panels[0].answer else ""
        what = f"{kind}: from the token at the left to the tokens below (grey: hidden by the mask{red})"
        part.suptitle(what, fontsize=9)
        axes = part.subplots(rows, columns, squeeze=False).flatten()
        for at, axis in enumerate(axes):
            if at >= len(panels):
                axis.axis("off")
                continue
            image = _draw(axis, panels[at], norm, cell, left=at % columns == 0, bottom=at + columns >= len(panels))
        bar = part.colorbar(image, ax=axes.tolist(), fraction=0.02, pad=0.01, shrink=min(1.0, 4 / sizes[kind][1]))
        bar.set_label("attention weight (a row sums to 1)", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    figure.savefig(path, dpi=DOTS)
    plt.close(figure)


def draw_image(pixels: Tensor, maps: list[tuple[str, Tensor]], title: str, path: Path) -> None:
    """Writes a PNG with the image (C, height, width) and, as large as it, each map (rows, columns) of its patches."""
    plt, colours = plotting()
    low, high = pixels.min(), pixels.max()
    stretched = (pixels - low) / (high - low).clamp(min=1e-9)
    colour = stretched if len(pixels) == 3 else stretched.mean(0, keepdim=True)
    shown = colour.permute(1, 2, 0).cpu().numpy()  # (height, width, 1 or 3)
    columns = min(4, len(maps) + 1)
    rows = math.ceil((len(maps) + 1) / columns)
    size = (3 * columns + 1, 3.2 * rows + 0.8)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    axes = grid.flatten()
    figure.suptitle(title, fontsize=13, fontweight="bold")
    norm = _scale(colours, [m for _, m in maps])
    extent = (0, shown.shape[1], shown.shape[0], 0)
    for axis in axes[len(maps) + 1 :]:
        axis.axis("off")
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    axes[0].imshow(shown, cmap="gray", extent=extent)
    axes[0].set_title("the image, brightness stretched", fontsize=9)
    for axis, (name, weights) in zip(axes[1:], maps, strict=False):
        image = axis.imshow(weights.numpy(), cmap="Blues", norm=norm, extent=extent, interpolation="nearest")
        axis.set_title(f"{name}\n{float(weights.sum()):.0%} on patches", fontsize=9)
    bar = figure.colorbar(image, ax=axes.tolist(), fraction=0.02, pad=0.01)
    bar.set_label("attention weight of a patch", fontsize=8)
    figure.savefig(path, dpi=DOTS)
    plt.close(figure)


def _draw(axis: Any, panel: Panel, norm: Any, cell: float, left: bool, bottom: bool) -> Any:
    """Draws one map; labels are at the left and below the grid only."""
    weights = panel.weights.numpy()
    axis.set_facecolor(HIDDEN)
    image = axis.imshow(_seen(weights), cmap="Blues", norm=norm, interpolation="nearest", aspect="equal")
    axis.set_title(panel.title, fontsize=9)
    font = min(8.0, max(4.0, cell * 72 * 0.72))
    every = max(1, math.ceil(font * 1.15 / 72 / cell))  # some labels are left out if they would overlap
    for names, show, place in ((panel.keys, bottom, axis.set_xticks), (panel.queries, left, axis.set_yticks)):
        spots = range(0, len(names), every)
        turn = {"rotation": 90} if place == axis.set_xticks else {}
        texts = [_drawable(names[i]) if show else "" for i in spots]
        place(spots, texts, fontsize=font, parse_math=False, **turn)
    axis.tick_params(length=1.5, width=0.4, pad=1.5)
    if panel.answer:
        axis.axvline(panel.answer - 0.5, color="#d62728", linewidth=0.9)
    for side in axis.spines.values():
        side.set_linewidth(0.4)
    return image


def _scale(colours: Any, weights: list[Tensor]) -> Any:
    """One scale for several maps: small weights stay visible beside the few large ones."""
    return colours.PowerNorm(0.5, 0.0, max(float(w.max()) for w in weights))


def _seen(weights: Any) -> Any:
    """The weights, transparent where they are exactly 0 (hidden)."""
    import numpy as np

    return np.ma.masked_equal(weights, 0.0)


def _grid(panel: Panel, count: int) -> tuple[int, int, float]:
    """Rows and columns of `count` maps, near the shape of a page, and the inches that a token takes."""
    high, wide = len(panel.queries) + 4, len(panel.keys) + 4  # in tokens, with room for a title

    def awkward(columns: int) -> float:
        rows = math.ceil(count / columns)
        shape = abs(math.log(columns * wide / (rows * high) / 1.4))
        return shape + (rows * columns - count) / columns  # empty cells are worse than a long grid

    columns = min(range(1, count + 1), key=awkward)
    cell = WIDE / (columns * wide)
    return math.ceil(count / columns), columns, min(CELL[1], max(CELL[0], cell))


def _size(panel: Panel, rows: int, columns: int, cell: float) -> tuple[float, float]:
    """Inches of a grid of maps with its labels."""
    letter = min(8.0, max(4.0, cell * 72 * 0.72)) / 72 * 0.62
    margin = letter * max(map(len, [*panel.queries, *panel.keys])) + 0.5
    return max(4.5, columns * (cell * len(panel.keys) + 0.15) + margin), rows * (
        cell * len(panel.queries) + 0.4
    ) + margin


def _drawable(text: str) -> str:
    """The text with codes (U+4F60) for characters that the font lacks."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_char_index
    return "".join(c if known(ord(c)) else f"U+{ord(c):04X}" for c in text)


def plotting() -> tuple[Any, Any]:
    """pyplot that draws into files, without a display, and its colours."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'anyformer[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import colors, pyplot

    return pyplot, colors
