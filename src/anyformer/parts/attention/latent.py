"""Latent attention: keys and values of all heads come from one short vector a token, and a decoder caches only that.

B batch, T queries, S keys, D width, H heads, R rank of keys and values, N and P width of a head's part without and
with positions, V width of a head's values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import built, check_option
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.parts.attention.cache import KeysValues, new_cache
from anyformer.parts.attention.kernels import KERNELS, attend, offer
from anyformer.parts.attention.masks import Mask, check_sees, resolved, view
from anyformer.parts.attention.scores import StackBias
from anyformer.parts.norms import RMSNorm
from anyformer.parts.positions import Rotary

NORM, ROTARY = RMSNorm.of(), Rotary.of()


class LatentAttention(Mixer):
    """Multi-head latent attention, MLA (DeepSeek-AI, 2024; arXiv:2405.04434): softmax(scale q k^T) v of each head, with

    ```
    x ─┬─ (q_down ─ norm) ─ q ──┬─ q_n (N)                 q = [q_n, turned q_p]            N + P
       │                        └─ q_p (P) ─ turned
       └─ kv_down ─┬─ norm ─ c (R) ── kv ──┬─ k_n (N)      k = [W_k c, turned k_p]          N + P
                   │                       └─ v   (V)      v = W_v c                        V
                   └─ k_p (P) ─ turned, one for all heads  cached of each token: c, k_p     R + P
    ```
    Grouped attention caches 2 G K numbers a token, this R + P; its heads need not share keys or values for that.

    Two forms give the same numbers. The plain one computes k_n and v of all tokens. The absorbed one keeps them as c:
    q_n (W_k c) = (W_k^T q_n) c, and sum w (W_v c) = W_v (sum w c): H heads over one shared key, R + P wide.
    While decoding, the one with fewer multiplications runs; for T new among S tokens the absorbed one if

    ```
    T (R (N + V) + 2 S (R + P))  <  S (R (N + V) + 2 T max(N + P, V))
    ```
    that is for one token, and for up to 170 after a long text in DeepSeek-V2. It never runs without a state
    (training), nor if `kv` is no plain matrix (adapters, int8). In half precision the two round differently.

    Args:
        heads: H.
        kv_rank: R; 4 N by default, as in the paper. `q_rank`: of the queries, or None: they come from x directly.
        nope_dim: N; width / heads by default. `rope_dim`: P; N / 2, made even, by default; 0 = no shared key.
            `value_dim`: V; N by default.
        bias: of `q_down`, `kv_down` and `o`; the matrices to the heads have none.
        norm: of both latents, or None.
        positions: of the P part alone, `Rotary.of(pairs="adjacent")` for DeepSeek's weights; or None.
        mask, scale, dropout, kernel: as in `Attention`; scale is (N + P)^-1/2 by default.

    Taps: `weights` (B, H, T, S).
    Shape: (B, T, D) -> same. State: (B, 1, S, R + P).
    """

    packs = True

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        kv_rank: int | None = None,
        q_rank: int | None = None,
        nope_dim: int | None = None,
        rope_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = False,
        norm: Recipe[Norm] | None = NORM,
        positions: Recipe[Rotary] | None = ROTARY,
        mask: Mask | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        kernel: str = "auto",
    ):
        super().__init__()
        check_option("LatentAttention", "kernel", kernel, KERNELS)
        if heads < 1 or (nope_dim is None and dim % heads):
            raise ValueError(f"LatentAttention: a width of {dim} does not divide into {heads} heads; give nope_dim")
        self.heads, self.nope_dim = heads, dim // heads if nope_dim is None else nope_dim
        self.rope_dim = max(2, self.nope_dim // 4 * 2) if rope_dim is None else rope_dim
        self.value_dim = self.nope_dim if value_dim is None else value_dim
        self.kv_rank = 4 * self.nope_dim if kv_rank is None else kv_rank
        self._check(q_rank, positions, mask)
        self.head_dim = self.nope_dim + self.rope_dim
        self.q_down = None if q_rank is None else nn.Linear(dim, q_rank, bias)
        self.q = nn.Linear(dim if q_rank is None else q_rank, heads * self.head_dim, bias=False)
        self.kv_down = nn.Linear(dim, self.kv_rank + self.rope_dim, bias)
        self.kv = nn.Linear(self.kv_rank, heads * (self.nope_dim + self.value_dim), bias=False)
        self.o = nn.Linear(heads * self.value_dim, dim, bias)
        ranks = {"kv": self.kv_rank} if q_rank is None else {"q": q_rank, "kv": self.kv_rank}
        self.norm = None if norm is None else nn.ModuleDict({n: norm.build(rank) for n, rank in ranks.items()})
        self.positions = built(positions, self.rope_dim)
        self.mask, self.scale, self.dropout, self.kernel = mask, scale, dropout, kernel

    def _check(self, q_rank: int | None, positions: Recipe[Any] | None, mask: Mask | None) -> None:
        sizes = {"kv_rank": self.kv_rank, "q_rank": q_rank, "nope_dim": self.nope_dim, "value_dim": self.value_dim}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"LatentAttention: {name} is a width and must be at least 1; got {size}")
        if self.rope_dim < 0 or (positions is not None and not self.rope_dim):
            raise ValueError(
                f"LatentAttention: rope_dim is the width that positions turn; got {self.rope_dim} with "
                f"positions={positions!r} (without positions: rope_dim=0, positions=None)"
            )
        if mask is not None:
            check_sees(mask)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        T = x.shape[1]
        q = self.q(x if self.q_down is None else self._normed("q", self.q_down(x)))
        q = q.unflatten(-1, (self.heads, self.head_dim))  # (B, T, H, N + P)
        latent, shared = self.kv_down(x).split([self.kv_rank, self.rope_dim], -1)  # (B, T, R), (B, T, P)
        latent, shared = self._normed("kv", latent), shared[:, :, None]
        if self.positions is not None:
            nope, rope = q.split([self.nope_dim, self.rope_dim], -1)
            q, shared = torch.cat((nope, self.positions(rope, flow)), -1), self.positions(shared, flow)
        q, held = q.transpose(1, 2), torch.cat((latent, shared[:, :, 0]), -1)[:, None]  # (B, 1, T, R + P)
        slot = flow.slot(self)
        if slot is not None:
            (held,) = slot.append(held)  # (B, 1, S, R + P)
        S = held.shape[2]
        key: Any = (self.mask, flow.state and S)  # layers of one kind share the mask and the bias
        seen, mask = flow.once(key, lambda: resolved(view(flow, self.mask, T, S, x.device)))
        stack = flow.find(StackBias)
        bias = None if stack is None else flow.once(("bias", key), lambda: stack(seen))
        absorbed = slot is not None and self.absorbs(T, S)
        q, k, v = self._absorbed(q, held) if absorbed else self._plain(q, held)
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        offer(flow, self, q, k, seen, bias, scale)
        y = attend(q, k, v, seen, mask, bias, scale, self.dropout if self.training else 0.0, self.kernel)
        if absorbed:
            y = y[..., : self.kv_rank] @ self._ups()[1].mT  # (B, H, T, V)
        return self.o(y[..., : self.value_dim].transpose(1, 2).flatten(2))

    def _normed(self, name: str, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm[name](x)

    def absorbs(self, count: int, keys: int) -> bool:
        """True if the absorbed form is faster for `count` new tokens among `keys`."""
        up, wide = self.kv_rank * (self.nope_dim + self.value_dim), max(self.head_dim, self.value_dim)
        less = count * (up + 2 * keys * (self.kv_rank + self.rope_dim)) < keys * (up + 2 * count * wide)
        return less and type(self.kv) is nn.Linear

    def _ups(self) -> tuple[Tensor, Tensor]:
        """W_k (H, N, R) and W_v (H, V, R)."""
        up = self.kv.weight.unflatten(0, (self.heads, -1))
        return up[:, : self.nope_dim], up[:, self.nope_dim :]

    def _absorbed(self, q: Tensor, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, R + P), and the cached tensor as the key and the value of all heads."""
        nope, rope = q.split([self.nope_dim, self.rope_dim], -1)
        return torch.cat((nope @ self._ups()[0], rope), -1), held, held

    def _plain(self, q: Tensor, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head, as wide as the widest: fused kernels need one width."""
        latent, shared = held.split([self.kv_rank, self.rope_dim], -1)
        each = self.kv(latent[:, 0]).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, S, N + V)
        nope, v = each.split([self.nope_dim, self.value_dim], -1)
        k = torch.cat((nope, shared.expand(-1, self.heads, -1, -1)), -1)  # (B, H, S, N + P)
        wide = max(self.head_dim, self.value_dim)
        return _widened(q, wide), _widened(k, wide), _widened(v, wide)

    def start(self, batch: int, length: int, like: Tensor) -> KeysValues:
        return new_cache(self.mask, batch, 1, self.kv_rank + self.rope_dim, length, like, kinds=1)


def _widened(x: Tensor, wide: int) -> Tensor:
    """x with zeros at the end of its last axis."""
    return x if x.shape[-1] == wide else F.pad(x, (0, wide - x.shape[-1]))
