"""Maps from a tower's width to that of a stream. S width of the tower, D of the stream."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.parts.ffn import activation
from anyformer.parts.heads import Kept

if TYPE_CHECKING:
    from collections.abc import Callable

O = ParamSpec("O")
T = TypeVar("T")


class Bridge(Part):
    """Base of the parts between a tower and a stream: `forward(x)`, built from both widths.

    Attributes:
        cells: positions, one after another, that become one.

    Shape: (N, P, S) -> (N, P / cells, D).
    """

    given = ("dim", "source")
    cells: int = 1
    if TYPE_CHECKING:

        @classmethod
        def of(cls: Callable[Concatenate[int, int, O], T], *args: O.args, **options: O.kwargs) -> Recipe[T]: ...

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(N, P, S) -> (N, P / cells, D)"""


class Projector(Bridge):
    """Two linear layers: second(act(first(x))) (LLaVA 1.5; Liu et al., 2023; arXiv:2310.03744).

    Args:
        act: activation between the layers.
        bias: of both layers.

    Shape: (…, S) -> (…, D).
    """

    def __init__(self, dim: int, source: int, act: str = "gelu", bias: bool = True):
        super().__init__()
        self.first, self.second = nn.Linear(source, dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.act = activation("Projector", act)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))


class Merger(Part):
    """The patches of a cell as one vector, through two layers (Wang et al., 2024, "Qwen2-VL"; arXiv:2409.12191):
    second(act(first([norm x1, norm x2, …]))).

    The number of patches of a cell, `cells`, is that of the front-end.

    Args:
        norm: of each patch.
        act: activation between the layers, the first of which has `cells` S outputs.

    Shape: (…, P, S) -> (…, P / cells, D).
    """

    given = ("dim", "source", "cells")
    if TYPE_CHECKING:

        @classmethod
        def of(cls: Callable[Concatenate[int, int, int, O], T], *args: O.args, **options: O.kwargs) -> Recipe[T]: ...

    def __init__(self, dim: int, source: int, cells: int, norm: Recipe[Norm], act: str = "gelu"):
        super().__init__()
        self.cells, self.norm = cells, norm.build(source)
        self.first, self.second = nn.Linear(cells * source, cells * source), nn.Linear(cells * source, dim)
        self.act = activation("Merger", act)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(self.norm(x).unflatten(-2, (-1, self.cells)).flatten(-2))))


class Vectors(Part):
    """Learned vectors. Parameters: `weight` (count, D)."""

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)


class Averager(Bridge):
    """The mean of neighbours, through a norm and a layer (Chu et al., 2024, "Qwen2-Audio"; arXiv:2407.10759):
    second(norm((x1 + x2 + …) / cells)).

    Args:
        norm: of the mean.
        cells: positions that become one.
        unread: vectors (count, D) that files hold and nothing reads; 0: none.

    Shape: (…, P, S) -> (…, P / cells, D).
    """

    def __init__(self, dim: int, source: int, norm: Recipe[Norm], cells: int = 2, unread: int = 0):
        super().__init__()
        if cells < 1:
            raise ValueError(f"Averager: cells is {cells}; at least 1 position becomes one")
        self.cells, self.norm, self.second = cells, norm.build(source), nn.Linear(source, dim)
        self.unread = Kept.of(Vectors.of(count=unread)).build(dim) if unread else None

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(x.unflatten(-2, (-1, self.cells)).mean(-2)))
