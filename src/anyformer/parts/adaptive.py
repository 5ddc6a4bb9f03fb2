"""Norms and blocks that a vector of the whole row changes: its time, class or text. B batch, T time, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Companion, Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import Part, built
from anyformer.core.recipe import Recipe
from anyformer.core.slots import FeedForward, Norm


@dataclass(frozen=True)
class Told(Companion):
    """The vector that adaptive norms are told about each row, (B, D)."""

    left_by: ClassVar[str] = "the skeleton Denoiser"
    vector: Tensor


class Telling(Part):
    """Base of parts with a linear map of silu(told): `count` changes, (B, 1, D) each, all 0 at first."""

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.told = nn.Linear(dim, count * dim)
        self.count = count

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.told.weight)
        nn.init.zeros_(self.told.bias)

    def changes(self, flow: Flow) -> tuple[Tensor, ...]:
        """The changes of each row."""
        vector = flow.get(Told, type(self).__name__).vector
        return self.told(F.silu(vector))[:, None].chunk(self.count, -1)


class AdaptiveNorm(Telling):
    """y = norm(x) (1 + scale) + shift, where [shift, scale] = W silu(told) + b (Perez et al., 2017, "FiLM";
    arXiv:1709.07871; Peebles and Xie, 2022; arXiv:2212.09748). Shape: (B, T, D) -> same.

    Args:
        norm: of x, usually without weights of its own: `PlainNorm.of()`.
    """

    def __init__(self, dim: int, norm: Recipe[Norm]):
        super().__init__(dim, 2)
        self.norm = norm.build(dim)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        shift, scale = self.changes(flow)
        return moved(self.norm(x), shift, scale)


class Side(Telling):
    """One stream of a block, without the mixer that it shares with other streams: adaptive norms, a feed-forward part,
    and at the end of each branch a gate, 0 at first (adaLN-zero).

    ```
    x ──┬── norm, shift, scale ── the shared mixer ── gate ──(+)─┬── norm, shift, scale ── ffn ── gate ──(+)──
        ├── norm, shift, scale ── own ────────────── gate ──(+)  │                                      │
        └───────────────────────────────────────────────────(+)──┴──────────────────────────────────────┘
    ```
    Args:
        norm: of each branch's input: {"mixer": PlainNorm.of(), "ffn": PlainNorm.of()}.
        ffn: feed-forward part.
        own: a second mixer beside the shared one, for this stream alone (Stable Diffusion 3.5), or None.
    """

    def __init__(
        self,
        dim: int,
        norm: Mapping[str, Recipe[Norm]],
        ffn: Recipe[FeedForward],
        own: Recipe[Mixer] | None = None,
    ):
        super().__init__(dim, 6 if own is None else 9)
        if set(norm) != {"mixer", "ffn"}:
            raise ValueError(f"Side: norm has the entries 'mixer' and 'ffn'; got {', '.join(norm) or 'none'}")
        self.norm = nn.ModuleDict({name: norm[name].build(dim) for name in ("mixer", "ffn")})
        self.ffn, self.own = ffn.build(dim), built(own, dim)

    def enter(self, x: Tensor, flow: Flow) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The input of the shared mixer, and the changes for `leave`."""
        changes = self.changes(flow)
        return moved(self.norm["mixer"](x), *changes[:2]), changes

    def leave(self, x: Tensor, y: Tensor, changes: tuple[Tensor, ...], flow: Flow) -> Tensor:
        """The stream after the block, from `x` before it and the output `y` of the shared mixer."""
        after = x + changes[2] * y
        if self.own is not None:
            shift, scale, gate = changes[6:]
            after = after + gate * self.own(moved(self.norm["mixer"](x), shift, scale), flow)
        shift, scale, gate = changes[3:6]
        return after + gate * self.ffn(moved(self.norm["ffn"](after), shift, scale), flow)


class Adaptive(Side):
    """A block with adaptive norms and gates that are 0 at first: the block is the identity then (DiT: Peebles and Xie,
    2022; arXiv:2212.09748).

    Args:
        mixer: over time. Others: as of `Side`.

    Shape: (B, T, D) -> same.
    """

    def __init__(self, dim: int, mixer: Recipe[Mixer], norm: Mapping[str, Recipe[Norm]], ffn: Recipe[FeedForward]):
        super().__init__(dim, norm, ffn)
        self.mixer = mixer.build(dim)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        inside, changes = self.enter(x, flow)
        return self.leave(x, self.mixer(inside, flow), changes, flow)


def moved(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift"""
    return x * (1 + scale) + shift
