"""How a layer of another package gets our weights, and is called as ours is. B batch, T time, D width, H heads, K width
of a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.attention_mixers import HEADS

Layer = Callable[[Tensor], Tensor]


class Called(nn.Module):
    """A module whose forward pass is called in its own way; then our output projection `o`, where it has none."""

    def __init__(self, module: nn.Module, call: Callable[[Any, Tensor], Tensor], o: nn.Module | None = None):
        super().__init__()
        self.module, self.call, self.o = module, call, o

    def forward(self, x: Tensor) -> Tensor:
        y = self.call(self.module, x)
        return y if self.o is None else self.o(y)


class Between(nn.Module):
    """Our projections, and between them their kernel, (B, H, T, K) three times -> (B, H, T, K)."""

    def __init__(self, ours: Any, kernel: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__()
        self.q, self.k, self.v, self.o, self.kernel = ours.q, ours.k, ours.v, ours.o, kernel

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        return self.o(self.kernel(q, k, v).transpose(1, 2).flatten(2))


def copied(theirs: nn.Module, names: dict[str, Tensor]) -> None:
    """Fills the parameters of those names; none may be left over."""
    left = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, value in names.items():
            left.pop(name).copy_(value)
    if left:
        raise ValueError(f"{type(theirs).__name__}: {', '.join(left)} got no value")


def joined(ours: Any, names: dict[str, str]) -> dict[str, Tensor]:
    """Our parameters under their names."""
    mine = dict(ours.named_parameters())
    return {theirs: mine[our] for our, theirs in names.items()}


def linears(names: dict[str, str]) -> dict[str, str]:
    """Names of linear layers to names of their weights and biases."""
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in names.items() for kind in ("weight", "bias")}


def own(theirs: nn.Module, *marks: str) -> dict[str, Tensor]:
    """Their parameters with one of these words in the name, as they are: what the layer never reads here."""
    return {n: p for n, p in theirs.named_parameters() if any(mark in n for mark in marks)}
