"""HTML of a recipe, a model, taps, a mask or the result of a run: a picture, tables, and a tree of lines with paths.

The tree is Treescope's if that is installed (`pip install 'anyformer[notebook]'`): arrays are drawn, and a button
copies the path of a line. Without it the lines fold, and a click on a path selects it. Nothing comes from the network.
"""

from __future__ import annotations

import dataclasses
import html as escaping
import importlib.util
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from anyformer.core.recipe import Recipe, signature, stored_name
from anyformer.core.taps import Taps
from anyformer.explain.facts import inspect
from anyformer.explain.wiring import draw, telling
from anyformer.parts.attention.masks import Mask, View

DRAWN = 2_000_000  # the largest model, in parameters, that Treescope draws
STYLE = """<style>.af{font:13px/1.5 system-ui,sans-serif;overflow-x:auto}
.af table{border-collapse:collapse;font:inherit}
.af td,.af th{text-align:left!important;padding:.1em .9em .1em 0;border:0;background:none}
.af td{font-variant-numeric:tabular-nums}
.af details>*{margin-left:1.2em}.af summary{margin-left:0;cursor:pointer}.af code{background:none;padding:0}
.af .path{color:#889;margin-left:.8em;user-select:all}
.af svg{max-width:min(100%,36em);height:auto;background:#fff}</style>"""
COLOURS = ("#1f77b4", "#d62728")


@dataclasses.dataclass
class Node:
    """A line of the tree: its text, its path, a tensor, and the lines below it."""

    text: str
    path: str
    below: list[Node] = dataclasses.field(default_factory=list)
    tensor: Tensor | None = None


def html(thing: Any) -> str:
    """The HTML of a thing in a notebook: pictures, tables, tree."""
    if isinstance(thing, Mask):
        sections = [_mask(thing)]
    elif isinstance(thing, Taps):
        sections = [_tapped(thing), _tree(thing)]
    elif isinstance(thing, Recipe):
        sections = [_wiring(thing), _tree(thing)]
    elif isinstance(thing, nn.Module):
        sections = [*(_facts(thing) if hasattr(thing, "entrances") else ()), _tree(thing)]
    else:
        sections = _run(thing)
    return f'{STYLE}<div class="af">{"".join(sections)}</div>'


# ------------------------------------------------------------------------------------------------ tables and pictures


