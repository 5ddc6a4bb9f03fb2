"""Positions inside attention: rotary with its published scalings, and T5's relative bias.

B batch, T queries, S keys, H heads, K head width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.part import Part, check_option
from anyformer.core.value import Value


class Scaling(Value):
    """A change of the frequencies of rotary positions, for texts beyond the trained length."""

    # True if the frequencies change as the text grows. Then a cache keeps old keys at old angles (as every published
    # implementation does), and differs from a pass over the whole text once the trained length is passed.
    by_length = False

    @abstractmethod
    def scale(self, frequencies: Tensor, theta: float, length: Tensor) -> tuple[Tensor, float]:
        """New frequencies, (K/2,), per row (B, K/2) or per token (B, T, K/2), and a factor on cos and sin.

        `length` (1,), (B, 1) or (B, T, 1) is the number of positions of each text.
        """


@dataclass(frozen=True)
class Linear(Scaling):
    """Positions are divided by `factor` (Chen et al., 2023; arXiv:2306.15595)."""

    factor: float

    def scale(self, frequencies: Tensor, theta: float, length: Tensor) -> tuple[Tensor, float]:
        return frequencies / self.factor, 1.0


@dataclass(frozen=True)
class Dynamic(Scaling):
    """NTK-aware: beyond `trained` positions theta grows with the length, so that short texts do not change."""

    factor: float
    trained: int
    by_length = True

    def scale(self, frequencies: Tensor, theta: float, length: Tensor) -> tuple[Tensor, float]:
        width = 2 * len(frequencies)
        length = length.clamp(min=self.trained)
        base = theta * (self.factor * length / self.trained - (self.factor - 1)) ** (width / (width - 2))
        return 1.0 / base ** (torch.arange(0, width, 2, device=frequencies.device) / width), 1.0


def longest(context: int, scaling: Scaling | None) -> int | None:
    """The longest text of a model whose files have `context` positions: None (any) with `Dynamic`, which has no limit.
    A scaling factor multiplies it, unless the files include it already: `trained` is smaller then."""
    if scaling is None or isinstance(scaling, Dynamic):
        return None if scaling else context
    counted = getattr(scaling, "trained", context) < context
    return context if counted else int(context * max(1.0, getattr(scaling, "factor", 1.0)))


@dataclass(frozen=True)
class YaRN(Scaling):
    """Fast frequencies stay, slow ones are divided by `factor`, between them a ramp (Peng et al., 2023;
    arXiv:2309.00071).

    Args:
        trained: positions before the scaling.
        fast, slow: turns within `trained` above which a frequency stays, below which it is divided.
        attention: factor on cos and sin; None = 0.1 ln(factor) + 1.
        mscale, mscale_all: DeepSeek's variant of that factor, or None.
        truncate: True for a ramp between whole numbers.
    """

    factor: float
    trained: int
    fast: float = 32.0
    slow: float = 1.0
    attention: float | None = None
    mscale: float | None = None
    mscale_all: float | None = None
    truncate: bool = True

    def scale(self, frequencies: Tensor, theta: float, length: Tensor) -> tuple[Tensor, float]:
        width = 2 * len(frequencies)
        low, high = (
            width * math.log(self.trained / (n * 2 * math.pi)) / (2 * math.log(theta)) for n in (self.fast, self.slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        place = torch.arange(len(frequencies), device=frequencies.device, dtype=torch.float32)
        ramp = ((place - low) / max(high - low, 0.001)).clamp(0, 1)  # 0 = fast, 1 = slow
        return frequencies / self.factor * ramp + frequencies * (1 - ramp), self._factor()

    def _factor(self) -> float:
        def grown(scale: float) -> float:
            return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0

        if self.attention is not None:
            return self.attention
        if self.mscale and self.mscale_all:
            return grown(self.mscale) / grown(self.mscale_all)
        return grown(1.0)


@dataclass(frozen=True)
class LongRope(Scaling):
    """Each frequency is divided by its own factor, from one list for short texts and one for long (Ding et al.,
    2024; arXiv:2402.13753)."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    trained: int
    attention: float
    by_length = True

    def scale(self, frequencies: Tensor, theta: float, length: Tensor) -> tuple[Tensor, float]:
        short, long = (torch.tensor(f, device=frequencies.device) for f in (self.short, self.long))
        if len(short) != len(frequencies) or len(long) != len(frequencies):
            raise ValueError(
                f"LongRope needs {len(frequencies)} factors, got {len(short)} short and {len(long)} long ones"
            )
        return frequencies / torch.where(length > self.trained, long, short), self.attention


@dataclass(frozen=True)
class Llama3(Scaling):
    """Waves longer than trained / `low` are divided by `factor`, those shorter than trained / `high` stay (Llama
    3.1; arXiv:2407.21783)."""

    factor: float
    low: float
    high: float
    trained: int

    def scale(self, frequencies: Tensor, theta: float, length: Tensor) -> tuple[Tensor, float]:
        turns = self.trained * frequencies / (2 * math.pi)  # turns within the trained length
        smooth = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - smooth) * frequencies / self.factor + smooth * frequencies, 1.0


