"""The gated delta rule. B batch, T time, D width, H heads, K key width, V value width, W width of the convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.parts.attention.heads import width
from anyformer.parts.norms import RMSNorm
from anyformer.parts.recurrent.chunked import CHUNK, Recurrent, convolved, delta, drawn_rates, drawn_steps, implied


class GatedDelta(Mixer):
    """Gated DeltaNet: linear attention that replaces a key's value in the state (Yang et al., 2024; arXiv:2412.06464).

    ```
    x ─┬─ q, k, v ─ conv ─ silu ─ (q, k to length 1) ─ recurrence ─ norm ─(x)─ o ──>
       ├─ write ─ sigmoid = beta ─────────────────────┤                    │
       ├─ fade ── exp(-exp(A_log) softplus(.)) = a ───┘                    │
       └─ gate ─ silu ─────────────────────────────────────────────────────┘

    S_t = a_t S_{t-1} + k_t beta_t (v_t - a_t S_{t-1}^T k_t)^T             y_t = S_t^T q_t / sqrt(K)
    ```
    With `gated` false a is 1: DeltaNet (Yang et al., 2024; arXiv:2406.06484).

    Args:
        heads: H. `head_dim`: K; width / heads by default. `value_dim`: V; K by default.
        conv_kernel: W, tokens in reach of the convolution of q, k and v.
        gated: True if the state decays.
        bias: of `o` and of the projections of q, k, v and the gate.
        eps: of the norm, over a head.
        chunk: tokens of a chunk; the number does not change the result.

    Shape: (B, T, D) -> same. State: (B, H, K, V) and the last W - 1 inputs of the convolution.
    """

    maps = True

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        value_dim: int | None = None,
        conv_kernel: int = 4,
        gated: bool = True,
        bias: bool = False,
        eps: float = 1e-6,
        chunk: int = CHUNK,
    ):
        super().__init__()
        if min(heads, conv_kernel, chunk) < 1 or (value_dim is not None and value_dim < 1):
            raise ValueError(
                "GatedDelta: heads, value_dim, conv_kernel and chunk must be at least 1; got "
                f"{heads}, {value_dim}, {conv_kernel} and {chunk}"
            )
        self.heads, self.chunk, self.conv_kernel = heads, chunk, conv_kernel
        self.head_dim = width("GatedDelta", dim, heads, head_dim)
        self.value_dim = self.head_dim if value_dim is None else value_dim
        self.inner = heads * self.value_dim
        self.q, self.k = (nn.Linear(dim, heads * self.head_dim, bias) for _ in range(2))
        self.v, self.gate = (nn.Linear(dim, self.inner, bias) for _ in range(2))
        self.mixed = 2 * heads * self.head_dim + self.inner
        self.conv = nn.Conv1d(self.mixed, self.mixed, conv_kernel, groups=self.mixed, bias=False)
        self.write, self.fade = nn.Linear(dim, heads), nn.Linear(dim, heads) if gated else None
        self.A_log = nn.Parameter(torch.empty(heads)) if gated else None
        self.norm, self.o = RMSNorm(self.value_dim, eps), nn.Linear(self.inner, dim, bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws A uniformly in 1 … 16, steps log-uniformly in 0.001 … 0.1, as in Mamba-2."""
        if self.fade is None or self.A_log is None:
            return
        self.A_log.copy_(drawn_rates(len(self.A_log)))
        self.fade.bias.copy_(drawn_steps(len(self.fade.bias)))

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_causal(flow)
        slot, keep = flow.slot(self), flow.keep_now(x.shape[1])
        mixed = torch.cat((self.q(x), self.k(x), self.v(x)), -1)  # (B, T, H (2 K + V))
        mixed = mixed if keep is None else mixed * keep[..., None]
        past = x.new_zeros(x.shape[0], self.conv_kernel - 1, self.mixed) if slot is None else slot.held[0]
        mixed, past = convolved(self.conv, mixed, past, flow)
        wide = torch.promote_types(x.dtype, torch.float32)  # in half precision the state would drift
        keys = self.heads * self.head_dim
        parts = F.silu(mixed).to(wide).split([keys, keys, self.inner], -1)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in parts
        )  # (B, H, T, K), the same, (B, H, T, V)
        q, k = unit(q) * self.head_dim**-0.5, unit(k)
        beta = self.write(x).to(wide).sigmoid()  # (B, T, H)
        beta = beta if keep is None else beta * keep[..., None]  # padding writes nothing
        fade = torch.zeros_like(beta)
        if self.fade is not None and self.A_log is not None:
            step = self.fade(x).to(wide)
            step = torch.logaddexp(step, torch.zeros_like(step))  # softplus, whose own backward fails in torch.compile
            fade = -self.A_log.to(wide).exp() * step
        if slot is None:
            implied(flow, self, lambda eye: self._map(q, k, beta.mT, fade.mT, eye), x, wide, keep)
        S = q.new_zeros(x.shape[0], self.heads, self.head_dim, self.value_dim) if slot is None else slot.held[1]
        y, S = delta(q, k, v, beta.mT, fade.mT, S, self.chunk)  # (B, H, T, V), (B, H, K, V)
        if slot is not None:
            slot.put(x.shape[1], past, S)
        y = self.norm(y.to(x.dtype).transpose(1, 2)).flatten(2)  # (B, T, H V)
        return self.o(y * F.silu(self.gate(x)))

    def _map(self, q: Tensor, k: Tensor, beta: Tensor, fade: Tensor, eye: Tensor) -> Tensor:
        """The share of each value in each output of a head, (B, H, T, n)."""
        S = q.new_zeros(*q.shape[:2], self.head_dim, eye.shape[1])
        return delta(q, k, eye.expand(*q.shape[:2], *eye.shape), beta, fade, S, self.chunk)[0]

    def start(self, batch: int, length: int, like: Tensor) -> Recurrent:
        wide = torch.promote_types(like.dtype, torch.float32)
        past = like.new_zeros(batch, self.conv_kernel - 1, self.mixed)
        return Recurrent(past, like.new_zeros(batch, self.heads, self.head_dim, self.value_dim, dtype=wide))


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(|x|^2 + eps) over the last axis."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