def _table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    lines = ["".join(f"<th>{escaping.escape(str(cell))}</th>" for cell in head)] if head else []
    lines += ["".join(f"<td>{escaping.escape(str(cell))}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _wiring(recipe: Recipe, title: str = "") -> str:
    """The drawing of a model's recipe, as SVG; "" for another part."""
    if not recipe.part.closed:
        return ""
    if importlib.util.find_spec("matplotlib") is None:
        return "<p>the wiring is drawn with matplotlib: pip install 'anyformer[plot]'</p>"
    with tempfile.TemporaryDirectory() as folder:
        text = draw(recipe, Path(folder) / "wiring.svg", title).read_text(encoding="utf-8")
    return f"<details open><summary>wiring</summary>{text[text.index('<svg') :]}</details>"


def _facts(model: Any) -> list[str]:
    """A table of a model's facts, its wiring, and its parameters by part."""
    facts = inspect(model)
    context = "any number" if facts.context is None else f"up to {facts.context:,}"
    rows = [("architecture", facts.page or "its own recipe"), ("skeleton", facts.skeleton), ("tokens", context)]
    rows += [("parameters", f"{facts.parameters:,}"), ("weights", ", ".join(facts.weights))]
    parts = [(part, f"{count:,}", f"{count / max(1, facts.parameters):.1%}") for part, count in facts.parts.items()]
    by_part = f"<details><summary>parameters by part</summary>{_table(parts)}</details>"
    return [_table(rows), _wiring(model.recipe, facts.page or ""), by_part]


def _tapped(taps: Taps) -> str:
    rows = []
    for path, value in taps.items():
        numbers = value.detach().double() if value.numel() else value.new_zeros(1).double()
        about = (f"{numbers.mean():.3g}", f"{numbers.std(unbiased=False):.3g}", f"{numbers.abs().max():.3g}")
        rows.append((path, " x ".join(map(str, value.shape)), str(value.dtype).removeprefix("torch."), *about))
    return _table(rows, ("path", "shape", "type", "mean", "deviation", "largest"))


def _mask(mask: Mask) -> str:
    """The picture of a mask over enough tokens to show it: rows are queries, columns keys."""
    size = telling(mask)
    seen = View(mask, 0, size, 0, size).tensor()[0, 0].tolist()
    cells = "".join(
        f'<rect x="{k}" y="{q}" width="1" height="1"/>' for q, row in enumerate(seen) for k, on in enumerate(row) if on
    )
    share = f"{mask.kept(1024):.1%} of the pairs of 1,024 tokens; drawn over {size}: rows are queries, columns keys"
    return (
        f"<code>{escaping.escape(repr(mask))}</code><p>{share}</p>"
        f'<svg width="240" height="240" viewBox="0 0 {size} {size}" shape-rendering="crispEdges" fill="#6b9bd1">'
        f'<rect width="{size}" height="{size}" fill="#f1f1f4"/>{cells}</svg>'
    )


def _run(result: Any) -> list[str]:
    """The fields of a result of `train`, `finetune` or `fit`, and the curves of the run's log."""
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.repr}
    log = Path(result.checkpoint).parent / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    curves = {name: [(r["step"], r[name]) for r in rows if r.get(name) is not None] for name in ("loss", "held_out")}
    shown = ((name, value) for name, value in fields.items() if value not in (None, "", ()))
    return [_table((name, f"{v:.4g}" if isinstance(v, float) else v) for name, v in shown), _curves(curves)]


def _curves(curves: dict[str, list[tuple[int, float]]], wide: int = 520, high: int = 200) -> str:
    """A chart of lines over steps, each on its own scale, stated in its legend."""
    drawn, legend = [], []
    last = max((step for points in curves.values() for step, _ in points), default=0)
    for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
        if not points:
            continue
        low, top = min(v for _, v in points), max(v for _, v in points)
        places = [(wide * s / max(1, last), high - high * (v - low) / ((top - low) or 1)) for s, v in points]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places if len(places) < 30]
        about = f"{name.replace('_', ' ')}: {points[-1][1]:.4g} ({low:.4g} … {top:.4g})"
        legend.append(f'<span style="color:{colour}">{about}</span>')
    if not drawn:
        return ""
    return (
        f"<p>{' &nbsp; '.join(legend)}, over {last:,} steps</p>"
        f'<svg width="{wide}" height="{high}" viewBox="-5 -5 {wide + 10} {high + 10}">'
        f'<rect width="{wide}" height="{high}" fill="#fafafc" stroke="#ccd"/>{"".join(drawn)}</svg>'
    )


# ------------------------------------------------------------------------------------------------ the tree


def nodes(thing: Any, path: str = "") -> Node:
    """The lines of a recipe, a module or taps, with the paths for reading, changing or recording them."""
    if isinstance(thing, Recipe):
        return _of_recipe(stored_name(thing.part), thing, path)
    if isinstance(thing, Taps):
        return Node("Taps", path, [Node(name, name, tensor=value) for name, value in thing.items()])
    return _of_module(type(thing).__name__, thing, path)


def _joined(path: str, step: str) -> str:
    return f"{path}.{step}" if path else step


def _of_recipe(text: str, recipe: Recipe, path: str) -> Node:
    """The options that differ from the defaults."""
    known = signature(recipe.part)
    chosen = ((name, value) for name, value in recipe.options.items() if value != known[name])
    return Node(text, path, [_of_option(name, value, _joined(path, name)) for name, value in chosen])


