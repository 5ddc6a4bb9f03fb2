"""Attention maps of all layers and heads, small enough for a page. B batch, L layers, H heads, T queries, S keys."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.explain.attention import implied, kinds
from anyformer.explain.blocks import InBlocks, Weights, cells, rollout
from anyformer.explain.features import Explained

LEVELS = (255, 60, 16)  # steps of a weight that are tried, the finest first
CELLS = (1, 2, 4, 8)  # tokens on the side of a cell, times those that the maps were made in
SAMPLE = 6  # maps of which the size of all is guessed
BYTES = 2_100_000  # of all maps of a report, compressed
MOST, SIDE = 40_000_000, 1024  # numbers of all maps at once: 160 MB; cells on the side of a map


@dataclass(frozen=True)
class Maps:
    """The attention weights of one kind: an encoder's, a decoder's, from a decoder to its source; or the shares of the
    maps that a recurrence or linear attention implies.

    Args:
        kind: the path, `*` for the layer, and of implied maps the class. layers: the number of each layer.
        weights: (L, H, T, S); of a long text the largest weight of each cell of `cell` x `cell` tokens.
        rollout: (T, S) or None, of self-attention: `blocks.rollout`, of the same cells.
        rows, columns: T and S in tokens.
    """

    kind: str
    layers: tuple[int, ...]
    weights: Tensor
    rollout: Tensor | None
    rows: int
    columns: int
    cell: int = 1


@torch.no_grad()
def attention_maps(explained: Explained) -> tuple[list[Maps], list[str]]:
    """The maps of a call with one row, and the reasons why a kind has none.

    Weights are made in blocks, and kept in cells where all of them would be more than `MOST` numbers,
    or a text is longer than `SIDE`.
    """
    found, missing = {**kinds(explained.model), **implied(explained.model)}, []
    if not found:
        return [], ["this model has no attention with weights"]
    with InBlocks(explained.model, [path for layers in found.values() for path in layers.values()]) as taps:
        explained.run()
    every = dict[str, list[Weights]]()
    for kind, layers in found.items():
        each = [taps.maps[path] for path in layers.values()]
        if any(len(w.shape) != 4 or w.shape != each[0].shape or w.shape[0] != 1 for w in each):
            missing.append(f"{kind}: its layers attend inside windows or over grids of several sizes; "
                           "`attention_picture` draws them")  # fmt: skip
        else:
            every[kind] = each
    cell, made = _fitting(every), []
    for kind, each in every.items():
        *_, T, S = each[0].shape
        flow = rollout(each, cell) if T == S and not kind.endswith("cross") else None
        made.append(Maps(kind, tuple(found[kind]), torch.cat([w.pooled(cell) for w in each]), flow, T, S, cell))
    return made, missing


def _fitting(every: dict[str, list[Weights]]) -> int:
    """The smallest cell with which all maps are at most `MOST` numbers, and `SIDE` wide and high; a power of two."""
    shapes, cell = [w.shape[1:] for each in every.values() for w in each], 1
    while (
        sum(h * -(-t // cell) * -(-s // cell) for h, t, s in shapes) > MOST
        or max((max(t, s) for _, t, s in shapes), default=0) > SIDE * cell
    ):
        cell *= 2
    return cell


def packed(maps: list[Maps]) -> list[dict[str, Any]]:
    """The maps for a page: whole numbers from 0 to `levels`, compressed, base64. If they would be larger than `BYTES`,
    in fewer levels and in cells of several tokens; each entry says which."""
    forms = [(levels, cell) for cell in CELLS for levels in LEVELS]
    for levels, cell in forms:
        if sum(_guess(m, levels, cell) for m in maps) > BYTES and (levels, cell) != forms[-1]:
            continue  # without the work of compressing all of it
        made = [_packed(m, levels, cell) for m in maps]
        if sum(len(m["data"]) for m in made) * 3 / 4 <= BYTES:
            break
    return made


def _guess(maps: Maps, levels: int, cell: int) -> float:
    """The compressed bytes of all maps, by a few of them."""
    every = maps.weights.flatten(0, 1)
    few = every[:: -(-len(every) // SAMPLE)]
    return len(zlib.compress(_numbers(cells(few[None], cell, cell), levels).tobytes(), 6)) * len(every) / len(few)


def _packed(maps: Maps, levels: int, cell: int) -> dict[str, Any]:
    weights = cells(maps.weights, cell, cell)
    flow = None if maps.rollout is None else _numbers(cells(maps.rollout[None, None], cell, cell)[0, 0], levels)
    return {
        "kind": maps.kind, "layers": list(maps.layers), "heads": maps.weights.shape[1], "rows": maps.rows,
        "columns": maps.columns, "levels": levels, "cell": maps.cell * cell,
        "data": _written(_numbers(weights, levels)), "rollout": None if flow is None else _written(flow),
    }  # fmt: skip


def _numbers(weights: Tensor, levels: int) -> np.ndarray:
    """The square roots of the weights in whole steps: small weights stay visible."""
    return (weights.clamp(0, 1).sqrt() * levels).round().to(torch.uint8).numpy()


def _written(numbers: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(numbers).tobytes(), 6)).decode()
