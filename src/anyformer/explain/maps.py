"""Attention maps of all layers and heads, small enough for a page. B batch, L layers, H heads, T queries, S keys."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.core.taps import Taps
from anyformer.explain.attention import implied, kinds
from anyformer.explain.features import Explained

LEVELS = (255, 60, 16)  # steps of a weight that are tried, the finest first
CELLS = (1, 2, 4, 8)  # tokens on the side of a cell, which shows the largest weight inside it
SAMPLE = 6  # maps of which the size of all is guessed
BYTES = 2_100_000  # of all maps of a report, compressed


@dataclass(frozen=True)
class Maps:
    """The attention weights of one kind: an encoder's, a decoder's, from a decoder to its source; or the shares of the
    maps that a recurrence or linear attention implies.

    Args:
        kind: the path, `*` for the layer, and of implied maps the class. layers: the number of each layer.
        weights: (L, H, T, S). rollout: (T, S) or None, of self-attention: the product over the layers of (A + I) / 2,
            A the mean of the heads (Abnar and Zuidema, 2020; arXiv:2005.00928).
    """

    kind: str
    layers: tuple[int, ...]
    weights: Tensor
    rollout: Tensor | None


@torch.no_grad()
def attention_maps(explained: Explained) -> tuple[list[Maps], list[str]]:
    """The maps of a call with one row, and the reasons why a kind has none."""
    found, missing = {**kinds(explained.model), **implied(explained.model)}, []
    if not found:
        return [], ["this model has no attention with weights"]
    paths = [path for layers in found.values() for path in layers.values()]
    with Taps(explained.model, *(f"{p}.weights" for p in paths)) as taps:
        explained.run()
    made = []
    for kind, layers in found.items():
        each = [taps[f"{path}.weights"] for path in layers.values()]
        if any(w.ndim != 4 or w.shape != each[0].shape or len(w) != 1 for w in each):
            missing.append(f"{kind}: its layers attend inside windows or over grids of several sizes; "
                           "`attention_picture` draws them")  # fmt: skip
            continue
        weights = torch.cat(each).float().cpu()  # (L, H, T, S)
        square = weights.shape[-1] == weights.shape[-2] and not kind.endswith("cross")
        made.append(Maps(kind, tuple(layers), weights, rollout(weights) if square else None))
    return made, missing


def rollout(weights: Tensor) -> Tensor:
    """The product over the layers of (A + I) / 2: (L, H, T, T) -> (T, T)."""
    own = torch.eye(weights.shape[-1])
    total = own
    for layer in weights.mean(1):
        total = 0.5 * (layer + own) @ total
    return total


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
    return len(zlib.compress(_numbers(_cells(few[None], cell), levels).tobytes(), 6)) * len(every) / len(few)


def _packed(maps: Maps, levels: int, cell: int) -> dict[str, Any]:
    weights = _cells(maps.weights, cell)
    flow = None if maps.rollout is None else _numbers(_cells(maps.rollout[None, None], cell)[0, 0], levels)
    _, H, T, S = maps.weights.shape
    return {
        "kind": maps.kind, "layers": list(maps.layers), "heads": H, "rows": T, "columns": S, "levels": levels,
        "cell": cell, "data": _written(_numbers(weights, levels)), "rollout": None if flow is None else _written(flow),
    }  # fmt: skip


def _cells(weights: Tensor, cell: int) -> Tensor:
    return weights if cell == 1 else F.max_pool2d(weights, cell, cell, ceil_mode=True)


def _numbers(weights: Tensor, levels: int) -> np.ndarray:
    """The square roots of the weights in whole steps: small weights stay visible."""
    return (weights.clamp(0, 1).sqrt() * levels).round().to(torch.uint8).numpy()


def _written(numbers: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(numbers).tobytes(), 6)).decode()
