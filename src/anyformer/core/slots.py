"""Slots: what kind of part belongs where. A constructor says `norm: Recipe[Norm]`, and a recipe of another kind is
refused when it is written. Beside these there are `Mixer` (`core.mixer`), and bases with code of their own: `Score`,
`Router`, `Rotary`."""

from torch import Tensor

from anyformer.core.part import Part


class Norm(Part):
    """Norms a vector: `forward(x)`. Shape: (..., D) -> same."""


class Scale(Part):
    """What a residual branch is multiplied by before the sum: `forward(x)`. Shape: (..., D) -> same."""


class FeedForward(Part):
    """Works on each place alone: `forward(x, flow)`. Shape: (B, T, D) -> same."""


class Positions(Part):
    """A vector for each place that is added to the token's: `forward(positions)`. Shape: (T,) or (B, T) -> (..., D)."""


class Pool(Part):
    """Makes one vector of a sequence: `forward(x, flow)`. Shape: (B, T, D) -> (B, D)."""

    def complete(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Made-up inputs of a model with what this pool needs in each row."""
        return inputs


class Head(Part):
    """Reads the stream or its pooled vector: `forward(x, flow)`. Shape: (B, T, D) -> that of its answer."""
