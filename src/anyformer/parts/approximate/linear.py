"""Linear attention: a product of features in place of the softmax, so that the past is a sum of fixed size.

B batch, T time, D width, H heads, K head width, M features of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import check_option
from anyformer.parts.attention.heads import width
from anyformer.parts.fused import elu_plus_one, relative_exp
from anyformer.parts.recurrent.chunked import CHUNK, Recurrent, decayed, implied, piecewise

NEVER = float("-inf")  # the log-size of an empty sum

FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": elu_plus_one,  # the paper's
    "relu": F.relu,
    "square": lambda x: F.relu(x).square(),
    "exp": torch.exp,
    "softmax": lambda x: x.softmax(-1),  # over the features of one token (Shen et al., 2018; arXiv:1812.01243)
}


class LinearAttention(Mixer):
    """Attention without softmax (Katharopoulos et al., 2020; arXiv:2006.16236).

    ```
    y_t = sum_s f(q_t).f(k_s) v_s / sum_s f(q_t).f(k_s)     over s <= t in a decoder, over all s in an encoder
        = S_t^T f(q_t) / z_t.f(q_t)       S_t = S_{t-1} + f(k_t) v_t^T        z_t = z_{t-1} + f(k_t)
    ```
    The first line is attention with the weights f(q).f(k), the second one a recurrence with a state of fixed size. A
    text is computed in chunks, the first line inside them and the second between them. Time and memory are linear in T.

    If the denominator is 0 (no visible key, `relu` features without overlap) y is 0. Others add 1e-6 to it instead.

    Args:
        heads: H. `head_dim`: K; width / heads by default.
        feature: f, one of `FEATURES`, all non-negative.
        bias: of the projections q, k, v; `out_bias`: of o, the same by default.
        chunk: tokens of a chunk; the number does not change the result.

    Shape: (B, T, D) -> same. State: S and z, (B, H, M, K + 1), in float32 at least; M = K here.
    """

    maps = True

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        feature: str = "elu",
        bias: bool = True,
        out_bias: bool | None = None,
        chunk: int = CHUNK,
    ):
        super().__init__()
        name = type(self).__name__
        check_option(name, "feature", feature, self.known())
        if heads < 1 or chunk < 1 or (head_dim is not None and head_dim < 1):
            raise ValueError(
                f"{name}: heads, head_dim and chunk must be at least 1; got {heads}, {head_dim} and {chunk}"
            )
        self.heads, self.head_dim = heads, width(name, dim, heads, head_dim)
        self.feature, self.chunk = feature, chunk
        self.q, self.k, self.v = (nn.Linear(dim, heads * self.head_dim, bias) for _ in range(3))
        self.o = nn.Linear(heads * self.head_dim, dim, bias if out_bias is None else out_bias)

    @classmethod
    def known(cls) -> tuple[str, ...]:
        """The allowed values of `feature`."""
        return tuple(FEATURES)

    @property
    def count(self) -> int:
        """M, features of a head."""
        return self.head_dim

    def features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """f(x) = features * exp(size), (B, H, T, K) -> (B, H, T, M) and (B, H, T); a size of None is 0."""
        return FEATURES[self.feature](x), None

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        slot, keep = flow.slot(self), flow.keep_now(x.shape[1])
        wide = torch.promote_types(x.dtype, torch.float32)  # sums over the whole text
        q, k, v = (
            p(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2).to(wide) for p in (self.q, self.k, self.v)
        )  # (B, H, T, K) each
        if slot is None:
            implied(flow, self, lambda eye: self._map(q, k, eye, keep, flow.causal), x, wide, keep)
        if flow.causal:
            held = self.start(x.shape[0], 0, q).held if slot is None else slot.held
            # features are larger than the text, and should stay in the processor's cache
            y, held = piecewise(self._recurrence, q.shape[2], held, (q, 2), (k, 2), (v, 2), (keep, 1))
            if slot is not None:
                slot.put(x.shape[1], *held)
        else:
            y = self._sums(q, k, v, keep)
        return self.o(y.to(x.dtype).transpose(1, 2).flatten(2))

    def _map(self, q: Tensor, k: Tensor, eye: Tensor, keep: Tensor | None, causal: bool) -> Tensor:
        """The weights of n keys for all queries, (B, H, T, n)."""
        v = eye.expand(*q.shape[:2], *eye.shape)
        if not causal:
            return self._sums(q, k, v, keep)
        S = q.new_zeros(*q.shape[:2], self.count, eye.shape[1] + 1)
        return self._recurrence(q, k, v, keep, (S, q.new_full((*q.shape[:2], 1), NEVER)))[0]

    def _recurrence(
        self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, held: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The outputs from these tokens and the state before them, and the state after them."""
        S, top = held
        (q, _), (k, size) = self.features(q), self.features(k)  # (B, H, T, M) each; the size of a query cancels
        weight, fade, top = (None, None, top) if size is None else weighed(size, keep, top, True)
        weight = counted(weight, keep, q.dtype)
        # a key sums the columns beside its features: v, and ones for the weights
        ones = torch.ones_like(v[..., :1]) if weight is None else weight[..., None].expand_as(v[..., :1])
        v = torch.cat((v if weight is None else v * weight[..., None], ones), -1)  # (B, H, T, K + 1)
        y, S = decayed(q, k, v, fade, S, self.chunk)  # (B, H, T, K + 1), (B, H, M, K + 1)
        return quotient(y[..., :-1], y[..., -1:]), (S, top)

    def _sums(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
        """The outputs from all tokens, (B, H, T, K)."""
        (q, _), (k, size) = self.features(q), self.features(k)
        weight = None if size is None else weighed(size, keep, q.new_full((*q.shape[:2], 1), NEVER), False)[0]
        weight = counted(weight, keep, q.dtype)
        v = v if weight is None else v * weight[..., None]
        sums = k.sum(2)[..., None] if weight is None else k.mT @ weight[..., None]  # (B, H, M, 1)
        y = q @ torch.cat((k.mT @ v, sums), -1)  # (B, H, T, K + 1)
        return quotient(y[..., :-1], y[..., -1:])

    def start(self, batch: int, length: int, like: Tensor) -> Recurrent:
        wide = torch.promote_types(like.dtype, torch.float32)
        S = like.new_zeros(batch, self.heads, self.count, self.head_dim + 1, dtype=wide)
        return Recurrent(S, S.new_full((batch, self.heads, 1), NEVER))


def counted(weight: Tensor | None, keep: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The weights of keys, (B, H, T) or (B, 1, T), with 0 for padding; None if all are 1."""
    if keep is None:
        return weight
    real = keep[:, None].to(dtype)
    return real if weight is None else weight * real


def quotient(y: Tensor, total: Tensor) -> Tensor:
    """y / total, 0 where total is 0: as a product, because a quotient has a longer backward pass."""
    return y * torch.where(total > 0, total, 1.0).reciprocal()


def weighed(size: Tensor, keep: Tensor | None, top: Tensor, causal: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """exp(size) without overflow: relative to the largest size so far; earlier sums fade accordingly.

    The largest one cancels in the quotient, so it has no gradient. In a decoder nothing depends on later keys.

    Shapes: size (B, H, T), keep (B, T), top (B, H, 1) before -> weights (B, H, T), fade (B, H, T), top after.
    """
    if keep is not None:
        size = size.masked_fill(~keep[:, None], NEVER)
    if causal:
        highest = torch.cat((top, size.detach()), -1).cummax(-1).values  # (B, H, 1 + T)
        before, now = highest[..., :-1], highest[..., 1:]
        fade = torch.where(before == NEVER, 0.0, before - now)  # an empty sum does not fade
        top = highest[..., -1:]
    else:
        now, fade = size.detach().amax(-1, keepdim=True), None
    return (size - now.masked_fill(now == NEVER, 0.0)).exp(), fade, top


class Favor(LinearAttention):
    """FAVOR+: linear attention with random features whose products are softmax attention on average (Choromanski et
    al., 2020; arXiv:2009.14794).

    ```
    f(x)_m = exp(w_m.x - |x|^2 / 2) (+ eps of the largest)      E f(q).f(k) = exp(q.k)       x = q or k, / K^1/4
    ```
    with w_m from N(0, I), orthogonal to each other in blocks of K: the error falls faster than with independent ones.
    They are a buffer, `projection`: saved in files, not trained, drawn anew by `redraw()`. Each token's features are
    computed relative to its own largest one, so nothing overflows, and a decoder sees no future (performer-pytorch
    takes the largest of all keys; with eps = 0 it is the same function).

    Takes the options of `LinearAttention` and these:

    Args:
        features: M; K ln K, rounded down, by default.
        feature: "softmax" as above, or "relu": f(x) = relu(w.x) + eps ("generalized attention").
        eps: keeps weights above 0; 1e-4 by default, 1e-3 for relu.

    Shape: (B, T, D) -> same. State: (B, H, M, K + 1), and the largest size so far, (B, H, 1).
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        features: int | None = None,
        feature: str = "softmax",
        eps: float | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        chunk: int = CHUNK,
    ):
        super().__init__(dim, heads, head_dim, feature, bias, out_bias, chunk)
        many = max(1, int(self.head_dim * math.log(self.head_dim))) if features is None else features
        if many < 1 or (eps is not None and eps < 0):
            raise ValueError(
                f"Favor: features must be at least 1 and eps at least 0; got features={features}, eps={eps}"
            )
        self.eps = {"softmax": 1e-4, "relu": 1e-3}[feature] if eps is None else eps
        self.projection: Tensor
        self.register_buffer("projection", torch.empty(many, self.head_dim))
        self.reset_parameters()

    @classmethod
    def known(cls) -> tuple[str, ...]:
        return ("softmax", "relu")

    @property
    def count(self) -> int:
        return self.projection.shape[0]

    def reset_parameters(self) -> None:
        self.redraw()

    @torch.no_grad()
    def redraw(self) -> None:
        """Draws new random features; in training, every thousand steps or so: `model.apply(redraw)`."""
        if not self.projection.is_meta:
            self.projection.copy_(orthogonal(*self.projection.shape))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = x * self.head_dim**-0.25
        seen = x @ self.projection.to(x.dtype).T  # (B, H, T, M)
        if self.feature == "relu":
            return F.relu(seen) + self.eps, None
        features, top = relative_exp(seen, self.eps)  # (B, H, T, M), (B, H, T, 1)
        return features, (top - x.square().sum(-1, keepdim=True) / 2)[..., 0]


def redraw(module: nn.Module) -> None:
    """Draws new random features for a `Favor`, and ignores other modules: `model.apply(redraw)`."""
    if isinstance(module, Favor):
        module.redraw()


def orthogonal(rows: int, columns: int) -> Tensor:
    """Rows that are distributed as N(0, I) each, and orthogonal to each other in blocks of `columns`.

    QR alone prefers some directions; with the signs of R's diagonal every direction is equally likely (Mezzadri, 2006).
    Without them, as in performer-pytorch, the estimate of softmax does not converge.
    """
    Q, R = torch.linalg.qr(torch.randn(-(-rows // columns), columns, columns))
    turned = Q * R.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    return turned.mT.flatten(0, 1)[:rows] * torch.randn(rows, columns).norm(dim=1, keepdim=True)
