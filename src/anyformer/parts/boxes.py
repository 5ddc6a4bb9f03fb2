"""The head of boxes. B batch, N queries, D width."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.slots import Head


class Boxes(Head):
    """A box for each query: centre, width and height as shares of the picture, sigmoid(W3 relu(W2 relu(W1 x))).

    Shape: (B, N, D) -> (B, N, 4): centre x and y, width, height, each from 0 to 1.
    """

    between: ClassVar[tuple[float, float] | None] = (0.0, 1.0)

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, width) for width in (dim, dim, 4))

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        first, second, last = self.layers
        return last(second(first(x).relu()).relu()).sigmoid()
