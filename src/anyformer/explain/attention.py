"""Attention pictures: the attention weights of each token, as a PNG.

B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.core.front import FrontEnd
from anyformer.core.mixer import Mixer
from anyformer.explain.blocks import InBlocks
from anyformer.explain.draw import Panel, draw_image, draw_maps
from anyformer.explain.labels import labels
from anyformer.parts import Attention, JointAttention, LatentAttention, Windows
from anyformer.parts.attention.media import MediaAttention
from anyformer.parts.attention.where import Where
from anyformer.parts.embeddings import Cells
from anyformer.skeletons import Skeleton

LAYERS = 4  # shown by default, evenly from the first to the last
LONGEST = 256  # cells on an axis; more could not be distinguished
PLACES = 32  # labels on an axis of positions that are no tokens


def attention_picture(
    model: Any,
    inputs: str | Sequence[int] | Tensor | Mapping[str, Tensor],
    path: str | Path,
    *,
    answer: str | Sequence[int] | None = None,
    layer: int | None = None,
    head: int | None = None,
) -> Path:
    """Draws the attention weights of a model in one forward pass; recording does not change the pass.

    ```
    neither           the mean over the heads, in four layers      layer              every head of that layer
    head              that head, in four layers                    layer and head     one large map
    ```
    Each kind of attention (an encoder's, a decoder's, cross-attention) has its own maps. A text of more than 256 tokens
    is shown in cells of several tokens with the largest weight of each, which the title says.

    For a model that reads images the maps show the attention of the class token to the image; without a class token,
    the mean attention of all patches to each of them, in a pyramid (Swin) on the grid of each stage. The layers of a
    pyramid are counted through all stages.

    Args:
        model: any model with attention, whatever other mixers it has.
        inputs: a text, token ids, or another main input, e.g. pixel values (1, C, height, width); of two towers, that
            of the medium is drawn. A tower inside a decoder (LLaVA) is drawn alone: `model.media["image"].tower`.
            For a model that reads several tensors: all of them by name (`model.inputs()`), one row each.
        path: the PNG to write.
        answer: the continuation of `inputs` in a decoder, the target in an encoder-decoder. The rows are its tokens.
        layer, head: counted from 0, negative ones from the end.

    Returns:
        The path.

    Raises:
        ValueError: without attention, such a layer or head, or a tokenizer for a text; for an empty text.
        ImportError: without matplotlib.
    """
    tokenizer, whole = model.tokenizer, model
    if model.alike:
        pixels = isinstance(inputs, Tensor) and inputs.is_floating_point()
        model = model.towers[model.tower(model.takes if pixels else "input_ids")]
    chosen = _chosen(model, layer)
    arguments, axes = _inputs(model, tokenizer, inputs, answer)
    image = model.entrances()[0].front.cells(arguments) is not None
    paths = [path for kind in chosen.values() for path in kind.values()]
    with torch.no_grad(), _cells(model) as cells, InBlocks(model, paths) as taps:
        model(**arguments)
    if image:  # of a decoder, what its queries see of the picture, not each other
        chosen = {
            k: kind
            for k, kind in chosen.items()
            if all(p in cells or _around(model, p) in cells for p in kind.values())
        }
    paths = [path for kind in chosen.values() for path in kind.values()]
    seen = {p: _on_grid(model, p, w.pooled(1), cells) if image else w.pooled(*map(_tokens, w.shape[-2:]))[0]
            for p in paths for w in [taps.maps[p]]}  # fmt: skip
    maps = {k: [m for n, p in kind.items() for m in _heads(n, seen[p], layer, head)] for k, kind in chosen.items()}
    title = f"{_name(whole)}: {_which(maps, layer, head)}"
    longest = max(max(w.shape[-2:]) for w in taps.maps.values())
    if not image and longest > LONGEST:
        title += f"; of {_tokens(longest)} tokens the largest weight"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if image:
        queries = "all queries" if any(k.endswith("cross") for k in maps) else "all patches"
        whose = "the class token" if any(c.first for c in cells.values()) else f"{queries}, on average"
        flat = [m for kind in maps.values() for m in kind]
        draw_image(arguments[model.takes][0], flat, f"{title}\nattention of {whose}", path)
    else:
        draw_maps({k: [_panel(k, m, axes) for m in kind] for k, kind in maps.items()}, title, path)
    return path


@contextlib.contextmanager
def _cells(model: Any) -> Iterator[dict[str, Cells]]:
    """A dictionary that the block fills with the grid of every mixer that runs, by its path."""
    grids: dict[str, Cells] = {}

    def note(path: str) -> Any:
        def hook(mixer: Any, inputs: tuple[Any, ...]) -> None:
            where = inputs[1].find(Where)
            cells = where.grid if where is not None and getattr(mixer, "cross", False) else inputs[1].find(Cells)
            if cells is not None:
                grids[path] = cells

        return hook

    mixers = [(path, module) for path, module in model.named_modules() if isinstance(module, Mixer)]
    hooks = [module.register_forward_pre_hook(note(path)) for path, module in mixers]
    try:
        yield grids
    finally:
        for hook in hooks:
            hook.remove()


def _around(model: Any, path: str) -> str:
    """The path of the mixer around one, or its own."""
    above = path.rpartition(".")[0]
    return above if isinstance(model.get_submodule(above), Windows) else path


def _on_grid(model: Any, path: str, weights: Tensor, cells: Mapping[str, Cells]) -> Tensor:
    """The weights of each patch on the grid, (H, rows, columns): of the class token, or the mean of all patches."""
    above = path.rpartition(".")[0]
    owner = model.get_submodule(above)
    if isinstance(owner, Windows):  # weights (B W, H, w w, w w)
        grid = cells[above]
        return owner.joined(weights.sum(2).mT, grid.rows, grid.columns)[0].permute(2, 0, 1) / (grid.rows * grid.columns)
    grid = cells[path]
    row = weights[0, :, 0] if grid.first else weights[0].mean(1)  # (H, S)
    patches = slice(grid.first, grid.first + grid.rows * grid.columns)  # a text can follow
    return row[:, patches].unflatten(1, (grid.rows, grid.columns))


def kinds(model: Any) -> dict[str, dict[int, str]]:
    """The paths of all attention modules with weights to show, by kind (their path with `*` for the layer) and layer;
    the layers of several stacks in a row are counted through all of them."""
    found: dict[str, dict[int, str]] = {}
    inner = tuple(
        f"{path}." for path, module in model.named_modules() if path and isinstance(module, Skeleton | FrontEnd)
    )
    for name, module in model.named_modules():
        if name.startswith(inner) or isinstance(module, MediaAttention):
            continue  # of a medium, which has a picture of its own, or to latents of media, which have no names
        if isinstance(module, Attention | JointAttention | LatentAttention):
            layers, numbers = found.setdefault(re.sub(r"\d+", "*", name), {}), re.findall(r"\d+", name)
            layers[int(numbers[0]) if len(numbers) == 1 else len(layers)] = name
    return found


def implied(model: Any) -> dict[str, dict[int, str]]:
    """The paths of recurrences and linear attention, whose maps are implied, as of `kinds`; a kind has the class
    behind its path, because a model can have both."""
    found: dict[str, dict[int, str]] = {}
    inner = tuple(f"{path}." for path, m in model.named_modules() if path and isinstance(m, Skeleton | FrontEnd))
    for name, module in model.named_modules():
        if isinstance(module, Mixer) and module.maps and not name.startswith(inner):
            layers = found.setdefault(f"{re.sub(r'[0-9]+', '*', name)} ({type(module).__name__})", {})
            numbers = re.findall(r"\d+", name)
            layers[int(numbers[0]) if len(numbers) == 1 else len(layers)] = name
    return found


def kinds_of(model: Any) -> dict[str, dict[int, str]]:
    """The same as `kinds`; of a model without attention as `implied`.

    Raises:
        ValueError: if there are none.
    """
    kinds_ = kinds(model) or implied(model)
    if not kinds_:
        mixers = sorted({type(m).__name__ for m in model.modules() if isinstance(m, Mixer)})
        raise ValueError(f"this model has no attention to draw; its mixers are {', '.join(mixers)}")
    return kinds_


def _chosen(model: Any, layer: int | None) -> dict[str, dict[int, str]]:
    """The paths of the attention modules to record, as of `kinds_of`."""
    chosen = {}
    for kind, layers in kinds_of(model).items():
        numbers = list(layers)
        if layer is None:
            steps = min(LAYERS, len(numbers))
            numbers = [numbers[round(i * (len(numbers) - 1) / max(1, steps - 1))] for i in range(steps)]
        else:
            numbers = numbers[layer:][:1] if -len(numbers) <= layer < 0 else [layer] if layer in layers else []
        if numbers:
            chosen[kind] = {n: layers[n] for n in numbers}
    if not chosen:
        there = ", ".join(str(n) for n in sorted({n for layers in kinds_of(model).values() for n in layers}))
        raise ValueError(f"layer {layer} has no attention; layers with attention: {there}")
    return chosen


def _inputs(model: Any, tokenizer: Any, inputs: Any, answer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arguments of the model; the labels of the `source` and the `target`, and the `first` row that is drawn."""
    if isinstance(inputs, Mapping):
        front = model.entrances()[0].front
        positions = [str(n) for n in range(front.length(model.entrances()[0].given(inputs)))]
        return dict(inputs), {"source": positions, "target": positions, "first": 0}
    if not model.reads_text:
        read = model.inputs()[model.takes]
        if not isinstance(inputs, Tensor) or inputs.ndim != 1 + len(read.axes) or len(inputs) != 1:
            shape = f"(1, {', '.join(read.axes)})"
            raise ValueError(f"this model reads {model.takes} of shape {shape}, got {_shown(inputs)}")
        if not model.reads_source:
            return {model.takes: inputs}, {}
        count = model.entrances()[0].front.length({model.takes: inputs})
        target = _target(model, tokenizer, answer)
        named = {model.takes: inputs, "decoder_input_ids": torch.tensor([target], device=inputs.device)}
        places = [str(n) if n % (1 + count // PLACES) == 0 else "" for n in range(count)]
        return named, {"source": places, "target": labels(tokenizer, target), "first": 0}
    if answer is not None and not model.generates:
        raise ValueError("this model is bidirectional and writes no answer; leave answer out")
    ids = _ids(tokenizer, inputs, special=True)
    device = next(model.parameters()).device
    if model.reads_source:
        target = _target(model, tokenizer, answer)
        both = {
            "input_ids": torch.tensor([ids], device=device),
            "decoder_input_ids": torch.tensor([target], device=device),
        }
        return both, {"source": labels(tokenizer, ids), "target": labels(tokenizer, target), "first": 0}
    more = [] if answer is None else _ids(tokenizer, answer, special=False)
    axes = {"target": labels(tokenizer, ids + more), "first": len(ids) if more else 0}
    return {"input_ids": torch.tensor([ids + more], device=device)}, axes


def _target(model: Any, tokenizer: Any, answer: Any) -> list[int]:
    """The ids of the target of an encoder-decoder."""
    if answer is None:
        raise ValueError("an encoder-decoder attends to the source while it writes; pass answer=, the target")
    return [model.begin_id, *_ids(tokenizer, answer, special=False)]


def _ids(tokenizer: Any, value: Any, special: bool) -> list[int]:
    if isinstance(value, str):
        if tokenizer is None:
            raise ValueError("this model has no tokenizer; pass token ids instead of a text")
        value = tokenizer.encode(value, special=special)
    ids = [int(i) for i in (value.flatten() if isinstance(value, Tensor) else value)]
    if not ids:
        raise ValueError("a picture shows at least one token on an axis, got none")
    return ids


def _tokens(count: int) -> int:
    """The tokens of a cell on an axis of so many."""
    return -(-count // LONGEST)


def _heads(number: int, weights: Tensor, layer: int | None, head: int | None) -> list[tuple[str, Tensor]]:
    """The maps to draw of one layer's weights (H, …): the title and the map (…) of each."""
    count = len(weights)
    if head is not None:
        if not -count <= head < count:
            raise ValueError(f"no head {head}; layer {number} has the heads 0 to {count - 1}")
        return [(f"layer {number}, head {head % count}", weights[head].float().cpu())]
    if layer is None:
        return [(f"layer {number}, mean of {count} heads", weights.float().mean(0).cpu())]
    return [(f"layer {number}, head {i}", w.float().cpu()) for i, w in enumerate(weights)]


def _panel(kind: str, titled: tuple[str, Tensor], axes: dict[str, Any]) -> Panel:
    """One map with its tokens: an encoder's over the source, a decoder's over the target, cross-attention over both."""
    title, weights = titled
    names, first = ("source", "source"), 0
    if not kind.endswith("cross") and not kind.startswith("encoder."):
        names, first = ("target", "target"), axes["first"] // _tokens(len(axes["target"]))
    elif kind.endswith("cross"):
        names = ("target", "source")
    queries, over = (_fitting(axes[n], count) for n, count in zip(names, weights.shape, strict=True))
    return Panel(title, weights[first:], queries[first:], over, first)


def _fitting(names: list[str], count: int) -> list[str]:
    """The labels of an axis, of a cell that of its first token; of a stream of another length, such as that of a
    picture's objects, numbers."""
    names = names[:: _tokens(len(names))] if names else names
    return names if len(names) == count else [str(n) for n in range(count)]


def _name(model: Any) -> str:
    """The name of the model: its file, else its page."""
    page = model.page or type(model).__name__
    return page if model.ledger is None else f"{Path(model.ledger.path).name} ({page})"


def _which(maps: dict[str, list[Any]], layer: int | None, head: int | None) -> str:
    """The title's description of the maps: layer and heads."""
    shown = next(iter(maps.values()))
    where, _, heads = shown[0][0].partition(", ")  # "layer 3", "head 5"
    place = "attention" if layer is None else f"attention in {where}"
    return f"{place}, {heads}" if layer is None or head is not None else f"{place}, all {len(shown)} heads"


def _shown(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
