"""Mixture of experts: many feed-forward parts in one slot, of which each token uses a few.

```
           ┌─ router ── the experts and their weights ────┐
x (B,T,D) ─┼─ tokens sorted by expert ─ expert 0 … E-1 ───┴─ weighted sum at each token ─(+)──> y (B,T,D)
           └─ shared expert, if any: every token ────────────────────────────────────────┘
```
A token without an expert (all are full) and padding get y = 0: in a block only the residual carries them.

Capacity is counted within one text (a row, or a packed document), in the order of its real tokens: no text depends on
other rows, no token on later ones, and decoding continues the count. `transformers` counts padding and, while
decoding, restarts in each call.

B batch, T tokens, D width, E experts, N routed pairs of token and expert.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from anyformer.core import checks
from anyformer.core.flow import Flow
from anyformer.core.mixer import OverTime
from anyformer.core.part import built
from anyformer.core.recipe import Recipe
from anyformer.core.slots import FeedForward
from anyformer.core.state import Slot, aligned, fronted


def load_balance(probabilities: Tensor, chosen: Tensor, keep: Tensor | None = None) -> Tensor:
    """E * sum of f P over experts: f an expert's share of tokens, P its mean probability. Padding is not counted.

    For top-1 it is eq. 4 of Switch (Fedus et al., 2021; arXiv:2101.03961); for top-k, f sums to k, as for Mixtral in
    `transformers`. Even routing gives k, all tokens at one expert up to E.

    Shapes: probabilities (..., E), chosen (..., E) bool, keep (...) True = real -> a number.
    """
    share, mean = _mean(chosen.to(probabilities.dtype), keep), _mean(probabilities, keep)  # (E,) each
    return probabilities.shape[-1] * (share * mean).sum()


def router_z(logits: Tensor, keep: Tensor | None = None) -> Tensor:
    """The mean of logsumexp(logits)^2: keeps the router's logits small (ST-MoE; Zoph et al., 2022; arXiv:2202.08906).

    Shapes: logits (..., E), keep (...) True = real -> a number. Padding is not counted.
    """
    return _mean(logits.logsumexp(-1, keepdim=True).square(), keep)[0]


def _mean(x: Tensor, keep: Tensor | None) -> Tensor:
    """(..., E) to (E,): the mean over all real tokens."""
    flat = x.flatten(0, -2)
    if keep is None:
        return flat.mean(0)
    return flat.masked_fill(~keep.reshape(-1, 1), 0.0).sum(0) / keep.sum().clamp(min=1)


class Sent(Slot):
    """The experts of each token so far: the state of a capacity while decoding."""

    def __init__(self, batch: int, experts: int, room: int, like: Tensor):
        self.memory = torch.zeros(batch, room, experts, dtype=torch.bool, device=like.device)  # (B, room, E)
        self.length = 0

    def append(self, chosen: Tensor) -> Tensor:
        """Appends (B, T, E); returns the earlier tokens of each expert, (B, 1, E)."""
        before = self.memory[:, : self.length]
        self.length += chosen.shape[1]
        if self.length > self.memory.shape[1]:
            self.memory = torch.cat((before, chosen), 1)
        else:
            self.memory[:, before.shape[1] : self.length] = chosen
        return before.sum(1, keepdim=True)

    def reorder(self, index: Tensor) -> None:
        self.memory = self.memory[index]

    def trim(self, length: int) -> None:
        self.length = length

    @property
    def joins(self) -> bool:
        return True

    def shift(self, count: int) -> None:
        if self.length:  # without a capacity nothing is counted
            self.memory = fronted(self.memory[:, : self.length], count, 1) if count > 0 else self.memory[:, -count:]
            self.length += count

    def join(self, other: Sent) -> None:
        self.memory = aligned(self.memory[:, : self.length], other.memory[:, : other.length], 1)

    def bytes(self) -> int:
        return self.memory.nbytes


class Router(OverTime):
    """Base of routers: logits = proj(x), in float32 for every type of the model; in training with noise on x.

    Called as `router(x, flow)`, it returns `weights` (B, T, E), the weights of the experts' outputs, and `sent`
    (B, T, E) bool, the chosen experts. It adds its losses to the flow.
    """

    def __init__(self, dim: int, experts: int, jitter: float, z: float, bias: bool):
        super().__init__()
        if experts < 1:
            raise ValueError(f"{type(self).__name__} needs at least 1 expert; got experts={experts}")
        if not 0 <= jitter < 1:
            raise ValueError(f"{type(self).__name__}: jitter must be at least 0 and below 1; got {jitter}")
        self.proj = nn.Linear(dim, experts, bias)
        self.experts, self.jitter, self.z = experts, jitter, z

    def logits(self, x: Tensor, flow: Flow) -> Tensor:
        """(B, T, D) -> (B, T, E), float32."""
        if self.training and self.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                logits = self._product(x)
        else:
            logits = self._product(x)
        if self.training and self.z:
            flow.add_aux("router_z", self.z * router_z(logits, flow.keep_now(x.shape[1])))
        return logits

    def pairs(self, batch: int, time: int) -> int:
        """The pairs of token and expert of (batch, time) tokens, none of which is dropped."""
        raise NotImplementedError

    def _product(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, E), float32: rounded inputs would turn near logits into ties, and change experts."""
        short = {n: p for n, p in self.proj.named_parameters() if p.is_floating_point() and p.itemsize < 4}
        if not short:
            return self.proj(x.to(torch.promote_types(x.dtype, torch.float32))).float()
        return functional_call(self.proj, {n: p.float() for n, p in short.items()}, (x.float(),))


