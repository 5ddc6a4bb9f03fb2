"""Training that knows of the few bits to come: forward and backward see rounded matrices, the optimizer full ones.

    W <- W - rate * dL/dW at round(W)        the straight-through estimator (Bengio et al., 2013; arXiv:1308.3432)

The grids are those of `compress.rounding.rtn`: `anyformer compress RUN --to int4` then holds the very numbers that were
trained with (Jacob et al., 2018; arXiv:1712.05877). Matrices are chosen by their paths, as there: routers stay as they
are, tables of tokens and heads with a row for each have 8 bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from anyformer.compress import few, rounding
from anyformer.core.rewrite import select

GROUP = 32  # inputs that share a scale, as `compress` has by default


class Aware:
    """The matrices of a model that are rounded in each step.

    Args:
        bits: 8, 4 or 3.

    Raises:
        ValueError: for a model without a matrix that can be rounded.
    """

    def __init__(self, model: nn.Module, bits: int):
        changed = [e for e in few.plan(model, bits, GROUP) if e.bits is not None]
        there = select(model, *(e.path for e in changed), kind=nn.Module)
        self.bits = {e.path: e.bits for e in changed if e.bits is not None}
        self.weights: dict[str, Tensor] = {path: there[path].weight for path in self.bits}  # type: ignore[misc]

    @contextlib.contextmanager
    def rounded(self) -> Iterator[None]:
        """Context in which the model computes with rounded matrices; their gradients are those of the full ones."""
        full = [w.detach().clone() for w in self.weights.values()]
        with torch.no_grad():
            for path, weight in self.weights.items():
                weight.copy_(rounding.rtn(weight, self.bits[path], GROUP).matrix())
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(self.weights.values()), full)
