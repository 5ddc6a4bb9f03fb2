"""Attention: one part, whose variants are options.

B batch, T queries, S keys, D width, H heads, G key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import built, check_option
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.parts.attention.cache import Frozen, KeysValues, new_cache
from anyformer.parts.attention.heads import width
from anyformer.parts.attention.kernels import KERNELS, attend, offer
from anyformer.parts.attention.masks import Causal, Full, Mask, View, check_sees, resolved, view
from anyformer.parts.attention.scores import Bias, Call, Score, StackBias, changed, made
from anyformer.parts.attention.where import Where
from anyformer.parts.positions import Rotary
from anyformer.parts.products import narrowed, product


class Attention(Mixer):
    """Scaled dot-product attention with heads (Vaswani et al., 2017; arXiv:1706.03762):
    softmax(cap(scale * q k^T) + bias) v.

    ```
    heads = 4, kv_heads = 4      kv_heads = 2 (grouped)       kv_heads = 1 (multi-query)
    q  1  2  3  4                q  1  2  3  4                q  1  2  3  4
       |  |  |  |                   \\ /    \\ /                   \\  \\ /  /
    kv 1  2  3  4                kv  1      2                 kv      1
    ```

    Args:
        heads: H. `kv_heads`: G, a divisor of H; H by default (Ainslie et al., 2023; arXiv:2305.13245).
        head_dim: K; width / heads by default.
        bias: of the projections q, k, v, or the letters of those that have one: "qv"; `out_bias`: of o; by default
            True if any of them has one.
        norm: of each head's q and k, before the positions: `RMSNorm.of()` for QK-norm (Henry et al., 2020;
            arXiv:2010.04245), or None.
        positions: `Rotary.of(...)`, or None. The relative bias of a stack (T5) and vectors of places (DETR's `Where`)
            come with the flow.
        mask: the visible pairs, e.g. `Window(255)`; a decoder hides the future under every mask.
        cross: keys and values come from the encoder's memory.
        scale: of the scores; K^-1/2 by default.
        scores: the parts that change the scores, e.g. `[Alibi.of()]`: see `anyformer.parts.attention.scores`.
        dropout: of the weights, in training.
        kernel: see `anyformer.parts.attention.kernels`; all give the same numbers.

    Taps: `weights` (B, H, T, S). Recording never changes the output.
    Shape: (B, T, D) -> same.
    """

    packs = True

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool | str = True,
        out_bias: bool | None = None,
        norm: Recipe[Norm] | None = None,
        positions: Recipe[Rotary] | None = None,
        mask: Mask | None = None,
        cross: bool = False,
        scale: float | None = None,
        scores: Sequence[Recipe[Score]] = (),
        dropout: float = 0.0,
        kernel: str = "auto",
    ):
        super().__init__()
        check_option("Attention", "kernel", kernel, KERNELS)
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        if heads < 1 or self.kv_heads < 1:
            raise ValueError(
                f"Attention: heads and kv_heads must be at least 1; got heads={heads}, kv_heads={kv_heads}"
            )
        self.head_dim = width("Attention", dim, heads, head_dim)
        if heads % self.kv_heads:
            raise ValueError(f"Attention: kv_heads={self.kv_heads} does not divide heads={heads}")
        if cross and not (mask is None and positions is None):
            raise ValueError(
                "Attention: cross=True attends to all of the encoder's output, whose positions are not the target's; "
                "leave mask and positions out of that branch"
            )
        if mask is not None:
            check_sees(mask)
        if isinstance(bias, str) and (not bias or set(bias) - set("qkv")):
            raise ValueError(f"Attention: bias is True, False, or some of the letters q, k, v; got {bias!r}")
        biased = {n: n in bias if isinstance(bias, str) else bias for n in "qkv"}
        self.q = nn.Linear(dim, heads * self.head_dim, biased["q"])
        self.k = nn.Linear(dim, self.kv_heads * self.head_dim, biased["k"])
        self.v = nn.Linear(dim, self.kv_heads * self.head_dim, biased["v"])
        self.o = nn.Linear(heads * self.head_dim, dim, bool(bias) if out_bias is None else out_bias)
        self.norm = None if norm is None else nn.ModuleDict({n: norm.build(self.head_dim) for n in ("q", "k")})
        self.positions = built(positions, self.head_dim)
        self.mask, self.cross, self.scale, self.dropout, self.kernel = mask, cross, scale, dropout, kernel
        parts = made(scores, dim, heads, self.head_dim, cross)
        self.scores: Any = nn.ModuleList(parts) if parts else None
        self._shared = (repr(scores), heads) if all(s.fixed for s in parts) else None

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        T, where, given = x.shape[1], flow.find(Where), x
        asked = self._asked(given, where, flow)
        at = narrowed(asked)
        x = at if asked is given else narrowed(given)
        q = self._normed("q", self._split(product(self.q, at), self.heads))  # (B, T, H, K)
        if self.cross:
            k, v = self._memory(flow, where)
            key: Any = "cross"
            bias: Tensor | Bias | None = None
            theirs = None if flow.memory is None else flow.memory.keep
            seen, mask = flow.once(key, lambda: resolved(View(Full(), 0, T, 0, k.shape[2], theirs, x.device)))
        else:
            q, k, v = self._self(x, at, q, flow)
            key = (self.mask, flow.state and k.shape[2])  # layers of one kind share the mask and the bias
            seen, mask = flow.once(key, lambda: resolved(view(flow, self.mask, T, k.shape[2], x.device)))
            stack = flow.find(StackBias)
            bias = None if stack is None else flow.once(("bias", key), lambda: stack(seen))
        q, cap = q.transpose(1, 2), None  # (B, H, T, K)
        if self.scores is not None:
            q, bias, cap = self._changed(given, q, seen, key, flow)
        offer(flow, self, q, k, seen, bias, self.scale, cap)
        y = attend(q, k, v, seen, mask, bias, self.scale, self.dropout if self.training else 0.0, self.kernel, cap)
        return product(self.o, y.transpose(1, 2).flatten(2))

    def skips_gaps(self) -> bool:
        return isinstance(self.mask, Full | Causal | None) and self.scores is None

    def _asked(self, x: Tensor, where: Where | None, flow: Flow) -> Tensor:
        """What queries and keys are made of; values are made of x. (B, T, D)"""
        return x if where is None else x + where.vectors.to(x.dtype)

    def _normed(self, name: str, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm[name](x)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim))  # (B, T, heads, K)

    def _self(self, x: Tensor, at: Tensor, q: Tensor, flow: Flow) -> tuple[Tensor, Tensor, Tensor]:
        """Keys (of `at`) and values of all tokens so far, (B, G, S, K), and the queries with their positions."""
        k, v = (self._split(product(p, y), self.kv_heads) for p, y in ((self.k, at), (self.v, x)))  # (B, T, G, K) each
        k = self._normed("k", k)
        if self.positions is not None:
            q, k = self.positions(q, flow), self.positions(k, flow)
        k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, G, T, K)
        slot = flow.slot(self)
        return (q, k, v) if slot is None else (q, *slot.append(k, v))

    def _memory(self, flow: Flow, where: Where | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's memory, (B, G, S, K); computed once, then cached in the state."""
        if flow.memory is None:
            raise ValueError(
                "Attention with cross=True needs an encoder's output; use it in the decoder of an EncoderDecoder"
            )
        slot = flow.slot(self)
        if slot is not None and slot.length:
            return slot.k, slot.v
        x = flow.memory.stream
        at = x if where is None or where.memory is None else x + where.memory.to(x.dtype)
        k, v = (self._split(product(p, y), self.kv_heads) for p, y in ((self.k, at), (self.v, x)))
        k, v = self._normed("k", k).transpose(1, 2), v.transpose(1, 2)  # (B, G, S, K) each
        return (k, v) if slot is None else slot.append(k, v)

    def _changed(
        self, x: Tensor, q: Tensor, seen: View, key: Any, flow: Flow
    ) -> tuple[Tensor, Tensor | Bias | None, float | None]:
        """Queries, bias and cap after the score parts. In a long text the bias stays a function, computed in pieces."""
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        stack = None if self.cross else flow.find(StackBias)
        q, bias, cap = changed(self.scores, Call(x, q, scale, seen, flow), stack)
        if bias is None or seen.long() or seen.heavy():
            return q, bias, cap
        if self._shared is None:
            return q, bias(seen), cap
        return q, flow.once((self._shared, key), lambda: bias(seen)), cap  # layers of one kind have the same

    def start(self, batch: int, length: int, like: Tensor) -> KeysValues:
        if self.cross:
            return Frozen(batch, self.kv_heads, self.head_dim, 0, like)
        return new_cache(self.mask, batch, self.kv_heads, self.head_dim, length, like)
