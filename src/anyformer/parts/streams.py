"""Two streams in one sequence, each with parts of its own, which attend to one another: a picture and its text.

B batch, T positions of the first stream, S of the second, D width, H heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anyformer.core.flow import Companion, Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.parts.adaptive import AdaptiveNorm, Side
from anyformer.parts.attention.heads import width
from anyformer.parts.attention.kernels import attend, offer
from anyformer.parts.attention.masks import Full, View, resolved
from anyformer.parts.embeddings import Cells
from anyformer.parts.heads import Kept


@dataclass(frozen=True)
class Border(Companion):
    """The number of positions of the first of two streams in one sequence."""

    left_by: ClassVar[str] = "a Denoiser with a text"
    per_position: ClassVar[bool] = True
    first: int


class Heads(Part):
    """The projections of one stream to heads, with biases. Shape: (B, T, D) -> q, k, v, (B, H, T, K) each.

    Args:
        heads: H.
        norm: of each head's q and k, or None.
        asks: False: the stream is read by others and asks nothing; files hold its q all the same, and here it is kept.
    """

    def __init__(self, dim: int, heads: int, norm: Recipe[Norm] | None = None, asks: bool = True):
        super().__init__()
        if heads < 1:
            raise ValueError(f"JointAttention: heads must be at least 1, got {heads}")
        self.heads = heads
        self.head_dim = width("JointAttention", dim, heads, None)
        self.q: Any = nn.Linear(dim, dim) if asks else Kept(dim)
        self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.o: Any = nn.Linear(dim, dim) if asks else None
        self.norm = None
        if norm is not None:
            asked = norm if asks else Kept.of(held=norm)
            self.norm = nn.ModuleDict({"q": asked.build(self.head_dim), "k": norm.build(self.head_dim)})

    def made(self, name: str, x: Tensor) -> Tensor:
        """One of q, k, v."""
        y = getattr(self, name)(x).unflatten(-1, (self.heads, self.head_dim))  # (B, T, H, K)
        if self.norm is not None and name != "v":
            y = self.norm[name](y)
        return y.transpose(1, 2)


class JointAttention(Mixer):
    """Attention of two streams with projections of their own: every position sees all of both (Esser et al., 2024;
    arXiv:2403.03206, figure 2b).

    ```
    first   (B, T, D) ── q, k, v ──┐                         ┌── o ── (B, T, D)
                                   ├── softmax(q k^T) v ─────┤
    second  (B, S, D) ── q, k, v ──┘                         └── o ── (B, S, D)
    ```
    Padding of the second stream is seen by nobody where a mask is given.

    Args:
        heads: H, of both.
        norm: of each head's q and k, one for each stream: `RMSNorm.of(eps=1e-6)`, or None.

    Shape: (B, T + S, D) -> same.
    """

    continues: ClassVar[bool] = True  # False: the second stream is only read, and ends here

    def __init__(self, dim: int, heads: int, norm: Recipe[Norm] | None = None):
        super().__init__()
        self.first, self.second = Heads(dim, heads, norm), Heads(dim, heads, norm, asks=self.continues)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_both_ways(flow)
        border = flow.get(Border, "JointAttention").first
        sides = (self.first, x[:, :border]), (self.second, x[:, border:])
        k, v = (torch.cat([side.made(name, part) for side, part in sides], 2) for name in "kv")  # (B, H, T + S, K)
        asking = [(side, part) for side, part in sides if side.o is not None]
        q = torch.cat([side.made("q", part) for side, part in asking], 2)
        count, every = q.shape[2], k.shape[2]
        view = View(Full(), 0, count, 0, every, flow.keep, x.device)
        seen, mask = flow.once(("joint", count == every), lambda: resolved(view))
        offer(flow, self, q, k, seen)
        y = attend(q, k, v, seen, mask).transpose(1, 2).flatten(2)  # (B, T + S or T, D)
        outs = [self.first.o(y[:, :border])]
        return torch.cat([*outs, *(side.o(y[:, border:]) for side, _ in asking[1:])], 1)


class LastJointAttention(JointAttention):
    """A `JointAttention` that reads the second stream and gives the first one alone. Shape: (B, T + S, D) -> (B, T,
    D)."""

    continues = False


class JointBlock(Part):
    """One layer of two streams: joint attention, and around it norms, gates and a feed-forward part of each stream
    (MMDiT: Esser et al., 2024; arXiv:2403.03206).

    Args:
        mixer: of both.
        first, second: the streams. With LastJointAttention the second is an AdaptiveNorm, which prepares that stream to
            be read for the last time; what follows has the first one alone.

    Shape: (B, T + S, D) -> same, or (B, T, D).
    """

    def __init__(
        self,
        dim: int,
        mixer: Recipe[JointAttention],
        first: Recipe[Side],
        second: Recipe[Side] | Recipe[AdaptiveNorm],
    ):
        super().__init__()
        self.mixer, self.first, self.second = mixer.build(dim), first.build(dim), second.build(dim)
        if isinstance(self.second, Side) != self.mixer.continues:
            raise ValueError(
                "JointBlock: LastJointAttention goes with an AdaptiveNorm as second, JointAttention with a Side"
            )

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        border = flow.get(Border, "JointBlock").first
        one, other = x[:, :border], x[:, border:]
        inside, changes = self.first.enter(one, flow)
        if isinstance(self.second, Side):
            beside, others = self.second.enter(other, flow)
            y = self.mixer(torch.cat((inside, beside), 1), flow)
            other = self.second.leave(other, y[:, border:], others, flow)
        else:
            y = self.mixer(torch.cat((inside, self.second(other, flow)), 1), flow)
        one = self.first.leave(one, y[:, :border], changes, first_alone(flow))
        return torch.cat((one, other), 1) if isinstance(self.second, Side) else one

    def behind(self, flow: Flow) -> Flow:
        return flow if isinstance(self.second, Side) else first_alone(flow)


def joined(first: Tensor, second: Tensor, flow: Flow, keep: Tensor | None) -> tuple[Tensor, Flow]:
    """Two streams as one sequence, and its flow. `keep`: the padding mask of the second one, (B, S), or None."""
    count, every = first.shape[1], first.shape[1] + second.shape[1]
    if keep is not None:
        keep = torch.cat((keep.new_ones(first.shape[0], count), keep), 1)
    whole = flow.inside(torch.arange(every, device=first.device), keep)
    whole.put(Border(count))
    if (cells := flow.find(Cells)) is not None:
        whole.put(cells)
    return torch.cat((first, second), 1), whole


def first_alone(flow: Flow) -> Flow:
    """The flow of the first stream alone, which has no padding."""
    alone = flow.inside(flow.positions[: flow.get(Border, "JointBlock").first], None)
    if (cells := flow.find(Cells)) is not None:
        alone.put(cells)
    return alone
