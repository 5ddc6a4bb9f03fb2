"""Ops for rows of the map with several names on a side; one tensor of theirs that is several of ours, one below the
other, is `weights.Split`.

    row(("q_proj", "k_proj"), "qk", Join((8, 4)))                             several of theirs, one below the other
    row(tuple(f"experts.{e}.w1" for e in range(8)), "experts.w1", Stack())    one each, along a new first axis
    row("experts.w1", tuple(f"experts.{e}.w1" for e in range(8)), Unstack())  the reverse
    row(tuple(f"blocks.{i}.norm1.emb" for i in range(28)), "time", Copies(28))  one of ours, stored again and again
    row("norm_out.linear", "norm.told", Swap())                               the halves of its rows change places
    row(("conv.weight_g", "conv.weight_v"), "conv.weight", WeightNorm(0))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anyformer.hub.tables.weights import Differs, Op, Shape


@dataclass(frozen=True)
class Join(Op):
    """Several tensors of theirs are one of ours, one below the other, with these numbers of rows."""

    rows: tuple[int, ...]

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        for place, (tensor, rows) in enumerate(zip(tensors, self.rows, strict=True)):
            if tensor.ndim == 0 or tensor.shape[0] != rows:
                raise Differs(place, f"it has shape {tuple(tensor.shape)}, expected {rows} rows")
        return [torch.cat(tensors)]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return list(tensors[0].split(self.rows))


class Stack(Op):
    """Several tensors of theirs are one of ours, along a new first axis: experts."""

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        for place, tensor in enumerate(tensors):
            if tensor.shape != shapes[0][1:]:
                raise Differs(place, f"it has shape {tuple(tensor.shape)}, expected {tuple(shapes[0][1:])}")
        return [torch.stack(tensors)]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return list(tensors[0].unbind())


class Unstack(Op):
    """One tensor of theirs is several of ours, along its first axis: experts."""

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        if tensors[0].ndim == 0 or tensors[0].shape[0] != len(shapes):
            raise ValueError(f"its first axis must have {len(shapes)} entries")
        return list(tensors[0].unbind())

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack(tensors)]


@dataclass(frozen=True)
class Copies(Op):
    """One tensor of ours is stored `count` times, and all copies must be equal: DiT's embedding of time in each
    block."""

    count: int

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        for place, tensor in enumerate(tensors):
            if not torch.equal(tensor, tensors[0]):
                raise Differs(place, f"it is one of {len(tensors)} copies of one weight, and differs from the first")
        return tensors[:1]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors * self.count


class Swap(Op):
    """The two halves of their rows change places: diffusers tells an adaptive norm its scale before its shift."""

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        if tensors[0].ndim == 0 or tensors[0].shape[0] % 2:
            raise ValueError(f"it has shape {tuple(tensors[0].shape)}, and an even number of rows is expected")
        return self.write(tensors)

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat(t.chunk(2)[::-1]) for t in tensors]


@dataclass(frozen=True)
class WeightNorm(Op):
    """A matrix of ours is a length g and a direction v of theirs: w = g v / |v|, the norm over all axes but one.

    Written back, v is w itself: the same weight, in other numbers. A model that trains g and v holds both.
    """

    axis: int

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        g, v = tensors
        if v.shape != shapes[0]:
            raise Differs(1, f"it has shape {tuple(v.shape)}, expected {tuple(shapes[0])}")
        length = self._length(v)
        if g.shape != length.shape:
            raise Differs(0, f"it has shape {tuple(g.shape)}, expected {tuple(length.shape)}")
        if bool((length == 0).any()):
            raise Differs(1, "one of its directions is all zeros, so it has no norm to divide by")
        return [(v.float() * (g.float() / length.float())).to(v.dtype)]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return [self._length(tensors[0]), tensors[0]]

    def _length(self, v: Tensor) -> Tensor:
        axes = [axis for axis in range(v.ndim) if axis != self.axis % v.ndim]
        return torch.linalg.vector_norm(v, dim=axes, keepdim=True)
