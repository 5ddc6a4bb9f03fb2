"""Matrices in few bits, as a model holds and stores them: whole numbers, and a scale and a zero for each group.

    W_ij ≈ scale_ig (q_ij - zero_ig)        q of 3, 4 or 8 bits        g = the group of input j

A matrix takes `bits` + 32 / group bits a weight. The zero is a number, not a whole one. Scales and zeros are float16;
their bits are stored as int16, so that a change of the model's type leaves them as they are. `compress` finds the
numbers; here are the parts that compute with them, and a config's description of them.

O outputs, I inputs, G groups, V vocabulary, D width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.rewrite import replace
from anyformer.parts.embeddings import Table

KEY = "quantised"  # of config.json: path -> [bits, group]
BITS = (3, 4, 8)
MOST = 1 << 16  # inputs of a group
TOGETHER = 1 << 20  # weights that are floats at one time


class Grid(nn.Module):
    """A matrix (O, I) in few bits.

    Buffers: `codes` (O, bytes of a row) uint8; `scale` and `zero` (O, G) int16; `unit`, a 1 in the model's type.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    unit: Tensor

    def __init__(self, like: Tensor, bits: int, group: int):
        super().__init__()
        if bits not in BITS:
            raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {bits!r}")
        if type(group) is not int or not 8 <= group <= MOST or group % 8:
            raise ValueError(f"group must be a multiple of 8 up to {MOST:,}, got {group!r}")
        rows, columns = like.shape
        self.rows, self.columns, self.bits, self.group = rows, columns, bits, group
        groups = -(-columns // group)
        self.register_buffer(
            "codes", torch.zeros(rows, groups * group * bits // 8, dtype=torch.uint8, device=like.device)
        )
        for name in ("scale", "zero"):
            self.register_buffer(name, torch.zeros(rows, groups, dtype=torch.int16, device=like.device))
        self.register_buffer("unit", torch.ones((), dtype=like.dtype, device=like.device))

    def put(self, q: Tensor, scale: Tensor, zero: Tensor) -> None:
        """Stores whole numbers (O, I), scales and zeros (O, G) that float16 holds."""
        width = self.scale.shape[1] * self.group
        self.codes.copy_(packed(F.pad(q.to(torch.uint8), (0, width - self.columns)), self.bits))
        for held, value in ((self.scale, scale), (self.zero, zero)):
            held.copy_(value.to(torch.float16).view(torch.int16))

    @property
    def whole(self) -> bool:
        """True if its zeros are whole numbers, as formats and kernels of others have them."""
        zero = self.zero.view(torch.float16).float()
        return torch.equal(zero, zero.round())

    def dequantised(self, rows: slice = slice(None)) -> Tensor:
        """Some rows of the matrix, (O', I) float32."""
        q = unpacked(self.codes[rows], self.bits).unflatten(1, (-1, self.group)).float()  # (O', G, g)
        scale, zero = (t[rows].view(torch.float16).float()[..., None] for t in (self.scale, self.zero))
        return ((q - zero) * scale).flatten(1)[:, : self.columns]

    def product(self, x: Tensor) -> Tensor:
        """x times the matrix, (..., I) -> (..., O); of a large one a block of rows at a time."""
        step = max(1, TOGETHER // self.columns)
        parts = [F.linear(x, self.dequantised(slice(at, at + step)).to(x.dtype)) for at in range(0, self.rows, step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def extra_repr(self) -> str:
        return f"{self.columns} -> {self.rows}, {self.bits} bits in groups of {self.group}"


class GridLinear(Grid):
    """A linear layer in few bits; `bias` is unchanged. Gradients reach input and bias. Shape: (..., I) -> (..., O)."""

    def __init__(self, base: nn.Linear, bits: int, group: int):
        super().__init__(base.weight, bits, group)
        self.bias = base.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias


class GridTable(Grid):
    """A token table in few bits, also for a head that is tied to it. Shapes: ids (...) -> (..., D) -> (..., V)."""

    def __init__(self, base: Table, bits: int, group: int):
        super().__init__(base.weight, bits, group)

    def forward(self, ids: Tensor) -> Tensor:
        found, place = ids.unique(return_inverse=True) if ids.numel() > self.rows else (ids.flatten(), None)
        rows = self._of(found)
        return (rows if place is None else rows[place.flatten()]).view(*ids.shape, self.columns).to(self.unit.dtype)

    def _of(self, ids: Tensor) -> Tensor:
        """The rows of these ids, (N,) -> (N, D) float32."""
        q = unpacked(self.codes[ids], self.bits).unflatten(1, (-1, self.group)).float()
        scale, zero = (t[ids].view(torch.float16).float()[..., None] for t in (self.scale, self.zero))
        return ((q - zero) * scale).flatten(1)[:, : self.columns]

    def unembed(self, x: Tensor) -> Tensor:
        """Scores of all tokens."""
        return self.product(x)


def packed(q: Tensor, bits: int) -> Tensor:
    """Whole numbers of few bits as bytes: (O, I) uint8, I a multiple of 8 -> (O, I bits / 8). Eight numbers are `bits`
    bytes, the first one lowest."""
    if bits == 8:
        return q
    eight = q.unflatten(1, (-1, 8)).to(torch.int64)
    word = (eight << (bits * torch.arange(8, device=q.device))).sum(-1)  # at most 32 bits
    return (word[..., None] >> (8 * torch.arange(bits, device=q.device)) & 255).to(torch.uint8).flatten(1)


def unpacked(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `packed`: (O, I bits / 8) -> (O, I) uint8."""
    if bits == 8:
        return codes
    if bits == 4:  # the low half of each byte comes first
        return torch.stack((codes & 15, codes >> 4), -1).flatten(1)
    parts = codes.unflatten(1, (-1, bits)).to(torch.int32)
    word = (parts << (8 * torch.arange(bits, dtype=torch.int32, device=codes.device))).sum(-1, dtype=torch.int32)
    shifts = bits * torch.arange(8, dtype=torch.int32, device=codes.device)
    return (word[..., None] >> shifts & (2**bits - 1)).to(torch.uint8).flatten(1)


def grid_of(base: nn.Module, bits: int, group: int) -> Any:
    """An empty part in few bits for a linear layer or a token table."""
    made: Any = GridTable if isinstance(base, Table) else GridLinear
    return made(base, bits, group)


def full(model: Any) -> Any:
    """A copy of a model whose matrices in few bits are full numbers again."""
    made = copy.deepcopy(model)
    for path, grid in [(p, m) for p, m in made.named_modules() if isinstance(m, Grid)]:
        weight = nn.Parameter(grid.dequantised(), False)
        if isinstance(grid, GridTable):
            new: Any = Table(grid.rows, grid.columns, _weight=weight.data)
        else:
            new = nn.Linear(grid.columns, grid.rows, grid.bias is not None)
            new.weight, new.bias = weight, grid.bias
        replace(made, path, new)
    return made


def described(model: nn.Module) -> dict[str, list[int]]:
    """The matrices of a model in few bits, for its config: path -> [bits, group]."""
    grids = {path: m for path, m in model.named_modules() if isinstance(m, Grid)}
    return {path: [grid.bits, grid.group] for path, grid in grids.items()}


def put_grids(model: nn.Module, config: Any, source: object) -> None:
    """Replaces the matrices that a config describes by empty ones in few bits.

    Raises:
        ValueError: naming the file and the path, for what is no such description or no matrix of the model.
    """
    if not isinstance(config, dict):
        raise ValueError(f"{source}: {KEY!r} must be a dictionary of paths, got {type(config).__name__}")
    there = dict(model.named_modules())
    for path, form in config.items():
        base = there.get(path)
        if not isinstance(base, nn.Linear | Table):
            raise ValueError(f"{source}: {KEY!r} names {path!r:.100}, and the model has no matrix there")
        if not isinstance(form, list) or len(form) != 2 or not all(type(n) is int for n in form):
            raise ValueError(f"{source}: {KEY!r} of {path} must be [bits, group], got {form!r:.100}")
        try:
            made = grid_of(base, *form)
        except ValueError as error:
            raise ValueError(f"{source}: {KEY!r} of {path}: {error}") from None
        replace(model, path, made)
