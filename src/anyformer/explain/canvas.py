"""A canvas for drawings of recipes: boxes, lines, sums.

One unit is an inch, y grows downwards; matplotlib, imported when something is drawn, writes SVG, PNG or PDF.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyformer.explain.draw import PAPER, plotting

WIDE, SIGNS, LINE, GAP = 2.9, 40, 0.15, 0.28  # a box, signs of a line of its text, a line, an arrow between boxes
SUM = 0.09  # radius of the sign (+)
FORMATS = (".svg", ".png", ".pdf")
INK, FAINT, FRAME = "#222233", "#8a8a99", "#f4f4f7"


@dataclass
class Canvas:
    """Axes to draw on, and the extent of the drawing. `reads`: the points where a decoder reads the encoder output."""

    axes: Any
    right: float = 0.0
    bottom: float = 0.0
    reads: list[tuple[float, float]] = field(default_factory=list)

    def box(self, x: float, y: float, title: str, lines: Iterable[str], colour: str) -> float:
        """Draws a box around the middle `x` from `y` on; returns its end."""
        from matplotlib.patches import FancyBboxPatch

        lines = list(lines)
        high = 0.3 + LINE * len(lines)
        shape = FancyBboxPatch(
            (x - WIDE / 2, y), WIDE, high, "round,pad=0,rounding_size=0.06", facecolor=colour, edgecolor=INK, lw=0.8
        )
        self.axes.add_patch(shape)
        self.axes.text(x, y + 0.16, title, ha="center", va="center", fontsize=9, fontweight="bold", color=INK)
        for i, line in enumerate(lines):
            self.axes.text(x, y + 0.33 + LINE * i, line, ha="center", va="center", fontsize=7, color=INK)
        return self.reach(x + WIDE / 2, y + high)

    def path(self, points: list[tuple[float, float]], arrow: bool = False, dashed: bool = False) -> None:
        """Draws a line through points, with a head at its end."""
        xs, ys = zip(*points, strict=True)
        style = {"color": FAINT if dashed else INK, "lw": 1.0, "ls": "--" if dashed else "-"}
        self.axes.plot(xs, ys, zorder=1, **style)
        if arrow:
            self.axes.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", **style, "shrinkB": 0})

    def add(self, x: float, y: float) -> None:
        """Draws the sign of a sum around a point."""
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle((x, y), SUM, facecolor=PAPER, edgecolor=INK, lw=0.8, zorder=3))
        self.axes.text(x, y, "+", ha="center", va="center", fontsize=9, color=INK, zorder=4)

    def reach(self, x: float, y: float) -> float:
        """Extends the drawing to this point; returns y."""
        self.right, self.bottom = max(self.right, x), max(self.bottom, y)
        return y


def opened(path: str | Path) -> tuple[Any, Canvas, Path]:
    """A new figure, the canvas that fills it, and the file that it is for.

    Raises:
        ValueError: for another kind of file than .svg, .png, .pdf. ImportError: without matplotlib.
    """
    file = Path(path)
    if file.suffix.lower() not in FORMATS:
        raise ValueError(f"a drawing is written as {', '.join(FORMATS)}; got {str(path)!r}")
    figure = plotting()[0].figure(facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    return figure, Canvas(axes), file


def written(figure: Any, canvas: Canvas, file: Path) -> Path:
    """The file, written: the figure cut to what was drawn."""
    wide, high = canvas.right + 0.3, canvas.bottom + 0.3
    figure.set_size_inches(wide, high)
    canvas.axes.set(xlim=(0, wide), ylim=(high, 0), aspect="equal")
    file.parent.mkdir(parents=True, exist_ok=True)
    pyplot = plotting()[0]
    with pyplot.rc_context({"svg.fonttype": "none"}):  # text stays searchable
        figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)
    pyplot.close(figure)
    return file
