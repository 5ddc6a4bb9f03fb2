"""The inputs that matrices meet on real text: for each the mean of x x^T, counted token by token.

I inputs, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.compress.held import Inputs


@dataclass
class Seen:
    """Sums over a matrix's inputs. `products`: sum of x x^T, (I, I); `rows`: tokens; `batches`: that reached it."""

    products: Tensor
    rows: int = 0
    batches: int = 0

    @property
    def mean(self) -> Tensor:
        """H = mean x x^T, (I, I)."""
        return self.products / max(1, self.rows)

    def add(self, x: Tensor) -> None:
        """Counts a batch of inputs, (..., I)."""
        x = x.detach().flatten(0, -2).float()
        self.products += x.T @ x
        self.rows += len(x)
        self.batches += 1


@torch.no_grad()
def calibrate(model: Any, linears: dict[str, nn.Linear], batches: Sequence[Inputs]) -> dict[str, Seen]:
    """The inputs of linear layers, by path, over all batches."""
    seen = {path: Seen(torch.zeros(m.in_features, m.in_features)) for path, m in linears.items()}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, own=seen[path]: own.add(args[0]) if args[0].numel() else None)
        for path, module in linears.items()
    ]
    try:
        for inputs in batches:
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def check(seen: dict[str, Seen], routed: set[str], batches: int) -> None:
    """Raises ValueError if a matrix missed a batch of the calibration; experts (`routed`) can.

    A matrix that no batch reached at all is not calibrated, and its path says so elsewhere.
    """
    for path, one in seen.items():
        if path not in routed and one.batches and one.batches % batches:
            raise ValueError(
                f"{path} saw {one.batches} of {batches} batches of the calibration: its figures would be of a "
                "part of the "
                "text, so nothing was written"
            )
