"""What a step differentiates: a model and its objective as one module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from anyformer.data.batches import Batch
from anyformer.skeletons.base import Output
from anyformer.train import precision as half
from anyformer.train.figures import figures
from anyformer.train.objectives import with_auxiliary

Objective = Callable[[Output, Tensor, Tensor | float], Tensor]


class Loss(nn.Module):
    """A model and its objective as one module: what is exchanged after backward is what this loss reads, no more.

    Attributes:
        run: how the model is called. `figures`: what its parts reported of the last batch.
    """

    def __init__(self, model: Any, objective: Objective, precision: str):
        super().__init__()
        self.model, self.objective, self.precision = model, objective, precision
        self.run: Callable[..., Output] = lambda **inputs: model(**inputs)
        self.figures: dict[str, Any] = {}

    def forward(self, inputs: Batch, labels: Tensor, count: Any, share: float) -> Tensor:
        """This batch's part of the loss: `count` labels count in the step, a `share` of its real tokens are here."""
        with half.cast(labels.device, self.precision):
            output = self.run(**inputs)
            self.figures = figures(output)
            return with_auxiliary(self.objective(output, labels, count), output, share)
