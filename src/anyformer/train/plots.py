"""The curves of a run as a PNG and as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from typing import Any

from anyformer.hub.formats.guard import atomic_write
from anyformer.train.log import COLUMNS, read_log

PANELS = {"loss": "loss", "held_out": "held out", "lr": "learning rate", "grad_norm": "gradient norm"}
PANELS |= {"tokens_per_second": "tokens a second"}
FEW = 30  # points of a curve, up to which each is marked: of one point there is no line
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
svg{width:100%;height:auto}table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left}
th{font-weight:600}td{font-variant-numeric:tabular-nums}pre{overflow-x:auto;background:#f5f5f5;padding:.8rem}"""


def write(folder: Path, unit: str = "") -> None:
    """`curves.png` and `curves.html` in the folder of a run, from its log.

    Args:
        unit: of what is measured on held-out data.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    rows = read_log(folder / "log.jsonl")
    png, svg = _draw(rows, unit)
    atomic_write(folder / "curves.png", png)
    atomic_write(folder / "curves.html", _page(folder, rows, svg).encode())


def _panels(rows: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Title and curves of each panel; metrics of parts (`train.step_loss.metrics`) have panels of their own."""
    names = dict.fromkeys(name for row in rows for name in row if row[name] is not None)
    shown = [(title, [key]) for key, title in PANELS.items() if key in names]
    for name in (name for name in names if name not in COLUMNS and not name.endswith("_greatest")):
        stem = name.removesuffix("_least")
        both = [name, f"{stem}_greatest"] if stem != name else [name]
        shown.append((stem.replace("_", " ") + ", least and greatest" * (len(both) - 1), both))
    return shown


def _draw(rows: list[dict[str, Any]], unit: str) -> tuple[bytes, str]:
    """The panels, as PNG and as SVG."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("curves need matplotlib: pip install 'anyformer[plot]'") from None
    shown = _panels(rows)
    lines = (len(shown) + 1) // 2
    figure = Figure(figsize=(10, 3 * lines))
    # Margins in inches, as fractions: a layout that measures every label takes longer than the drawing itself.
    figure.subplots_adjust(0.085, 0.5 / 3 / lines, 0.98, 1 - 0.35 / 3 / lines, wspace=0.23, hspace=0.4)
    for i, (title, keys) in enumerate(shown):
        axes = figure.add_subplot(lines, 2, i + 1)
        for color, key in enumerate(keys):
            _curve(axes, [(row["step"], row[key]) for row in rows if row.get(key) is not None], f"C{color}", key)
        axes.set_title(f"{title}, {unit}" if unit and keys == ["held_out"] else title, fontsize=11, loc="left")
        axes.set_xlim(rows[0]["step"] - 1, rows[-1]["step"] * 1.01)  # the same steps above each other
        axes.set_xlabel("step", fontsize=9)
        axes.locator_params("x", nbins=6, integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=120)
    figure.savefig(svg, format="svg")
    text = svg.getvalue()
    return png.getvalue(), text[text.index("<svg") :]


def _curve(axes: Any, points: list[tuple[int, float]], color: str, key: str) -> None:
    """Of many points each faintly, and their mean; of few each with a mark."""
    steps, values = zip(*points, strict=True)
    noisy = len(points) > 100 and key not in ("lr", "tokens_per_second")
    axes.plot(steps, values, color=color, lw=0.8 if noisy else 1.6, alpha=0.4 if noisy else 1,
              marker="o" if len(points) <= FEW else None, ms=4)  # fmt: skip
    if noisy:
        axes.plot(steps, _smooth(values), lw=1.6, color=color)


def _smooth(values: tuple[float, ...]) -> Any:
    """A mean over a fiftieth of the curve around each place, less at its ends."""
    import numpy as np

    ones = np.ones(max(1, len(values) // 50))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def _page(folder: Path, rows: list[dict[str, Any]], svg: str) -> str:
    steps = [row for row in rows if "loss" in row]
    held = [row["held_out"] for row in rows if "held_out" in row]
    facts = {"steps": steps[-1]["step"], "loss of the last step": steps[-1]["loss"]} if steps else {}
    if held:
        facts |= {"held out, last": held[-1], "held out, best": min(held)}
    facts |= {"tokens": sum(row["tokens"] for row in steps)}
    lines = "".join(f"<tr><th>{name}</th><td>{_number(value)}</td></tr>" for name, value in facts.items())
    config = folder / "config.yaml"
    options = f"<h2>config.yaml</h2><pre>{html.escape(config.read_text())}</pre>" if config.exists() else ""
    where = folder / "environment.json"
    there = json.dumps(json.loads(where.read_text()), indent=1) if where.exists() else ""
    name = html.escape(folder.name)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>{STYLE}</style>"
        f"<h1>{name}</h1><table>{lines}</table>{svg}{options}<h2>environment.json</h2><pre>{html.escape(there)}</pre></html>"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
