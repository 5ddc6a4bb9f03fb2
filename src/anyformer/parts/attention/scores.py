"""Score parts: changes of the scores of attention before its softmax: softmax(cap(scale q k^T) + bias) v.

B batch, T queries, S keys, D width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Concatenate

import torch
from torch import Tensor, nn

from anyformer.core.flow import Companion, Flow
from anyformer.core.part import O, Part, T
from anyformer.core.recipe import Recipe
from anyformer.parts.attention.masks import View

Bias = Callable[[View], Tensor]  # the bias of some queries and keys, (1 or B, H, T, S)


@dataclass(frozen=True)
class Call:
    """One call of attention, as an argument of its score parts."""

    x: Tensor  # (B, T, D) input of the queries
    q: Tensor  # (B, H, T, K) the queries, before any part
    scale: float  # of the scores
    view: View  # all queries and keys of this call
    flow: Flow


class Score(Part):
    """Base of the parts that `Attention(scores=[…])` takes. Each does one or two of three things:

    ```
    q ── query ──┐
    k ───────────┴─ scale q k^T ── cap ──(+)── softmax ── · v
                                 bias ────┘
    ```
    With several, all queries are changed in the order of the list, there is at most one cap, biases add up.

    Attributes:
        across: True if it fits attention to another text (`cross=True`). False if it depends on distances.
        fixed: True if its bias is the same in all layers with the same recipe. Then it is computed once.
        cap: c of c tanh(s / c), or None.
    """

    given = ("dim", "heads", "head_dim")
    if TYPE_CHECKING:

        @classmethod
        def of(cls: Callable[Concatenate[int, int, int, O], T], *args: O.args, **options: O.kwargs) -> Recipe[T]: ...

    across: ClassVar[bool] = False
    fixed: bool = False
    cap: float | None = None

    def query(self, q: Tensor) -> Tensor:
        """(B, H, T, K) -> same."""
        return q

    def bias(self, call: Call) -> Bias | None:
        """The bias, as a function of queries and keys: called for some of them at a time in long texts."""
        return None


def made(recipes: Sequence[Recipe[Score]], dim: int, heads: int, head_dim: int, cross: bool) -> list[Score]:
    """The parts of a list of recipes.

    Raises:
        ValueError: for more than one cap, or one that does not fit cross-attention.
    """
    for recipe in recipes:
        if cross and not recipe.part.across:
            raise ValueError(
                f"{recipe.part.__name__} depends on distances inside one text, and attention with cross=True reads "
                "another one; leave it out of that branch's scores"
            )
    parts = [recipe.build(dim, heads, head_dim) for recipe in recipes]
    if sum(part.cap is not None for part in parts) > 1:
        raise ValueError("Attention: scores can be capped once; leave one SoftCap in the list")
    return parts


def changed(scores: Iterable[Score], call: Call, bias: Bias | None) -> tuple[Tensor, Bias | None, float | None]:
    """The queries, the sum of all biases with the stack's, the cap."""
    q, cap, biases = call.q, None, [] if bias is None else [bias]
    for score in scores:
        q, cap = score.query(q), cap if score.cap is None else score.cap
        own = score.bias(call)
        biases += [] if own is None else [own]

    def total(view: View) -> Tensor:
        first, *rest = (b(view) for b in biases)
        return sum(rest, first).to(q.dtype)

    return q, total if biases else None, cap


@dataclass(frozen=True, eq=False)  # a compiler hashes it before it has a module
class StackBias(Companion):
    """The relative bias that a stack owns and all its layers add to their scores (T5)."""

    left_by: ClassVar[str] = "a stack with bias=RelativeBias.of()"
    module: nn.Module

    def __call__(self, view: View) -> Tensor:
        """The bias between the queries and keys of a view, (1, H, T, S)."""
        key, query = (
            torch.arange(a, a + n, device=view.device) for a, n in ((view.key, view.keys), (view.query, view.count))
        )
        return self.module(query, key)
