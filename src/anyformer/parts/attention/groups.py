"""Attention inside the groups of one sequence: windows and frames of pictures of many sizes, one after another.

T positions of the sequence, G groups, L positions of the largest one, A axes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anyformer.core.checks import readable
from anyformer.core.flow import Companion, Flow
from anyformer.core.mixer import Mixer
from anyformer.core.recipe import Recipe
from anyformer.parts.attention.attention import Attention
from anyformer.parts.grid import Axes


@dataclass(frozen=True)
class Groups(Companion):
    """The group of each position, (T,), for each way to group them, and the places of the positions, (A, T)."""

    left_by: ClassVar[str] = "Cubes"
    per_position: ClassVar[bool] = True
    numbers: Mapping[str, Tensor]
    places: Tensor


class Grouped(Mixer):
    """Attention within each group of a packed sequence; groups differ in size.

    ```
    sequence   a a a b b c c c c d          rows   a a a ·      work and memory are those of the groups,
                                                   b b · ·      filled up to the largest, not of all pairs
                                                   c c c c
                                                   d · · ·
    ```
    Differs from `Windows` by: pictures of several sizes in one sequence; a group at an edge is smaller, and not filled
    with cells of 0.

    Args:
        inside: attention in a group, e.g. `Attention.of(heads=16, positions=Rotary2D.of())`.
        by: the way to group, by its name in `Groups`: "frames" or "windows" of `Cubes`.

    Shape: (1, T, D) -> same.
    """

    def __init__(self, dim: int, inside: Recipe[Attention], by: str = "frames"):
        super().__init__()
        self.inside, self.by = inside.build(dim), by

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        groups = flow.get(Groups, "Grouped")
        if self.by not in groups.numbers:
            raise ValueError(f"Grouped: positions are grouped by {', '.join(groups.numbers)}; got by={self.by!r}")
        self.needs_both_ways(flow)
        numbers = groups.numbers[self.by]
        if not readable(numbers):  # one mask over all pairs: the same numbers
            inner = flow.once(("groups", self.by), lambda: self._whole(numbers, groups, flow))
            return self.inside(x, inner)
        index, back, inner = flow.once(("groups", self.by), lambda: self._rows(numbers, groups, flow))
        return self.inside(x[0][index], inner).flatten(0, 1)[back][None]

    def _whole(self, numbers: Tensor, groups: Groups, flow: Flow) -> Flow:
        """The flow of the sequence in which each group is a document."""
        inner = flow.inside(torch.arange(len(numbers), device=numbers.device)[None], None, documents=numbers[None])
        inner.put(Axes(groups.places[:, None]))
        return inner

    def _rows(self, numbers: Tensor, groups: Groups, flow: Flow) -> tuple[Tensor, Tensor, Flow]:
        """The position at each place of each group, (G, L); the place of each position in these rows, (T,); and the
        flow of the rows."""
        index, keep, back = rows_of(numbers)
        inner = flow.inside(torch.arange(index.shape[1], device=index.device), None if bool(keep.all()) else keep)
        inner.put(Axes(groups.places[:, index]))
        return index, back, inner


def rows_of(numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Groups as rows: the position at each place (G, L), 0 where a group is shorter; which places are real, (G, L); and
    the place of each position in the rows, (T,).

    Args:
        numbers: the group of each position, (T,), any whole numbers.
    """
    _, group, counts = numbers.unique(return_inverse=True, return_counts=True)
    order, longest = group.argsort(stable=True), int(counts.max())
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(group)
    place[order] = torch.arange(len(group), device=group.device) - starts[group[order]]
    back = group * longest + place
    index = torch.zeros(len(counts) * longest, dtype=torch.long, device=group.device)
    index[back] = torch.arange(len(group), device=group.device)
    keep = torch.arange(longest, device=group.device) < counts[:, None]
    return index.view(-1, longest), keep, back
