"""Laws of a forecast: distributions of each step, with their parameters in one tensor, and the head that gives them.

B rows, T steps, C targets of a step, P parameters of a law. One target has no axis C.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.part import check_option
from anyformer.core.slots import Head
from anyformer.parts.series.window import Window


def squareplus(x: Tensor) -> Tensor:
    """(x + sqrt(x^2 + 4)) / 2: above 0, smooth, and linear for large x."""
    return (x + (x.square() + 4).sqrt()) / 2


def each(draw: Callable[[Tensor, torch.Generator], Tensor], of: Tensor, noise: Sequence[torch.Generator]) -> Tensor:
    """`draw` for each row by its own generator: what a row draws does not depend on the others."""
    return torch.stack([draw(row, generator) for row, generator in zip(of, noise, strict=True)])


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draws from N(0, 1) in that shape."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


class Law(ABC):
    """A distribution of a value, given shift and scale of its window: value = shift + scale * z.

    Attributes:
        names: of its parameters, in their order along the last axis.
    """

    names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def mapped(self, raw: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
        """Any numbers, a tensor a parameter, as parameters."""

    @abstractmethod
    def log_prob(self, values: Tensor, given: Sequence[Tensor], shift: Tensor, scale: Tensor) -> Tensor:
        """The logarithm of the density (of counts: the probability) at the values, in their own units."""

    @abstractmethod
    def sample(self, given: Sequence[Tensor], shift: Tensor, scale: Tensor, noise: Sequence[torch.Generator]) -> Tensor:
        """A draw in the unit of the values, row i by generator i."""


class Normal(Law):
    """z = loc + scale * N(0, 1)."""

    names = ("loc", "scale")

    def mapped(self, raw: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
        loc, spread = raw
        return [loc, squareplus(spread).clamp(min=torch.finfo(spread.dtype).eps)]

    def log_prob(self, values: Tensor, given: Sequence[Tensor], shift: Tensor, scale: Tensor) -> Tensor:
        loc, spread = given
        return torch.distributions.Normal(loc, spread).log_prob((values - shift) / scale) - scale.log()

    def sample(self, given: Sequence[Tensor], shift: Tensor, scale: Tensor, noise: Sequence[torch.Generator]) -> Tensor:
        loc, spread = given
        return shift + scale * (loc + spread * each(normal, loc, noise))


class StudentT(Law):
    """z = loc + scale * t(df), with more than two degrees of freedom: the variance is finite."""

    names = ("df", "loc", "scale")

    def mapped(self, raw: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
        df, loc, spread = raw
        return [2 + squareplus(df), loc, squareplus(spread).clamp(min=torch.finfo(spread.dtype).eps)]

    def log_prob(self, values: Tensor, given: Sequence[Tensor], shift: Tensor, scale: Tensor) -> Tensor:
        df, loc, spread = given
        return torch.distributions.StudentT(df, loc, spread).log_prob((values - shift) / scale) - scale.log()

    def sample(self, given: Sequence[Tensor], shift: Tensor, scale: Tensor, noise: Sequence[torch.Generator]) -> Tensor:
        df, loc, spread = given
        chi = each(lambda half, generator: 2 * torch._standard_gamma(half, generator), df / 2, noise)
        return shift + scale * (loc + spread * each(normal, loc, noise) * (df / chi).sqrt())


class NegativeBinomial(Law):
    """Counts: a Poisson number whose rate is drawn from a Gamma law of `total_count` and odds e^`logits`.

    The scale of the window is a factor of the odds, since counts cannot be divided; there is no shift.
    """

    names = ("total_count", "logits")

    def mapped(self, raw: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
        count, logits = raw
        return [squareplus(count), logits + scale.log()]

    def log_prob(self, values: Tensor, given: Sequence[Tensor], shift: Tensor, scale: Tensor) -> Tensor:
        count, logits = given
        return torch.distributions.NegativeBinomial(count, logits=logits, validate_args=False).log_prob(values)

    def sample(self, given: Sequence[Tensor], shift: Tensor, scale: Tensor, noise: Sequence[torch.Generator]) -> Tensor:
        count, logits = given
        rate = each(torch._standard_gamma, count, noise) * logits.exp()
        return each(torch.poisson, rate, noise)


LAWS: dict[str, Law] = {"student_t": StudentT(), "normal": Normal(), "negative_binomial": NegativeBinomial()}


class Forecast(Head):
    """The parameters of the law of each step, scaled to its window: a linear layer for each parameter, then the law's
    own range.

    Args:
        law: student_t, normal, or negative_binomial for counts.
        size: C, the targets of a step.

    Shape: (B, T, D) -> (B, T, C, P), with one target (B, T, P).
    """

    between = (2.5, 5.0)  # any parameter can be there: one of a Student law is above 2

    def __init__(self, dim: int, law: str = "student_t", size: int = 1):
        super().__init__()
        check_option("Forecast", "law", law, tuple(LAWS))
        if size < 1:
            raise ValueError(f"Forecast: size, the targets of a step, must be at least 1; got {size}")
        self.law, self.size = LAWS[law], size
        self.proj = nn.ModuleDict({name: nn.Linear(dim, size) for name in self.law.names})

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        window = flow.get(Window, "Forecast")
        given = self.law.mapped([proj(x) for proj in self.proj.values()], window.scale.to(x.dtype))  # (B, T, C) each
        return torch.stack(given, -1) if self.size > 1 else torch.cat(given, -1)

    def parameters_of(self, forecast: Tensor) -> list[Tensor]:
        """The parameters of an output, (B, T, C) each."""
        return [p if self.size > 1 else p[..., None] for p in forecast.unbind(-1)]
