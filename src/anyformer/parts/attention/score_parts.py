"""Soft masks: learned or fixed changes of the scores, without hard masking.

```
Temperature   s / tau                        Alibi       - slope_h |i - j|
SoftCap       c tanh(s / c)                  Span        log of a ramp that ends at a learned distance, of each head
Decay         - rate_h f(|i - j|)            Distances   a learned number for each head and distance
                                             Forget      sum of log f_t between key and query, f_t from the token t
```
`Attention.of(heads=8, scores=[Temperature.of(0.5), Alibi.of()])`; `anyformer.parts.attention.scores` explains
their combination.
B batch, T queries, S keys, H heads, K head width, N distances.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import OverTime
from anyformer.core.part import check_option
from anyformer.core.state import Slot, aligned, fronted
from anyformer.parts.attention.masks import View
from anyformer.parts.attention.scores import Bias, Call, Score

HIDDEN = 1e-30  # the weight beyond a span: nothing beside 1, with a finite logarithm


class Temperature(Score):
    """softmax(s / tau): sharper below 1, flatter above; towards 0 only the largest score counts.

    Args:
        value: tau, above 0; its initial value if it is learned.
        learned: a tau of each head, trained as its logarithm (Lee et al., 2021; arXiv:2112.13492).

    Biases are not divided. Costs one product over the queries; any kernel.
    """

    across, fixed = True, True

    def __init__(self, dim: int, heads: int, head_dim: int, value: float = 1.0, learned: bool = False):
        super().__init__()
        if not 0 < value < math.inf:
            raise ValueError(
                f"Temperature: value divides the scores and must be above 0; got {value} (nearly hard: 0.01)"
            )
        self.value = value
        self.log = nn.Parameter(torch.empty(heads)) if learned else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.log is not None:
            nn.init.constant_(self.log, math.log(self.value))

    def query(self, q: Tensor) -> Tensor:
        return q / self.value if self.log is None else q * (-self.log).exp()[:, None, None]


class SoftCap(Score):
    """c tanh(s / c): all scores within (-c, c), small ones unchanged (Gemma 2; arXiv:2408.00118, with c = 50).

    Every kernel but "sdpa" can do it; `Attention(kernel="auto")` picks one that can. `value=inf` changes nothing.
    """

    across, fixed = True, True

    def __init__(self, dim: int, heads: int, head_dim: int, value: float = 50.0):
        super().__init__()
        if not value > 0:
            raise ValueError(f"SoftCap: value is the largest score and must be above 0; got {value}")
        self.cap = None if math.isinf(value) else value


class ByDistance(Score):
    """Base of biases by distance: `of_distance` computes each distance once."""

    @abstractmethod
    def of_distance(self, ahead: Tensor) -> Tensor:
        """The bias at each of the distances key - query, (N,) whole numbers -> (H, N)."""

    def bias(self, call: Call) -> Bias:
        return self.of_view

    def of_view(self, view: View) -> Tensor:
        """(1, H, T, S): row i is a slice of the distances, one step further left than row i - 1."""
        first = view.key - view.query - view.count + 1
        ahead = torch.arange(first, first + view.count + view.keys - 1, device=view.device)  # (N,)
        values = self.of_distance(ahead)  # (H, N)
        if view.open():  # torch.export turns the length of such a slice into a constant
            row, key = torch.arange(view.count, device=view.device), torch.arange(view.keys, device=view.device)
            return values[:, key - row[:, None] + view.count - 1][None]
        return values.unfold(1, view.keys, 1).flip(1)[None]


DECAYS = {"linear": lambda d: d, "log": torch.log1p, "square": torch.square}


class Decay(ByDistance):
    """- rate f(|i - j|): the weight at a distance d is multiplied by exp(-rate f(d)).

    Args:
        rate: 0 or more; its initial value if it is learned.
        shape: f, "linear" d (weights fall exponentially), "log" log(1 + d) (as a power of the distance; KERPLE, Chi et
            al., 2022; arXiv:2205.09921), "square" d² (as a bell curve).
        learned: a rate of each head; it can become negative.
    """

    def __init__(
        self, dim: int, heads: int, head_dim: int, rate: float = 0.1, shape: str = "linear", learned: bool = False
    ):
        super().__init__()
        check_option(type(self).__name__, "shape", shape, tuple(DECAYS))
        if not 0 <= rate < math.inf:
            raise ValueError(f"Decay: rate must be at least 0, so that distant tokens count less; got {rate}")
        self.first, self.shape, self.fixed = rate, shape, not learned
        self.rate = nn.Parameter(torch.empty(heads)) if learned else None
        self.heads = heads
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.rate is not None:
            nn.init.constant_(self.rate, self.first)

    def rates(self, device: torch.device) -> Tensor:
        """(H,)"""
        return torch.full((self.heads,), self.first, device=device) if self.rate is None else self.rate

    def of_distance(self, ahead: Tensor) -> Tensor:
        return -self.rates(ahead.device)[:, None] * DECAYS[self.shape](ahead.abs().to(torch.float32))


class Alibi(Decay):
    """ALiBi (Press et al., 2021; arXiv:2108.12409): -slope_h |i - j|, a replacement of positions, for texts beyond
    the trained length. In an encoder both sides count alike.

    The slopes of H heads are 2^(-8/H), 2^(-16/H), …, 2^-8 for a power of two; otherwise those of the power of two
    below, and every second of the one above.
    """

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__(dim, heads, head_dim)
        self.slopes = slopes(heads)

    def rates(self, device: torch.device) -> Tensor:
        return torch.tensor(self.slopes, device=device)


def slopes(heads: int) -> list[float]:
    """ALiBi's slope of each head."""
    below = 1 << (heads.bit_length() - 1)
    first = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    return first + [2 ** (-4 * i / below) for i in range(1, 2 * (heads - below), 2)]