class Rotary(Part):
    """Rotary positions (Su et al., 2021; arXiv:2104.09864): each pair of numbers is turned by position x theta^(-2i/K).

    The angle between a query at position m and a key at position n then depends only on m - n.

    Args:
        theta: base of the frequencies.
        scaling: one of `Linear`, `Dynamic`, `YaRN`, `LongRope`, `Llama3`, or None.
        fraction: turned share of the head width; the rest does not change.
        pairs: "half" pairs i with i + K/2 (Hugging Face's files), "adjacent" pairs 2i with 2i + 1 (the paper, GGUF
            files).

    Shape: (B, T, H, K) -> same.
    """

    def __init__(
        self,
        dim: int,
        theta: float = 10000.0,
        scaling: Scaling | None = None,
        fraction: float = 1.0,
        pairs: str = "half",
    ):
        super().__init__()
        check_option("Rotary", "pairs", pairs, ("half", "adjacent"))
        self.width, self.theta, self.scaling, self.pairs = int(dim * fraction), theta, scaling, pairs
        self._key: tuple[object, ...] = ("rotary", self.width, theta, scaling, pairs)
        if self.width % 2 or not self.width:
            raise ValueError(f"Rotary turns pairs: {self.width} of {dim} numbers a head cannot be paired")

    def angles(self, flow: Flow) -> tuple[Tensor, float]:
        """The angle of every pair at every position in float32, (T, 1, K/2) or (B, T, 1, K/2), and a factor on cos and
        sin."""
        positions = flow.positions
        steps = torch.arange(0, self.width, 2, device=positions.device, dtype=torch.float32)
        frequencies, factor = 1.0 / self.theta ** (steps / self.width), 1.0  # (K/2,)
        if self.scaling is not None:
            frequencies, factor = self.scaling.scale(frequencies, self.theta, flow.length())
            if frequencies.ndim == 2:
                frequencies = frequencies[:, None]  # (B, 1, K/2)
            if frequencies.ndim == 3:
                frequencies = frequencies[:, :, None]  # (B, 1 or T, 1, K/2)
        return positions[..., None, None].float() * frequencies, factor

    def tables(self, flow: Flow, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and signed sin of every position, each (T, 1, K) or (B, T, 1, K), computed in float32.

        The sign is that of the partner: (a, b) turns to (a cos - b sin, b cos + a sin).
        """
        angles, factor = self.angles(flow)
        cos, sin = angles.cos() * factor, angles.sin() * factor
        if self.pairs == "half":
            cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)  # (B, T, 1, K)
        else:
            cos, sin = cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)
        return cos.to(dtype), sin.to(dtype)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        cos, sin = flow.once(self._key, lambda: self.tables(flow, x.dtype))
        turned = x if self.width == x.shape[-1] else x[..., : self.width]
        if self.pairs == "half":
            partner = turned.roll(self.width // 2, -1)
        else:
            partner = turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        turned = torch.addcmul(turned * cos, partner, sin)
        return turned if turned.shape == x.shape else torch.cat((turned, x[..., self.width :]), -1)


class RelativeBias(Part):
    """T5's bias on the scores: a learned number for each head and bucket of distances (Raffel et al., 2019;
    arXiv:1910.10683).

    Half of the buckets hold one distance each, the rest grow logarithmically up to `far`. Both directions share the
    buckets equally; with `causal` all are for the past. One table serves a whole stack.

    Args:
        heads, buckets: size of the table.
        far: the distance from which all share a bucket.
        causal: True if keys are in the past only.

    Shape: positions of queries (T,) and keys (S,) -> (1, H, T, S).
    """

    def skips_gaps(self) -> bool:
        return False

    def __init__(self, dim: int, heads: int, buckets: int = 32, far: int = 128, causal: bool = False):
        super().__init__()
        exact = buckets // 2 if causal else buckets // 4
        if exact < 1 or far <= exact:
            raise ValueError(
                f"RelativeBias needs at least {2 if causal else 4} buckets and far above {max(1, exact)}; "
                f"got buckets={buckets}, far={far}"
            )
        self.table = nn.Embedding(buckets, heads)
        self.buckets, self.far, self.causal = buckets, far, causal

    def bucket(self, distance: Tensor) -> Tensor:
        """The bucket of each distance key - query, any shape of integers."""
        count, base = self.buckets, torch.zeros_like(distance)
        if self.causal:
            distance = (-distance).clamp(min=0)
        else:
            count //= 2
            base, distance = (distance > 0).long() * count, distance.abs()
        exact = count // 2
        ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.far / exact)
        log = (exact + (ratio * (count - exact)).long()).clamp(max=count - 1)
        return base + torch.where(distance < exact, distance, log)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        buckets = self.bucket(key - query[:, None])  # (T, S)
        return self.table(buckets).permute(2, 0, 1)[None]  # (1, H, T, S)
