"""Drawings of a model from its recipe: the wiring of each kind of block, and the masks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from anyformer.core.recipe import Recipe, signature
from anyformer.explain.canvas import FAINT, FRAME, GAP, INK, LINE, SIGNS, SUM, WIDE, Canvas, opened, written
from anyformer.explain.draw import PAPER
from anyformer.parts.adaptive import Side
from anyformer.parts.attention.masks import Causal, Full, Mask, View
from anyformer.parts.attention.windows import Windows
from anyformer.parts.block import Block
from anyformer.parts.heads import Kept
from anyformer.parts.reversible import ReversibleBlock
from anyformer.parts.series.decomposition import SeasonBlock, TrendBlock
from anyformer.parts.streams import JointBlock
from anyformer.skeletons.base import Skeleton
from anyformer.skeletons.media import bare

COLOURS = {"mixer": "#cfe3fb", "cross": "#fbe3c4", "ffn": "#d5f0d5", "norm": "#eeeeee", "first": "#d5f0d5",
           "second": "#d5f0d5"}  # fmt: skip
BRANCHES = ("mixer", "cross", "ffn")
STREAMS = ("first", "second")  # of a block with two
OTHER = {  # kinds of blocks beside `Block`: their difference from it
    ReversibleBlock: "two streams: each sum goes to the other one",
    SeasonBlock: "a trend is taken off each sum",
    TrendBlock: "a trend is taken off each sum, and added up beside the stream",
    JointBlock: "two streams: the mixer joins them; each has norms, gates and an MLP of its own",
    Side: "told: shift and scale after each norm, a gate before each sum",
}
FRONT = ("embed", "queries", "entry", "gated", "blocks", "stages", "norm")  # the order in a stack; the rest follows


def draw(recipe: Recipe, path: str | Path, title: str = "") -> Path:
    """Draws a model: front-end, each kind of block with its residual streams, heads; beside it the masks.

    Args:
        recipe: of a skeleton, e.g. `model.recipe`.
        path: .svg, .png or .pdf.
        title: above the drawing.

    Raises:
        ValueError: for another kind of file. ImportError: without matplotlib.
    """
    figure, canvas, file = opened(path)
    heading = title + ("" if "dim" not in recipe.options else f"   width {recipe.dim}")
    canvas.axes.text(0.2, 0.25, heading, fontsize=13, fontweight="bold", color=INK, va="center")
    x, masks = 0.6 + WIDE / 2, seen(recipe)
    inner = {n: v for n, v in recipe.options.items() if isinstance(v, Recipe) and issubclass(v.part, Skeleton)}
    if whole := next((name for name, v in inner.items() if {"encoder", "decoder"} <= v.options.keys()), None):
        for name in (n for n in inner if n != whole):  # models beside an encoder-decoder: they find what it reads
            _column(canvas, x, 0.85, inner[name].options, name)
            x = canvas.right + 1.1 + WIDE / 2
        recipe = inner[whole]
    sides = [name for name in ("encoder", "decoder") if name in recipe.options]
    if sides:
        ends = []
        for name in sides:
            last = name == sides[-1]
            other = "queries" if last else "source"  # a decoder's own queries, an encoder's own front-end, of sound
            begin = {other: recipe.options[other]} if recipe.options.get(other) is not None else {"embed": recipe.embed}
            front = {"embed" if other == "source" else n: part for n, part in begin.items()}
            front |= {k: v for k, v in recipe[name].options.items() if v is not None}
            rest = {k: v for k, v in recipe.options.items() if last and k not in ("embed", "source", "queries", *sides)}
            ends.append((x, _column(canvas, x, 0.85, front | rest, name) + GAP))
            x = canvas.right + 1.1 + WIDE / 2
        for at in canvas.reads:  # the branches that read the encoder
            _arrow(canvas, ends[0], at)
    else:
        _beside(canvas, x, recipe)
    _masks(canvas, canvas.right + 0.6, masks)
    return written(figure, canvas, file)


def draw_mask(mask: Mask, path: str | Path, size: int = 32) -> Path:
    """Draws a mask over `size` tokens: rows are queries, columns keys, dark is visible; with its share of all pairs.

    Raises:
        ValueError: for another kind of file than .svg, .png, .pdf. ImportError: without matplotlib.
    """
    figure, canvas, file = opened(path)
    _mask(canvas, 0.2, 0.2, "", mask, size)
    return written(figure, canvas, file)


def seen(recipe: Recipe) -> dict[str, Mask]:
    """The mask of each kind of attention in a model, by its paths: that of the part and the skeleton together."""
    paths_of: dict[Mask, list[str]] = {}
    parts = {path: value.part for path, value in recipe.walk() if isinstance(value, Recipe)}
    windows = [f"{path}." for path, part in parts.items() if part is Windows]
    inside = {path: part for path, part in parts.items() if path and issubclass(part, Skeleton)}
    towers = [f"{path}." + ("encoder" if f"{path}.decoder" in parts else "") for path in inside]
    for path, value in recipe.walk():
        cells = path.startswith(tuple(windows))  # no tokens in a row
        if path in parts and not cells and "mask" in value.options and not value.options.get("cross"):
            causal = recipe.part.generates and not path.startswith(("encoder", *towers))
            own = value.mask or Full()
            mask = own if not causal else Causal() if own == Full() else Causal() & own
            paths_of.setdefault(mask, []).append(path)
    return {_together(paths): mask for mask, paths in paths_of.items()}


def _together(paths: list[str]) -> str:
    """The first path and the number of others: `blocks.0.mixer and 11 more`."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _beside(canvas: Canvas, x: float, recipe: Recipe) -> None:
    """Draws one stack, and to the left of it the towers of the media inside its text."""
    ends, media = {}, recipe.options.get("media") or {}
    for name, options in _towers(media, recipe.options.get("images")).items():
        ends[name] = x, _column(canvas, x, 0.85, options, name) + GAP
        x = canvas.right + 1.1 + WIDE / 2
    _column(canvas, x, 0.85, {n: v for n, v in recipe.options.items() if n not in ("media", "images")}, "")
    for end in ends.values() if media else ():  # into the front-end of the text
        _arrow(canvas, end, (x, 1.0))
    for at in canvas.reads if ends else ():  # the branches that read the last of the stacks
        _arrow(canvas, list(ends.values())[-1], at)


