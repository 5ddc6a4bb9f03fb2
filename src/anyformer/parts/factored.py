"""A linear layer as a product of two thin ones, as a model holds and stores it: W ≈ A B, of rank R.

O outputs, I inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.rewrite import replace

KEY = "factored"  # of config.json: path -> rank


class Factored(nn.Module):
    """y = A (B x) + bias, with A (O, R) and B (R, I): R (O + I) products in place of O I. Shape: (..., I) -> (...,
    O)."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        if type(rank) is not int or not 1 <= rank <= min(base.weight.shape):
            raise ValueError(f"rank must be within 1 and {min(base.weight.shape)}, got {rank!r}")
        rows, columns = base.weight.shape
        self.A = nn.Parameter(base.weight.new_empty(rows, rank))
        self.B = nn.Parameter(base.weight.new_empty(rank, columns))
        self.bias = base.bias

    @property
    def rank(self) -> int:
        """R."""
        return self.B.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.B), self.A, self.bias)

    def extra_repr(self) -> str:
        return f"{self.B.shape[1]} -> {self.A.shape[0]}, rank {self.rank}"


def described_factors(model: nn.Module) -> dict[str, int]:
    """The factored layers of a model, for its config: path -> rank."""
    return {path: m.rank for path, m in model.named_modules() if isinstance(m, Factored)}


def put_factors(model: nn.Module, config: Any, source: object) -> None:
    """Replaces the linear layers that a config describes by empty factored ones.

    Raises:
        ValueError: naming the file and the path, for what is no such description or no linear layer of the model.
    """
    if not isinstance(config, dict):
        raise ValueError(f"{source}: {KEY!r} must be a dictionary of paths, got {type(config).__name__}")
    there = dict(model.named_modules())
    for path, rank in config.items():
        if type(base := there.get(path)) is not nn.Linear:
            raise ValueError(f"{source}: {KEY!r} names {path!r:.100}, and the model has no linear layer there")
        try:
            made = Factored(base, rank)
        except ValueError as error:
            raise ValueError(f"{source}: {KEY!r} of {path}: {error}") from None
        replace(model, path, made)


@torch.no_grad()
def factors(matrix: Tensor, rank: int, products: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A (O, R) and B (R, I) with the least error: of the matrix, or with `products` H = mean x x^T (I, I) of the
    outputs, sum_o e_o H e_o^T (the singular vectors of W H^1/2)."""
    w = matrix.double()
    root = torch.eye(w.shape[1], dtype=w.dtype)
    if products is not None:
        H = products.double()
        values, vectors = torch.linalg.eigh(H + 1e-6 * H.diagonal().mean() * root)
        root = vectors * values.clamp(min=1e-12 * values.max()).sqrt()  # H = root root^T
    u, s, v = torch.linalg.svd(w @ root, full_matrices=False)
    back = torch.linalg.solve(root.T, v[:rank].T).T  # v root^-1
    return (u[:, :rank] * s[:rank]).to(matrix.dtype), back.to(matrix.dtype)
