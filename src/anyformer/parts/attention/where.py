"""Vectors of places that attention adds in every layer. B batch, T positions, S places of the memory, D width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from anyformer.core.flow import Companion


@dataclass(frozen=True)
class Where(Companion):
    """Vectors that `Attention` adds to the input of q and k, never of v."""

    left_by: ClassVar[str] = "the front-end Features, or the queries of a QueryDecoder"
    per_position: ClassVar[bool] = True
    vectors: Tensor  # (B or 1, T, D) of the stream
    memory: Tensor | None = None  # (B or 1, S, D) of the memory
    grid: Any = None  # the `Cells` of the memory