def _of_option(name: str, value: Any, path: str) -> Node:
    if isinstance(value, Recipe):
        return _of_recipe(f"{name}: {stored_name(value.part)}", value, path)
    if isinstance(value, dict):
        return Node(name, path, [_of_option(k, v, _joined(path, k)) for k, v in value.items()])
    if isinstance(value, tuple) and any(isinstance(v, Recipe) for v in value):
        return Node(f"{name}: {len(value)}", path, [_of_option(*run) for run in _runs(value, path)])
    return Node(f"{name} = {value!r}", path)


def _runs(values: tuple[Any, ...], path: str) -> Iterable[tuple[str, Any, str]]:
    """Runs of equal neighbours: their indices, one of them, and the path of all of them: `blocks.*`, `blocks.2:5`."""
    start = 0
    for end in range(1, len(values) + 1):
        if end < len(values) and values[end] == values[start]:
            continue
        one, whole = end - start == 1, end - start == len(values)
        step = str(start) if one else "*" if whole else f"{start}:{end}"
        yield (str(start) if one else f"{start}-{end - 1}"), values[start], _joined(path, step)
        start = end


def _of_module(text: str, module: nn.Module, path: str) -> Node:
    own = module.named_parameters(recurse=False)
    below = [Node(_labelled(name, tensor), _joined(path, name), tensor=tensor.detach()) for name, tensor in own]
    for name, child in module.named_children():
        kind = f" x {len(child)}" if isinstance(child, nn.ModuleList) else f": {type(child).__name__}"
        below.append(_of_module(name + kind, child, _joined(path, name)))
    return Node(text, path, below)


def _labelled(name: str, tensor: Tensor) -> str:
    return f"{name}: {str(tensor.dtype).removeprefix('torch.')} {' x '.join(map(str, tensor.shape))}"


def _tree(thing: Any) -> str:
    """The tree, by Treescope or plain."""
    if importlib.util.find_spec("treescope") is None:
        return _plain(nodes(thing), True)
    import treescope

    renderer = treescope.active_renderer.get()
    hooks = [h for h in renderer.wrapper_hooks if h is not treescope.handlers.append_repr_html_when_present]
    with (
        treescope.active_renderer.set_scoped(dataclasses.replace(renderer, wrapper_hooks=hooks)),
        treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()),
    ):
        return treescope.render_to_html(thing, compressed=False)


def _plain(node: Node, begun: bool = False) -> str:
    path = f'<code class="path">{escaping.escape(node.path)}</code>' if node.path else ""
    line = f"<code>{escaping.escape(node.text)}</code>{path}"
    if not node.below:
        return f"<div>{line}</div>"
    return f"<details{' open' * begun}><summary>{line}</summary>{''.join(map(_plain, node.below))}</details>"


def treescope_tree(thing: Any, path: str | None, render: Any) -> Any:
    """`__treescope_repr__` of a thing: a tree of Treescope's parts."""
    from treescope import rendering_parts as parts

    if not isinstance(thing, Recipe | Taps | nn.Module):
        return parts.text(repr(thing))
    few = not isinstance(thing, nn.Module) or sum(p.numel() for p in thing.parameters()) <= DRAWN

    def made(node: Node) -> Any:
        if node.tensor is not None and few and not node.tensor.is_meta:
            array = node.tensor.detach().float().cpu().numpy()  # tensors of PyTorch have no `names` any more
            return parts.siblings_with_annotations(f"{node.text.partition(':')[0]}: ", render(array, path=node.path))
        if not node.below:
            return parts.build_one_line_tree_node(parts.text(node.text), node.path)
        lines = [parts.build_full_line_with_annotations(made(child)) for child in node.below]
        return parts.build_foldable_tree_node_from_children(
            f"{node.text}(", lines, ")", comma_separated=True, path=node.path
        )

    return made(nodes(thing, path or ""))
