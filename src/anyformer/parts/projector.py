"""Maps from a tower's width to that of a stream. S width of the tower, D of the stream."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from torch import Tensor, nn

from anyformer.core.part import Part
from anyformer.parts.ffn import activation

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyformer.core.recipe import Recipe

O = ParamSpec("O")
T = TypeVar("T")


class Bridge(Part):
    """Base of the parts between a tower and a stream: `forward(x)`, built from both widths.

    Shape: (N, P, S) -> (N, P, D).
    """

    given = ("dim", "source")
    if TYPE_CHECKING:

        @classmethod
        def of(cls: Callable[Concatenate[int, int, O], T], *args: O.args, **options: O.kwargs) -> Recipe[T]: ...

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(N, P, S) -> (N, P, D)"""


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