def _real(x: Tensor, flow: Flow) -> Tensor:
    """(B, T) True = no padding."""
    keep = flow.keep_now(x.shape[1])
    return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if keep is None else keep


def _places(a_token: float, real: Tensor, experts: int, flow: Flow) -> Tensor:
    """Capacity of each expert for a text with so many experts a token, evenly spread: ceil(a_token * n / E), (B, 1, 1),
    or with documents (B, T, 1)."""
    count = real.sum(1)[:, None, None] if flow.documents is None else flow.length()
    return (a_token * count / experts).ceil().long()


def _rank(chosen: Tensor, flow: Flow) -> Tensor:
    """The rank of each token among those of its text at each expert, from 1: (B, T, E) bool -> whole numbers."""
    rank = chosen.cumsum(1)
    if flow.documents is None:
        return rank
    first = torch.arange(rank.shape[1], device=rank.device) - flow.positions  # (B, T) index of its document's start
    return rank - (rank - chosen.long()).gather(1, first[..., None].expand_as(rank))


class TopK(Router):
    """Each token picks its `top` likeliest experts: Switch with top 1, Mixtral (Jiang et al., 2024; arXiv:2401.04088)
    with top 2 and renormalised weights.

    Args:
        experts: E.
        top: experts a token.
        renormalise: a token's weights sum to 1 over the chosen ones; else they are the plain probabilities. With top 1
            a renormalised weight is always 1, and the router learns from its losses only.
        capacity: tokens of one text that an expert takes; later ones are dropped. None = all.
        factor: in training, the same as a multiple of an even share: ceil(factor * top * tokens / E). Evaluation and
            decoding drop nothing by it, so that a token never depends on the final length of the text.
        balance: weight of the loss `load_balance`. `z`: of `router_z`. Both in training only.
        jitter: in training the router sees x times a random factor within 1 - jitter and 1 + jitter (Switch). The
            experts see x itself; in `transformers` they see the noise, too.
        bias: of the router.
    """

    packs = True

    def __init__(
        self,
        dim: int,
        experts: int,
        top: int = 1,
        renormalise: bool = False,
        capacity: int | None = None,
        factor: float | None = None,
        balance: float = 0.01,
        z: float = 0.0,
        jitter: float = 0.0,
        bias: bool = False,
    ):
        super().__init__(dim, experts, jitter, z, bias)
        if not 1 <= top <= experts:
            raise ValueError(f"TopK: top must be within 1 and experts={experts}; got {top}")
        if capacity is not None and capacity < 1:
            raise ValueError(f"TopK: capacity must be at least 1 token, or None; got {capacity}")
        if factor is not None and not factor > 0:
            raise ValueError(f"TopK: factor must be above 0, or None; got {factor}")
        self.top, self.renormalise, self.balance = top, renormalise, balance
        self.capacity, self.factor = capacity, factor

    def start(self, batch: int, length: int, like: Tensor) -> Sent:
        return Sent(batch, self.experts, 0 if self.capacity is None else length, like)

    def pairs(self, batch: int, time: int) -> int:
        return batch * time * self.top

    def forward(self, x: Tensor, flow: Flow) -> tuple[Tensor, Tensor]:
        p = self.logits(x, flow).softmax(-1)  # (B, T, E)
        chosen = torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(self.top, -1).indices, True)
        weights = p * chosen
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        if self.training and self.balance:
            flow.add_aux("balance", self.balance * load_balance(p, chosen, flow.keep_now(x.shape[1])))
        real = _real(x, flow)
        chosen = chosen & real[..., None]
        sent = self._taken(chosen, real, flow)
        if self.training:
            flow.report("usage", sent.sum((0, 1)) / (self.top * real.sum()).clamp(min=1))  # (E,)
        return weights * sent, sent

    def _taken(self, chosen: Tensor, real: Tensor, flow: Flow) -> Tensor:
        """(B, T, E) within the capacity of each expert, first come, first served."""
        sent, rank = chosen, _rank(chosen, flow)
        if self.capacity is not None:
            slot = flow.slot(self)
            sent = sent & (rank + (0 if slot is None else slot.append(chosen)) <= self.capacity)
        if self.training and self.factor is not None:
            sent = sent & (rank <= _places(self.factor * self.top, real, self.experts, flow))
        return sent


