"""Series taken apart into a trend and what is left, the season (Wu et al., 2021; arXiv:2106.13008): the blocks, norm
and head of Autoformer.

B rows, T steps, D width, F numbers of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Companion, Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import Part, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import FeedForward, Head, Norm
from anyformer.parts.norms import LayerNorm
from anyformer.parts.series.laws import Forecast
from anyformer.parts.sound.mels import TimeConvolution


@dataclass(frozen=True)
class Trend(Companion):
    """The trend of the steps, (B, T, F)."""

    left_by: ClassVar[str] = "the decoder of Autoformer (TrendStack)"
    rows: Tensor


def trend(x: Tensor, width: int) -> Tensor:
    """The mean of `width` steps around each, the ends repeated beyond themselves: (B, T, D) -> same."""
    side = (width - 1) // 2
    padded = torch.cat((x[:, :1].expand(-1, side, -1), x, x[:, -1:].expand(-1, side, -1)), 1)
    return F.avg_pool1d(padded.mT, width, 1).mT


def check_width(owner: str, width: int) -> int:
    """Raises ValueError unless the width is odd: an even one has no step in its middle."""
    if width < 1 or width % 2 == 0:
        raise ValueError(f"{owner}: average={width} steps around each: the number must be odd")
    return width


class SeasonNorm(Norm):
    """LayerNorm, less its mean over the steps: no level is left. Shape: (B, T, D) -> same."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x - x.mean(1, keepdim=True)


class SeasonBlock(Part):
    """A block of the encoder, which keeps the season only.

    ```
    x ──┬── mixer ──(+)── norm ── - trend ──┬── ffn ──(+)── - trend ── season norm ──>
        └───────────┘                       └─────────┘
    ```
    Args:
        mixer, ffn: the two branches. `norm`: after the mixer; the last one is a `SeasonNorm`.
        average: steps of a trend's mean, an odd number.
        dropout: at the end of each branch.

    Shape: (B, T, D) -> same.
    """

    wired: ClassVar[str] = "post"  # as `Block.wiring`

    def __init__(
        self,
        dim: int,
        mixer: Recipe[Mixer],
        ffn: Recipe[FeedForward],
        norm: Recipe[Norm],
        average: int = 25,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.average, self.dropout = check_width("SeasonBlock", average), dropout
        self.mixer, self.ffn = mixer.build(dim), ffn.build(dim)
        self.norm = nn.ModuleDict({"mixer": norm.build(dim), "ffn": SeasonNorm(dim)})

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        x = self.norm["mixer"](x + drop(self, self.mixer(x, flow)))
        x = x - trend(x, self.average)
        x = x + drop(self, self.ffn(x, flow))
        return self.norm["ffn"](x - trend(x, self.average))


class TrendBlock(Part):
    """A block of the decoder, which returns the season, and the trends that it took off.

    ```
    x ──┬── mixer ──(+)── - trend ── norm ──┬── cross ──(+)── - trend ── norm ──┬── ffn ──(+)── - trend ── norm ──>
        └───────────┘                       └───────────┘                       └─────────┘
    trends ── added ── convolution of 3 in a circle ──> (B, T, F)
    ```
    Args:
        mixer, cross, ffn: the three branches. `norm`: after the first two; the last one is a `SeasonNorm`.
        features: F, the numbers of a row.
        average: steps of a trend's mean, an odd number.
        dropout: at the end of each branch.

    Shape: (B, T, D) -> (B, T, D) and (B, T, F).
    """

    wired: ClassVar[str] = "post"

    def __init__(
        self,
        dim: int,
        mixer: Recipe[Mixer],
        cross: Recipe[Mixer],
        ffn: Recipe[FeedForward],
        norm: Recipe[Norm],
        features: int,
        average: int = 25,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.average, self.dropout = check_width("TrendBlock", average), dropout
        self.mixer, self.cross, self.ffn = mixer.build(dim), cross.build(dim), ffn.build(dim)
        self.norm = nn.ModuleDict({"mixer": norm.build(dim), "cross": norm.build(dim), "ffn": SeasonNorm(dim)})
        self.trend = TimeConvolution(dim, features, 3, padding=1, padding_mode="circular", bias=False)

    def forward(self, x: Tensor, flow: Flow) -> tuple[Tensor, Tensor]:
        trends: Any = 0.0
        for name in ("mixer", "cross", "ffn"):
            x = x + drop(self, getattr(self, name)(x, flow))
            off = trend(x, self.average)
            x, trends = self.norm[name](x - off), trends + off
        return x, self.trend(trends.mT).mT


class WithTrend(Head):
    """A head on the season, in the width of a row, plus the trend: then(W x + b + trend).

    Args:
        features: F, the numbers of a row.
        then: of that width, `Forecast.of(...)`.

    Shape: (B, T, D) -> that of `then`.
    """

    between = Forecast.between

    def __init__(self, dim: int, features: int, then: Recipe[Forecast]):
        super().__init__()
        self.proj, self.then = nn.Linear(dim, features), then.build(features)
        self.law = self.then.law

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        rows = flow.get(Trend, "WithTrend").rows
        return self.then(self.proj(x) + rows.to(x.dtype), flow)
