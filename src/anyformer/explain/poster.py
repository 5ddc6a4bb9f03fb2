"""A report as a PNG: what the model says, the shares of the input, the lens, and the largest branches and heads."""

from __future__ import annotations

import base64
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.explain.draw import DOTS, PAPER, plotting

FOR, AGAINST, INK, FAINT = "#1d6fb8", "#c2501f", "#22242a", "#9a9ea8"
MOST = 32  # tokens, heads, layers that are shown, the largest shares


def poster(data: dict[str, Any], path: str | Path) -> Path:
    """Writes a PNG of the data of a report (`report.Report.data`).

    Raises:
        ImportError: without matplotlib.
    """
    pyplot, _ = plotting()
    units = [unit for unit in data["attribution"].get("inputs", []) if any(unit["values"])]
    panels: list[tuple[str, Any]] = [("said", data["said"])] if data["said"] else []
    panels += [(unit["draw"], unit) for unit in units]
    panels += [("lens", data["lens"]["rows"])] if data["lens"].get("rows") else []
    panels += [("heads", data["direct"]["heads"])] if data["direct"].get("heads") else []
    panels += [("pair", each) for each in data.get("pairs", [])]
    heights = [_height(kind, what) for kind, what in panels]
    figure = pyplot.figure(figsize=(9, 0.9 + sum(heights)), facecolor=PAPER, layout="constrained")
    figure.suptitle(f"Why {data['target']}?   {data['model']}: {str(data['input'])[:80]}", fontsize=12, color=INK)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    how = data["attribution"].get("method", "")
    for axis, (kind, what) in zip(axes, panels, strict=True):
        if kind == "said":
            _bars(axis, "says", [(name, share, FOR) for name, share in what])
        elif kind == "tokens":
            _tokens(axis, f"{what['name']}, shares by {how}", what)
        elif kind == "grid":
            _grid(axis, f"{what['name']}, shares by {how}", what, data["picture"])
        elif kind == "line":
            _line(axis, f"{what['name']}, shares by {how}", what, data["wave"] if what["main"] else None)
        elif kind == "lens":
            best = [(row["layer"], *row["top"][0]) for row in what[-MOST:]]
            _bars(axis, "the likeliest behind each layer", [(f"{at}: {name}", share, FOR) for at, name, share in best])
        elif kind == "pair":
            _pair(axis, what)
        else:
            _bars(axis, "heads with the largest direct shares", _signed(what[:MOST]))
    path = Path(path)
    figure.savefig(path, dpi=DOTS)
    pyplot.close(figure)
    return path


def _height(kind: str, what: Any) -> float:
    """Inches of a panel."""
    rows = {"grid": 18, "pair": 18, "line": 9, "tokens": len(what.get("labels", ())) if isinstance(what, dict) else 0}
    return 0.5 + 0.19 * min(MOST, rows.get(kind) or len(what))


def _signed(pairs: list[Any]) -> list[tuple[str, float, str]]:
    return [(name, value, FOR if value > 0 else AGAINST) for name, value in pairs]


def _bars(axis: Any, title: str, rows: list[tuple[str, float, str]]) -> None:
    names, values, colours = zip(*rows, strict=True)
    places = range(len(rows))
    axis.barh(places, values, color=colours, height=0.7)
    axis.set_yticks(places, [name.replace("$", r"\$") for name in names], fontsize=7, family="monospace")
    axis.invert_yaxis()
    _plain(axis, title)


def _tokens(axis: Any, title: str, unit: dict[str, Any]) -> None:
    """The tokens with the largest shares, in the order of the text."""
    largest = sorted(range(len(unit["values"])), key=lambda i: -abs(unit["values"][i]))[:MOST]
    _bars(axis, title, _signed([(unit["labels"][i], unit["values"][i]) for i in sorted(largest)]))


def _grid(axis: Any, title: str, unit: dict[str, Any], picture: str | None) -> None:
    """The shares of patches, over the picture where there is one."""
    shares = np.array(unit["values"]).reshape(unit["rows"], unit["columns"])
    size = abs(shares).max() or 1.0
    box = (0, unit["columns"], unit["rows"], 0)
    if picture is not None:
        from anyformer.media.picture import pillow

        pixels = pillow().open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).convert("L")
        axis.imshow(np.asarray(pixels), cmap="gray", extent=box, aspect="equal")
    drawn = axis.imshow(shares, cmap="RdBu", vmin=-size, vmax=size, alpha=0.55 if picture else 1, extent=box)
    axis.figure.colorbar(drawn, ax=axis, fraction=0.03)
    axis.set(xticks=[], yticks=[])
    _plain(axis, title)


def _pair(axis: Any, what: dict[str, Any]) -> None:
    """A map of pairs in its unit."""
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(what["data"])), np.uint8).reshape(what["side"], -1)
    values = what["low"] + numbers / 255 * (what["high"] - what["low"])
    drawn = axis.imshow(values, cmap="Blues_r", aspect="equal", interpolation="nearest")
    axis.figure.colorbar(drawn, ax=axis, fraction=0.03).set_label(what["unit"], fontsize=7)
    every = max(1, len(what["labels"]) // 12)
    places = range(0, len(what["labels"]), every)
    for put in (axis.set_xticks, axis.set_yticks):
        put(places, [what["labels"][i] for i in places], fontsize=6)
    _plain(axis, what["name"])


def _line(axis: Any, title: str, unit: dict[str, Any], wave: list[float] | None) -> None:
    """The shares over time, behind the loudness or the values."""
    shares = np.array(unit["values"])
    axis.bar(np.linspace(0, 1, len(shares)), shares, width=0.9 / len(shares), color=np.where(shares > 0, FOR, AGAINST))
    if wave is not None:
        over = axis.twinx()
        over.plot(np.linspace(0, 1, len(wave)), wave, color=FAINT, lw=0.8)
        over.tick_params(labelsize=7, colors=FAINT)
    axis.set_xticks([])
    _plain(axis, title)


def _plain(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=9, loc="left", color=INK)
    axis.tick_params(labelsize=7)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