class ExpertChoice(Router):
    """Each expert picks its likeliest tokens of a sequence, ceil(factor * tokens / E): even use without a loss (Zhou et
    al., 2022; arXiv:2202.09368). A token meets `factor` experts on average; some meet none.

    Not causal: the choice of a token depends on the later ones, so a causal decoder refuses it.

    Args:
        experts: E.
        factor: experts a token, on average.
        z, jitter, bias: as in `TopK`.
    """

    def __init__(
        self, dim: int, experts: int, factor: float = 2.0, z: float = 0.0, jitter: float = 0.0, bias: bool = False
    ):
        super().__init__(dim, experts, jitter, z, bias)
        if not factor > 0:
            raise ValueError(f"ExpertChoice: factor must be above 0; got {factor}")
        self.factor = factor

    def pairs(self, batch: int, time: int) -> int:
        return batch * self.experts * min(time, math.ceil(self.factor * time / self.experts))

    def forward(self, x: Tensor, flow: Flow) -> tuple[Tensor, Tensor]:
        if flow.causal:
            raise ValueError(
                "ExpertChoice is not causal: experts choose among all tokens of a sequence, later ones included; "
                "give a decoder TopK.of(...)"
            )
        p, real = self.logits(x, flow).softmax(-1), _real(x, flow)  # (B, T, E), (B, T)
        order = p.masked_fill(~real[..., None], -1.0).argsort(dim=1, descending=True, stable=True)
        sent = (order.argsort(1) < _places(self.factor, real, self.experts, flow)) & real[..., None]
        if self.training:
            flow.report("usage", sent.sum((0, 1)) / sent.sum().clamp(min=1))  # (E,)
        return p * sent, sent


