"""Slots: the kinds of parts and their call signatures. A constructor's `norm: Recipe[Norm]` refuses a recipe of another
kind when it is written. Beside these there are `Mixer` (`core.mixer`), and bases with code of their own: `Score`,
`Router`, `Rotary`."""

from typing import ClassVar

from torch import Tensor

from anyformer.core.part import Part


class Norm(Part):
    """Norms a vector: `forward(x)`. Shape: (..., D) -> same."""


class Scale(Part):
    """Scales a residual branch before the sum: `forward(x)`. Shape: (..., D) -> same."""


class FeedForward(Part):
    """Works on each position alone: `forward(x, flow)`. Shape: (B, T, D) -> same."""


class Positions(Part):
    """A vector per position, added to the token's: `forward(positions)`. Shape: (T,) or (B, T) -> (..., D)."""


class Pool(Part):
    """Pools a sequence to one vector: `forward(x, flow)`. Shape: (B, T, D) -> (B, D)."""

    def complete(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Example inputs of a model, with the tokens that this pool needs in each row."""
        return inputs


class Head(Part):
    """Reads the stream or its pooled vector: `forward(x, flow)`. Shape: (B, T, D) -> that of its output.

    Attributes:
        between: its output is numbers between these two; None: scores of classes or tokens.
    """

    between: ClassVar[tuple[float, float] | None] = None