def _arrow(canvas: Canvas, end: tuple[float, float], at: tuple[float, float]) -> None:
    """Draws a dashed arrow from the end of a stack to a box further to the right."""
    (left, low), (x, high) = end, at
    turn = x - WIDE / 2 - 0.62
    points = [(left, low - GAP), (left, low), (turn, low), (turn, high), (x - WIDE / 2, high)]
    canvas.path(points, arrow=True, dashed=True)


def _towers(media: Mapping[str, Recipe], images: Recipe | None) -> dict[str, Mapping[str, Any]]:
    """The stacks that read the media of a text, by name: towers, and what makes the positions of pictures fewer."""
    own = {name: medium for name, medium in media.items() if "tower" in medium.options}
    others = {name: [other for other, medium in media.items() if medium.options.get("like") == name] for name in own}
    made = {
        ", ".join((name, *others[name])): {**bare(medium.tower).options, "project": medium.project}
        for name, medium in own.items()
    }
    read = {} if images is None else {"images": bare(images.tower), "resampler": images.resampler}
    return made | {name: stack.options for name, stack in read.items() if stack is not None}


def _column(canvas: Canvas, x: float, y: float, options: Mapping[str, Any], name: str) -> float:
    """Draws a stack from top to bottom around the middle `x`; returns its end."""
    if name:
        canvas.axes.text(x, y - 0.2, name, ha="center", fontsize=10, color=FAINT)
    order = [n for n in FRONT if n in options] + [n for n in options if n not in FRONT]
    shared = [f"{n}: {_short(options[n])}" for n in ("bias",) if isinstance(options.get(n), Recipe)]
    if options.get("conditions"):
        shared.append(f"told: {', '.join(map(_short, options['conditions'].values()))}")
    beside = options.get("text")
    if isinstance(beside, Recipe) and "blocks" not in beside.options:
        shared.append(f"second stream: {_short(beside)}")
        order.remove("text")
    begun = False
    for option in (n for n in order if n not in ("bias", "merge", "conditions")):
        value = options[option]
        things = list(value.items()) if isinstance(value, dict) else [(option, value)]
        if option == "stages":
            things = _stages(value, options["merge"])
        for label, thing in things:
            for where, one in _kinds(thing):
                if not isinstance(one, Recipe):
                    continue
                if begun:
                    canvas.path([(x, y), (x, y + GAP)], arrow=True)
                    y += GAP
                if "blocks" in one.options:
                    canvas.axes.text(x - WIDE / 2 - 0.3, y - GAP / 2, label, fontsize=10, color=FAINT, va="center")
                    y = _column(canvas, x, y, one.options, "")
                else:
                    y = _thing(canvas, x, y, label, one, where, shared)
                begun = True
    return y


