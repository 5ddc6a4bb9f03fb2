"""The loss of forecasts. B rows, H steps ahead, C targets of a step, P parameters of a law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from anyformer.parts.series.laws import LAWS
from anyformer.skeletons.base import Output


@dataclass(frozen=True)
class Likelihood:
    """-sum log p(value | its law) / steps that count, in the unit of the values; those of one step are added up.

    Labels are the values ahead, (B, H) or (B, H, C), with NaN where one is missing: a step counts if all its values are
    there. Where a step has several targets, p is their product.

    Args:
        law: the name of the model's. targets: C.
    """

    gaps: ClassVar[bool] = True  # labels can be missing
    law: str = "student_t"
    targets: int = 1

    @classmethod
    def of(cls, model: Any) -> Likelihood:
        """That of a forecaster."""
        law = next(name for name, law in LAWS.items() if law is model.law)
        return cls(law, model.embed.size)

    def counted(self, labels: Tensor) -> Tensor:
        """The number of steps that count."""
        return self._there(labels).sum()

    def check(self, labels: Tensor) -> None:
        """Raises ValueError for labels of another form."""
        if labels.ndim != 2 + (self.targets > 1) or not labels.is_floating_point():
            shape = "(windows, steps)" if self.targets == 1 else f"(windows, steps, {self.targets})"
            raise ValueError(f"labels must be floats {shape}, NaN where missing; got {labels.dtype} {labels.shape}")

    def __call__(self, output: Output, labels: Tensor, count: Any) -> Tensor:
        there = self._there(labels)  # (B, H)
        given, shift, scale = output.heads["forecast"], output.beside["shift"], output.beside["scale"]
        wide = (..., None) if self.targets == 1 else (...,)
        values = labels.nan_to_num(0.0)[wide].to(given.dtype)  # (B, H, C)
        parameters = [p[wide] for p in given.unbind(-1)]
        loss = -LAWS[self.law].log_prob(values, parameters, shift[wide], scale[wide]).sum(-1)  # (B, H)
        return loss.masked_fill(~there, 0.0).sum() / count

    def _there(self, labels: Tensor) -> Tensor:
        there = ~labels.isnan()
        return there if self.targets == 1 else there.all(-1)
