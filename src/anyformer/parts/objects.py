"""Objects of a picture, from a detector, and layers that join them with a text.

B batch, T positions of one stream, S of the other, N objects, D width, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.core.part import Part, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Head, Norm
from anyformer.core.state import Memory
from anyformer.parts.attention.attention import Attention
from anyformer.parts.block import Block
from anyformer.parts.ffn import activation
from anyformer.parts.heads import Pooled


class Objects(FrontEnd):
    """Objects of a picture, each with features and a place (Tan and Bansal, 2019, LXMERT; arXiv:1908.07490):
    x = (norm(W features + b) + norm(W' place + b')) / 2.

    Args:
        features: F. place: numbers of a place: the corners of a box, from 0 to 1.
        norm: of both.
        dropout: at the end.

    Shape: feats (B, N, F), pos (B, N, place) -> (B, N, D).
    """

    main, mask = "feats", "attention_mask"

    def __init__(self, dim: int, features: int, norm: Recipe[Norm], place: int = 4, dropout: float = 0.0):
        super().__init__()
        self.sizes_of = {"feats": features, "pos": place}
        self.features, self.place = nn.Linear(features, dim), nn.Linear(place, dim)
        self.norm = nn.ModuleDict({name: norm.build(dim) for name in ("features", "place")})
        self.dropout = dropout

    def inputs(self) -> dict[str, Input]:
        return {name: Input(("objects", "channels"), ("objects",), fixed=("channels",)) for name in self.sizes_of}

    def length(self, inputs: Inputs) -> int:
        count = inputs["feats"].shape[1] if inputs["feats"].ndim == 3 else None
        for name, width in self.sizes_of.items():
            value = inputs[name]
            if value.ndim != 3 or value.shape[1] != count or value.shape[2] != width:
                raise ValueError(
                    f"{name} of objects must be (batch, {count or 'objects'}, {width}), got {tuple(value.shape)}"
                )
        return inputs["feats"].shape[1]

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        feats = torch.randn(rows, size[0], self.sizes_of["feats"], generator=noise)
        return {"feats": feats, "pos": torch.rand(rows, size[0], self.sizes_of["pos"], generator=noise)}

    def sizes(self) -> list[tuple[int, ...]]:
        return [(6,)]

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        feats, place = (flow.clear(inputs[name]) for name in ("feats", "pos"))  # padding may hold anything
        features = self.norm["features"](self.features(feats))
        return drop(self, (features + self.norm["place"](self.place(place))) / 2)


class Crossing(Part):
    """One layer of two streams: each reads the other one, by one attention for both directions, then has a block of its
    own (Tan and Bansal, 2019; arXiv:1908.07490).

    ```
    x ──┬── attention to y ──(+)── norm ── block ──>
    y ──┬── attention to x ──(+)── norm ── block ──>       both read x and y as they come
    ```
    Args:
        exchange: `Attention.of(cross=True, …)`. norm: after it. dropout: at its end.
        first, second: the blocks.
    """

    def __init__(
        self,
        dim: int,
        exchange: Recipe[Attention],
        norm: Recipe[Norm],
        first: Recipe[Block],
        second: Recipe[Block],
        dropout: float = 0.0,
    ):
        super().__init__()
        self.exchange, self.norm = exchange.build(dim), norm.build(dim)
        self.first, self.second, self.dropout = first.build(dim), second.build(dim), dropout

    def forward(self, one: tuple[Tensor, Flow], other: tuple[Tensor, Flow]) -> tuple[Tensor, Tensor]:
        x, y = self._read(one, other), self._read(other, one)
        return self.first(x, one[1]), self.second(y, other[1])

    def _read(self, stream: tuple[Tensor, Flow], other: tuple[Tensor, Flow]) -> Tensor:
        (x, flow), (y, beside) = stream, other
        flow = replace(flow, memory=Memory(y, beside.keep_now(y.shape[1])), shared={})
        return self.norm(x + drop(self, self.exchange(x, flow)))


class ObjectHeads(Part):
    """Scores of each object, several kinds behind one layer: W_kind norm(act(dense(x))).

    Args:
        scores: kind -> how many. norm, act: of the layer.

    Shape: (B, N, D) -> (B, N, scores) for each kind, by its name.
    """

    def __init__(self, dim: int, scores: Mapping[str, int], norm: Recipe[Norm], act: str = "gelu"):
        super().__init__()
        self.dense, self.norm, self.act = nn.Linear(dim, dim), norm.build(dim), activation("ObjectHeads", act)
        self.out = nn.ModuleDict({name: nn.Linear(dim, count) for name, count in scores.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.act(self.dense(x)))
        return {name: kind(x) for name, kind in self.out.items()}


class AnswerHead(Head):
    """A score per answer, of the pooled vector: out(norm(act(up(pooled)))), twice as wide inside.

    Shape: (B, T, D) -> (B, answers).
    """

    def __init__(self, dim: int, answers: int, norm: Recipe[Norm], act: str = "gelu"):
        super().__init__()
        self.up, self.norm, self.out = nn.Linear(dim, 2 * dim), norm.build(2 * dim), nn.Linear(2 * dim, answers)
        self.act = activation("AnswerHead", act)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.out(self.norm(self.act(self.up(flow.get(Pooled, "AnswerHead").vector))))