def _stages(stages: tuple[Recipe, ...], merge: Recipe) -> list[tuple[str, Recipe]]:
    """The stages of a pyramid by name, with what stands between them."""
    pairs = [(("merge", merge), (f"stage {i}", stage)) for i, stage in enumerate(stages)]
    return [pair for both in pairs for pair in both][1:]


def _kinds(value: Any) -> list[tuple[str, Any]]:
    """The different layers of a list, each with its layer numbers; any other value alone, without numbers."""
    if not isinstance(value, tuple):
        return [("", value)]
    kinds: dict[Any, list[int]] = {}
    for i, item in enumerate(value):
        kinds.setdefault(item, []).append(i)
    return [(_ranges(places) if len(kinds) > 1 else f"{len(value)} x", one) for one, places in kinds.items()]


def _ranges(indices: list[int]) -> str:
    """The numbers as text: `layers 0-4, 6-10`."""
    starts = [n for n in indices if n - 1 not in indices]
    ends = [n for n in indices if n + 1 not in indices]
    shown = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    more = f" … {shown[-1]}" if len(shown) > 5 else ""
    return f"layers {', '.join(shown[:4] if more else shown)}{more}:"


def _thing(canvas: Canvas, x: float, y: float, label: str, recipe: Recipe, where: str, shared: list[str]) -> float:
    name = recipe.part.__name__
    if issubclass(recipe.part, Kept):
        part = recipe.options.get("held")  # a kind of it can name what it holds itself
        held = "" if part is None else f"{part.part.__name__}, "
        return canvas.box(x, y, f"{where or f'{label}:'} {name}", [f"{held}not computed"], PAPER)
    if "mixer" not in recipe.options or not recipe.options.keys() & {"norm", *STREAMS}:
        return canvas.box(x, y, f"{where or f'{label}:'} {name}", _lines(recipe), COLOURS.get(label, PAPER))
    return _block(canvas, x, y, recipe, where, shared)


def _block(canvas: Canvas, x: float, y: float, block: Recipe, where: str, shared: list[str]) -> float:
    """Draws a frame around the branches of a block and the sums between them, or around the parts of two streams."""
    from matplotlib.patches import FancyBboxPatch

    top, known = y, {*BRANCHES, "norm", "wiring", *STREAMS}
    other = [why for kind, why in OTHER.items() if issubclass(block.part, kind)]
    more = [line for text in [*_lines(block, known), *other, *shared] for line in textwrap.wrap(text, SIGNS + 8)]
    for line in [*textwrap.wrap(f"{where} {block.part.__name__}, {_wiring(block)}", SIGNS), *more]:
        size, colour = (7, FAINT) if line in more else (9, INK)
        canvas.axes.text(x - WIDE / 2 - 0.3, y + 0.16, line, fontsize=size, color=colour, va="center")
        y += LINE
    y += 0.15
    branches = [name for name in BRANCHES if block.options.get(name) is not None]
    if STREAMS[0] in block.options:
        left, right = x - WIDE / 2 - 0.45, x + WIDE / 2 + 0.3
        for name in (*branches, *STREAMS):
            canvas.path([(x, y), (x, y + GAP)], arrow=True)
            y = _inner(canvas, x, y + GAP, name, block.options[name])
    elif _wiring(block) == "parallel":
        y, left, right = _parallel(canvas, x, y, block, branches)
    else:
        left, right = x - WIDE / 2 - 0.45, x + WIDE / 2 + 0.3
        for name in branches:
            y = _branch(canvas, x, y, block, name)
    wide, high = right - left, y + 0.12 - top
    frame = FancyBboxPatch(
        (left, top), wide, high, "round,pad=0,rounding_size=0.1", fc=FRAME, ec=FAINT, lw=0.8, zorder=0
    )
    canvas.axes.add_patch(frame)
    canvas.path([(x, y), (x, y + 0.12)])
    return canvas.reach(right, y + 0.12)


def _wiring(block: Recipe) -> str:
    """The wiring of a block; that of `Block` if a page's own kind of block has no such option."""
    usual = getattr(block.part, "wired", signature(Block)["wiring"])
    return block.options.get("wiring", usual)