class Span(ByDistance):
    """Adaptive spans (Sukhbaatar et al., 2019; arXiv:1905.07799): each head learns its reach.

    ```
    weight 1 ────────┐\\            weights are multiplied by m(d) = min(1, max(0, (ramp + z_h - d) / ramp))
           0         z  \\_________  z_h = far sigmoid(span_h)
                        z + ramp
    ```
    The bias is log m, so the weights sum to 1 again. The paper clips z; a sigmoid has a gradient everywhere.

    Args:
        far: the largest z, in tokens. `start`: the initial z; far / 2 by default.
        ramp: tokens over which the weights fall.
        cost: of the mean z, as a share of `far`, in the auxiliary loss "span": shortens the spans.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        far: int,
        start: float | None = None,
        ramp: int = 32,
        cost: float = 0.0,
    ):
        super().__init__()
        self.share = 0.5 if start is None else start / far if far > 0 else 0.0
        if far < 1 or ramp < 1 or not 0 < self.share < 1 or cost < 0:
            raise ValueError(
                "Span: far and ramp must be at least 1, start lies between 0 and far, cost is 0 or more; got "
                f"far={far}, ramp={ramp}, start={start}, cost={cost}"
            )
        self.far, self.ramp, self.cost = far, ramp, cost
        self.span = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.span, math.log(self.share / (1 - self.share)))

    def bias(self, call: Call) -> Bias:
        if self.cost:
            call.flow.add_aux("span", self.cost * self.span.sigmoid().mean())
        return super().bias(call)

    def of_distance(self, ahead: Tensor) -> Tensor:
        wide = torch.promote_types(self.span.dtype, torch.float32)  # HIDDEN is 0 in half precision
        z = self.far * self.span.to(wide).sigmoid()[:, None]  # (H, 1)
        return ((self.ramp + z - ahead.abs()) / self.ramp).clamp(HIDDEN, 1.0).log()


class Distances(ByDistance):
    """A learned bias per head and distance, 0 at first; distances beyond `far` count as `far`. T5's bias
    without buckets, and per layer (Shaw et al., 2018, arXiv:1803.02155, add vectors to the keys instead).

    Parameters: `table` (H, 2 far + 1), from the key `far` before the query to the key `far` after.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, far: int):
        super().__init__()
        if far < 0:
            raise ValueError(
                f"Distances: far, the largest distance with a bias of its own, must be at least 0; got {far}"
            )
        self.far, self.table = far, nn.Parameter(torch.empty(heads, 2 * far + 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)

    def of_distance(self, ahead: Tensor) -> Tensor:
        return self.table[:, ahead.clamp(-self.far, self.far) + self.far]


class Forget(Score, OverTime):
    """The Forgetting Transformer's gates (Lin et al., 2025; arXiv:2503.02130): a key j fades for a query i with every
    token in between.

    ```
    f_t = sigmoid(w_h . x_t + b_h)       bias_ij = log f_{j+1} + … + log f_i     = c_i - c_j, c the running sum
    ```
    It needs no positions. An open gate (f = 1) changes nothing. Decoders only.

    Parameters: `gate` (D to H). State: log f of the keys in the cache, (B, H, S), in float32 at least.
    """

    packs = True

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads, self.gate = heads, nn.Linear(dim, heads)

    def bias(self, call: Call) -> Bias:
        flow: Flow = call.flow
        self.needs_causal(flow)
        wide = torch.promote_types(call.x.dtype, torch.float32)
        logs = F.logsigmoid(self.gate(call.x).to(wide)).mT  # (B, H, T)
        slot = flow.slot(self)
        if slot is not None:
            logs = slot.put(logs, call.view.key)  # (B, H, S)
        if flow.documents is None:
            total = logs.cumsum(-1)
        else:  # a sum per document: one over the row would carry a rounded gradient into earlier ones
            same = flow.documents[:, :, None] == flow.documents[:, None]  # (B, T, T)
            total = logs @ same.triu().to(wide)
        whole = call.view

        def faded(view: View) -> Tensor:
            query, key = view.query - whole.key, view.key - whole.key
            return total[:, :, query : query + view.count, None] - total[:, :, None, key : key + view.keys]

        return faded

    def start(self, batch: int, length: int, like: Tensor) -> Gates:
        wide = torch.promote_types(like.dtype, torch.float32)
        return Gates(like.new_empty(batch, self.heads, 0, dtype=wide))


class Gates(Slot):
    """Decoding state of `Forget`: a number for each head and key, from the key `first` on."""

    def __init__(self, held: Tensor):
        self.held, self.first = held, 0

    def put(self, new: Tensor, first: int) -> Tensor:
        """Adds (B, H, T), drops the keys before `first`, and returns the rest."""
        self.held = torch.cat((self.held, new), -1)[..., first - self.first :]
        self.first = first
        return self.held

    def reorder(self, index: Tensor) -> None:
        self.held = self.held[index]

    def returns_to(self, length: int) -> bool:
        return length >= self.first

    def trim(self, length: int) -> None:
        self.held = self.held[..., : length - self.first]

    @property
    def joins(self) -> bool:
        return True

    def shift(self, count: int) -> None:
        left = self.first + count
        self.held = fronted(self.held, count, 2) if count > 0 else self.held[..., max(0, -left) :]
        self.first = self.first if count > 0 else max(0, left)

    def join(self, other: Gates) -> None:
        seen = self.first + self.held.shape[2]
        self.held = aligned(self.held, other.held, 2)
        self.first = seen - self.held.shape[2]

    def bytes(self) -> int:
        return self.held.nbytes