class MoE(FeedForward):
    """y = sum of weight * expert(x), over the few experts that the router picks for each token, + shared(x).

    `MoE.of(router=TopK.of(experts=8, top=2), expert=GatedMLP.of(hidden=512))` in a block's `ffn`. Experts are ordinary
    parts at `ffn.experts.3`, so that rewrites of linear layers find theirs; each one sees all its tokens at once,
    (N, D), and must treat each alone. With gradients, an expert without tokens runs on none:
    its gradient is 0, not absent.

    Args:
        router: `TopK.of(...)` or `ExpertChoice.of(...)`; it has the number of experts.
        expert: recipe of each expert.
        shared: an expert for every token beside the routed ones (DeepSeekMoE; Dai et al., 2024; arXiv:2401.06066), or
            None. Several shared experts are one that is as many times wider.

    Taps: `weights` (B, T, E), of each expert at each token; `usage` (E,), each one's share of the real tokens.

    Shape: (B, T, D) -> same.
    """

    def __init__(
        self, dim: int, router: Recipe[Router], expert: Recipe[FeedForward], shared: Recipe[FeedForward] | None = None
    ):
        super().__init__()
        self.router = router.build(dim)
        self.experts = nn.ModuleList(expert.build(dim) for _ in range(self.router.experts))
        self.shared = built(shared, dim)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        weights, sent = self.router(x, flow)  # (B, T, E) each
        if flow.taps is not None:
            self._tell(flow.taps, weights, sent, flow.keep_now(x.shape[1]))
        if torch.compiler.is_exporting():  # a program for any input has no lists of tokens
            y = self._everywhere(x, weights, flow)
        elif checks.shapeless(x) and not torch.compiler.is_compiling():
            y = self._evenly(x, weights, flow)
        else:
            y = self._grouped(x, weights, sent, flow)
        return y if self.shared is None else y + self.shared(x, flow)

    def _grouped(self, x: Tensor, weights: Tensor, sent: Tensor, flow: Flow) -> Tensor:
        """The output with tokens sorted by expert, each expert once over its own."""
        flat = x.flatten(0, 1)  # (B T, D)
        counts = sent.sum((0, 1)).tolist()
        expert, token = sent.flatten(0, 1).T.nonzero(as_tuple=True)  # (N,) each, in the order of experts
        groups = zip(self.experts, flat[token].split(counts), strict=True)
        answers = [part(group, flow) for part, group in groups if len(group) or torch.is_grad_enabled()]  # (n, D) each
        if not answers:
            return torch.zeros_like(x)
        rows = torch.cat(answers)  # (N, D)
        rows = rows * weights.flatten(0, 1)[token, expert, None].to(rows.dtype)
        return rows.new_zeros(flat.shape).index_add(0, token, rows).view(x.shape)

    def _everywhere(self, x: Tensor, weights: Tensor, flow: Flow) -> Tensor:
        """The output with every expert over every token: the same numbers, E / top times the work."""
        y = torch.zeros_like(x)
        for part, weight in zip(self.experts, weights.to(x.dtype).unbind(-1), strict=True):  # weight (B, T)
            y = y + part(x, flow) * weight[..., None]
        return y

    def _evenly(self, x: Tensor, weights: Tensor, flow: Flow) -> Tensor:
        """The shapes of `_grouped` where nothing has content: the experts share the pairs evenly."""
        flat = x.flatten(0, 1)  # (B T, D)
        count = self.router.pairs(*x.shape[:2])
        token = torch.arange(count, device=x.device) % len(flat)  # (N,)
        groups = zip(self.experts, flat[token].tensor_split(len(self.experts)), strict=True)
        rows = torch.cat([part(group, flow) for part, group in groups if len(group) or torch.is_grad_enabled()])
        rows = rows * weights.flatten(0, 1)[token, :1].to(rows.dtype)
        return rows.new_zeros(flat.shape).index_add(0, token, rows).view(x.shape)

    def _tell(self, taps: Any, weights: Tensor, sent: Tensor, keep: Tensor | None) -> None:
        if taps.wants(self, "weights"):
            taps.put(self, "weights", weights)
        if taps.wants(self, "usage"):
            taps.put(self, "usage", _mean(sent.to(weights.dtype), keep))
