"""A running mean of the weights (Polyak and Juditsky, 1992): often better than the last ones, and evaluated instead.

`torch.optim.swa_utils.AveragedModel` copies the whole module. This holds the trained tensors alone, and of FSDP2's the
local parts: for rank-8 adapters on a model of 137 M parameters 2.4 M numbers instead of 137 M.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """mean <- decay * mean + (1 - decay) * weights, after each step; of what is trained, the rest being constant.

    In the first steps the decay is (1 + step) / (10 + step) where that is smaller, so that the mean does not
    remember the first weights. Where weights are in parts among processes, each has the mean of its parts.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.weights, self.decay = [_held(p) for p in parameters], decay
        self.mean = [w.clone() for w in self.weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the weights after step number `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.mean, self.weights, 1 - decay)

    @torch.no_grad()
    def take(self) -> None:
        """Sets the mean to the present weights, as when a checkpoint is restored."""
        torch._foreach_copy_(self.mean, self.weights)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Context in which the model has the mean as its weights."""
        with torch.no_grad():
            weights = [w.clone() for w in self.weights]
            torch._foreach_copy_(self.weights, self.mean)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, weights)


def _held(parameter: Any) -> Tensor:
    """The memory in which this process has a parameter, or its part of one (FSDP2)."""
    value = parameter.detach()
    return value.to_local() if hasattr(value, "to_local") else value
