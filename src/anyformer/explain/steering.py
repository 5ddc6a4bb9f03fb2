"""Directions by contrast: what the stream has in some texts and not in others.

B batch, T positions, D width, N texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer.core.part import check_option
from anyformer.core.taps import Taps
from anyformer.explain.attribution import named
from anyformer.explain.features import Explained
from anyformer.generate.steering import Direction, blocks_of

LEAST = 4  # texts of each kind: half of them make the direction that the others test
RIDGE = 0.1  # of a probe, in parts of the mean squared length of a text's vector


@dataclass(frozen=True)
class Contrasted:
    """A direction and what it tells apart.

    Args:
        direction: of all texts, at the place that was chosen.
        told: by path the share of pairs of unseen texts, one of each kind, that a direction of the other half puts in
            the right order; 0.5 = by chance.
        length, stream: the length of the direction, and the mean length of the stream there.
    """

    direction: Direction
    told: dict[str, float]
    length: float
    stream: float


def contrast(
    model: Any, toward: Sequence[str], away: Sequence[str], at: str | None = None, by: str = "mean"
) -> Contrasted:
    """The direction in which the stream of the texts `toward` differs from that of the texts `away`.

    ```
    mean   m - m', the means of both kinds (Turner et al., 2023, arXiv:2308.10248; Rimsky et al., 2024,
           arXiv:2312.06681): strength 1 leads from the one mean to the other
    probe  w (w (m - m')) / (w w), w of the linear probe that tells the kinds apart (Alain and Bengio, 2016,
           arXiv:1610.01644), by least squares with a ridge: strength 1 moves what the probe reads as far
    ```
    A text is the mean over its tokens but the first, whose vectors are many times as long in some models. Which place
    tells best is measured: a direction of every second text orders the others.

    Args:
        model: any model of texts, in evaluation mode.
        toward, away: texts, at least 4 of each kind; best in pairs that differ in one thing.
        at: the path of a block; None: the block that tells unseen texts best, of equals the middle one.
        by: "mean" or "probe".

    Raises:
        ValueError: for fewer texts, a model of no texts, a path without a stream, another way.
    """
    check_option("contrast", "by", by, tuple(WAYS))
    for name, texts in (("toward", toward), ("away", away)):
        if len(texts) < LEAST:
            raise ValueError(f"{name}: a direction needs at least {LEAST} texts of each kind; got {len(texts)}")
    if not model.reads_text or model.alike:
        raise ValueError(f"this model reads {model.takes}; a direction is a contrast of texts")
    paths = blocks_of(model) if at is None else [at]
    if not paths:
        raise ValueError("this model has no blocks; pass at=, the path of a module (`anyformer inspect`)")
    one, two = (_means(model, texts, paths) for texts in (toward, away))
    told = {path: _told(one[path][0], two[path][0], WAYS[by]) for path in paths}
    best = max(told.values())
    equal = [path for path in paths if told[path] >= best - 1e-9]
    chosen = equal[len(equal) // 2]
    vector = WAYS[by](one[chosen][0], two[chosen][0])
    stream = float(torch.cat((one[chosen][1], two[chosen][1])).mean())
    made = {"texts": [len(toward), len(away)], "toward": toward[0][:200], "away": away[0][:200],
            "model": model.page or type(model).__name__, "by": by, "told": round(told[chosen], 4)}  # fmt: skip
    return Contrasted(Direction(chosen, vector, 1.0, made), told, float(vector.norm()), stream)


def _apart(one: Tensor, two: Tensor) -> Tensor:
    """The difference of the means: (N, D), (M, D) -> (D,)."""
    return one.mean(0) - two.mean(0)


def _probed(one: Tensor, two: Tensor) -> Tensor:
    """The part of the difference of the means in the direction of a linear probe: (N, D), (M, D) -> (D,)."""
    x = torch.cat((one, two)).double()
    x = x - x.mean(0)
    y = torch.cat((x.new_full((len(one),), 1 / len(one)), x.new_full((len(two),), -1 / len(two))))
    products = x @ x.mT  # (N + M, N + M): fewer texts than numbers
    ridge = RIDGE * products.diagonal().mean() * torch.eye(len(x), dtype=x.dtype, device=x.device)
    w = x.mT @ torch.linalg.solve(products + ridge, y)
    return (w * (w @ _apart(one, two).double()) / (w @ w)).to(one.dtype)


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _apart, "probe": _probed}


def _told(one: Tensor, two: Tensor, way: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The share of pairs of unseen texts in the right order, of both halves: (N, D), (M, D)."""
    right = []
    for half in (0, 1):
        direction = way(one[half::2], two[half::2])
        a, b = one[1 - half :: 2] @ direction, two[1 - half :: 2] @ direction
        right.append((a[:, None] > b).double().mean() + 0.5 * (a[:, None] == b).double().mean())
    return float(torch.stack(right).mean())


@torch.no_grad()
def _means(model: Any, texts: Sequence[str], paths: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """By path the mean vector of each text, (N, D), and the mean length of its vectors, (N,)."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in paths}
    for text in texts:
        explained = Explained(model, _call(model, text))
        with Taps(model, *paths) as taps:
            explained.run()
        for path in paths:
            value = _stream(taps, path)[0].float()  # (T, D)
            if value.ndim != 2:
                raise ValueError(f"{path} gives the shape {tuple(value.shape)} for a text, no vector for each token")
            value = value[1:] if len(value) > 1 else value
            found[path].append((value.mean(0), value.norm(dim=-1).mean()))
    return {p: (torch.stack([m for m, _ in v]), torch.stack([n for _, n in v])) for p, v in found.items()}


def _call(model: Any, text: str) -> dict[str, Tensor]:
    """A text as a call; of an encoder-decoder it is the target, too."""
    inputs = named(model, text)
    if model.reads_source:
        begin = inputs["decoder_input_ids"]
        inputs["decoder_input_ids"] = torch.cat((begin, inputs[model.takes]), 1)
    return inputs


def _stream(taps: Taps, path: str) -> Tensor:
    """The output of a module, or the first of several."""
    return taps[path] if path in taps.recorded else taps[f"{path}.0"]