def _branch(canvas: Canvas, x: float, y: float, block: Recipe, name: str) -> float:
    """Draws one residual branch; the stream passes it on the left."""
    order = {"pre": ["norm", name, "+"], "post": [name, "+", "norm"], "sandwich": ["norm", name, "norm", "+"]}
    begin, side = y + 0.05, x - WIDE / 2 - 0.25
    canvas.path([(x, y), (x, y + GAP)])
    y += 0.05
    for step in order[_wiring(block)]:
        canvas.path([(x, y), (x, y + GAP)], arrow=True)
        y += GAP
        if step == "+":
            canvas.path([(x, begin), (side, begin), (side, y + SUM), (x - SUM, y + SUM)], arrow=True)
            canvas.add(x, y + SUM)
            y += 2 * SUM
        else:
            inner = block.options[step]
            y = _inner(canvas, x, y, step, inner[name] if isinstance(inner, dict) else inner)
    return y


def _parallel(canvas: Canvas, x: float, y: float, block: Recipe, branches: list[str]) -> tuple[float, float, float]:
    """Draws parallel branches, which read one stream and are summed; returns the end and both edges of the frame."""
    begin = y + 0.05
    places = [x + (i - (len(branches) - 1) / 2) * (WIDE + 0.3) for i in range(len(branches))]
    ends = []
    for place, name in zip(places, branches, strict=True):
        at = begin + GAP
        canvas.path([(x, begin), (place, begin), (place, at)], arrow=True)
        at = _inner(canvas, place, at, "norm", block.norm)
        canvas.path([(place, at), (place, at + GAP)], arrow=True)
        ends.append((place, _inner(canvas, place, at + GAP, name, block.options[name])))
    low, left = max(end for _, end in ends) + GAP, places[0] - WIDE / 2 - 0.25
    canvas.path([(x, y), (x, begin), (left, begin), (left, low), (x - SUM, low)], arrow=True)
    for place, end in ends:
        canvas.path([(place, end), (place, low), (x + SUM * (1 if place > x else -1), low)])
    canvas.add(x, low)
    return low + SUM, left - 0.2, places[-1] + WIDE / 2 + 0.3


def _inner(canvas: Canvas, x: float, y: float, name: str, recipe: Recipe) -> float:
    title = recipe.part.__name__ if name == "norm" else f"{name}: {recipe.part.__name__}"
    end = canvas.box(x, y, title, _lines(recipe), COLOURS[name])
    if name == "cross":
        canvas.reads.append((x, (y + end) / 2))
    return end


def _lines(recipe: Recipe, without: Iterable[str] = ()) -> list[str]:
    """The options of a part that differ from its defaults, as lines of a box."""
    defaults = signature(recipe.part)
    shown = [f"{k}={_short(v)}" for k, v in recipe.options.items() if k not in without and v != defaults[k]]
    return [line for text in shown for line in textwrap.wrap(text, SIGNS)]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(_short(v) for v in value)}]"
    return repr(value).replace(".of(", "(")


def _masks(canvas: Canvas, x: float, masks: dict[str, Mask]) -> None:
    y = 0.65
    for path, mask in masks.items():
        y = _mask(canvas, x, y, path, mask, telling(mask)) + 0.35


def telling(mask: Mask) -> int:
    """The fewest tokens for which a mask hides more than the future."""
    most = Causal() if mask.reach()[1] == 0 else Full()
    for size in (24, 48, 96, 192, 384, 768, 1536):
        if mask.kept(size) < 0.7 * most.kept(size):
            return size
    return 24


def _mask(canvas: Canvas, x: float, y: float, path: str, mask: Mask, size: int) -> float:
    high = 1.9
    share = f"{mask.kept(1024):.1%} of the pairs of 1,024 tokens"
    lines = [*([path] if path else []), *textwrap.wrap(repr(mask), SIGNS), share]
    for i, line in enumerate(lines):
        canvas.axes.text(x, y + LINE * i, line, fontsize=7, color=INK if i < len(lines) - 1 else FAINT, va="center")
    y += LINE * len(lines)
    picture = View(mask, 0, size, 0, size).tensor()[0, 0].numpy()
    canvas.axes.imshow(picture, cmap="Blues", vmin=0, vmax=1.6, extent=(x, x + high, y + high, y), zorder=2)
    canvas.path([(x, y), (x + high, y), (x + high, y + high), (x, y + high), (x, y)])
    canvas.axes.text(
        x, y + high + 0.1, f"{size} tokens: rows are queries, columns keys", fontsize=6, color=FAINT, va="center"
    )
    return canvas.reach(x + max(high, 2.4), y + high + 0.15)
