"""Mamba-2. B batch, T time, D width, E inner width, G groups, R heads of a group, P head width, N state, W width of the
convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import Part
from anyformer.parts.recurrent.chunked import CHUNK, Recurrent, convolved, decayed, drawn_rates, drawn_steps, implied
from anyformer.parts.recurrent.mamba_cuda import chunk_scan, chunked


class Mamba2(Mixer):
    """State-space duality: Mamba with one decay a head (Dao and Gu, 2024; arXiv:2405.21060).

    ```
    x ─ into ─┬─ u, B, C ─ conv ─ silu ─── recurrence ─ (+ skip * u) ─(x)─ norm ─ out ──>
              ├─ step ────────────────────────┘                        │
              └─ gate ─ silu ──────────────────────────────────────────┘

    S_t = exp(step_t A) S_{t-1} + B_t (step_t u_t)^T          y_t = S_t^T C_t + skip u_t          a head at a time
    ```
    which is linear attention with q = C, k = B, v = step u and a decay: the same function computes it in chunks
    (`anyformer.parts.recurrent.chunked.decayed`). The heads of a group share B and C. The norm is RMSNorm over a group.
    On CUDA it uses the kernel of mamba-ssm if that is installed (`parts/recurrent/mamba_cuda.py`).

    Args:
        heads: G R. hidden: E, a multiple of the heads; 2 x width by default.
        state: N. `groups`: G, a divisor of the heads.
        conv_kernel: W, tokens in reach of the convolution.
        bias: of `into` and `out`. `conv_bias`: of the convolution.
        eps: of the norm.
        shortest, longest: limits of the step; 0 and none by default.
        chunk: tokens of a chunk; the number does not change the result.

    Shape: (B, T, D) -> same. State: (B, G, R, N, P) and the last W - 1 inputs of the convolution.
    """

    maps = True

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int | None = None,
        state: int = 128,
        groups: int = 1,
        conv_kernel: int = 4,
        bias: bool = False,
        conv_bias: bool = True,
        eps: float = 1e-5,
        shortest: float = 0.0,
        longest: float | None = None,
        chunk: int = CHUNK,
    ):
        super().__init__()
        self.hidden = 2 * dim if hidden is None else hidden
        if min(heads, groups, state, self.hidden, conv_kernel, chunk) < 1:
            raise ValueError(
                "Mamba2: heads, groups, state, hidden, conv_kernel and chunk must be at least 1; got "
                f"{heads}, {groups}, {state}, {self.hidden}, {conv_kernel} and {chunk}"
            )
        if self.hidden % heads or heads % groups:
            raise ValueError(
                f"Mamba2: heads={heads} must divide the inner width {self.hidden}, and groups={groups} the heads"
            )
        if shortest < 0 or (longest is not None and longest < shortest):
            raise ValueError(f"Mamba2: 0 <= shortest <= longest is needed; got {shortest} and {longest}")
        self.heads, self.groups, self.state, self.conv_kernel, self.chunk = heads, groups, state, conv_kernel, chunk
        self.shortest, self.longest = shortest, longest
        self.mixed = self.hidden + 2 * groups * state  # u, B and C share the convolution
        self.into = nn.Linear(dim, self.hidden + self.mixed + heads, bias)  # gate; u, B, C; step
        self.conv = nn.Conv1d(self.mixed, self.mixed, conv_kernel, groups=self.mixed, bias=conv_bias)
        self.A_log, self.step, self.skip = (nn.Parameter(torch.empty(heads)) for _ in range(3))
        self.norm, self.out = GatedRMSNorm(self.hidden, groups, eps), nn.Linear(self.hidden, dim, bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws A uniformly in -16 … -1, steps log-uniformly in 0.001 … 0.1."""
        self.A_log.copy_(drawn_rates(self.heads))
        self.skip.fill_(1.0)
        self.step.copy_(drawn_steps(self.heads))

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_causal(flow)
        slot, keep = flow.slot(self), flow.keep_now(x.shape[1])
        gate, mixed, step = self.into(x).split([self.hidden, self.mixed, self.heads], -1)  # (B, T, …)
        mixed = mixed if keep is None else mixed * keep[..., None]  # padding adds nothing to the state
        past = x.new_zeros(x.shape[0], self.conv_kernel - 1, self.mixed) if slot is None else slot.held[0]
        mixed, past = convolved(self.conv, mixed, past, flow)  # (B, T, E + 2 G N), (B, W - 1, E + 2 G N)
        mixed = F.silu(mixed)
        mixed = mixed if keep is None else mixed * keep[..., None]
        wide = torch.promote_types(x.dtype, torch.float32)  # in half precision the state would drift
        u, k, q = mixed.to(wide).split([self.hidden, *[self.groups * self.state] * 2], -1)
        k, q = (t.unflatten(-1, (self.groups, 1, self.state)).movedim(1, 3) for t in (k, q))  # (B, G, 1, T, N) each
        u, step = self._heads(u), F.softplus(self._heads((step + self.step).to(wide)))  # (B, G, R, T, P), (…, T, 1)
        step = step.clamp(self.shortest, self.longest)
        A, skip = (t.to(wide).unflatten(0, (self.groups, -1))[..., None] for t in (-self.A_log.exp(), self.skip))
        if slot is None:  # the skip is an unmixed part of it
            implied(flow, self, lambda eye: self._map(q, k, step, A, skip, eye), x, wide, keep)
        S = self._empty(u) if slot is None else slot.held[1]  # (B, G, R, N, P)
        if (kernel := chunk_scan(u)) is not None:
            y, S = chunked(kernel, q, k, u, step, A, S)  # (B, G, R, T, P)
        else:
            y, S = decayed(q, k, step * u, step[..., 0] * A, S, self.chunk)
        if slot is not None:
            slot.put(x.shape[1], past, S)
        y = (y + skip[..., None] * u).movedim(3, 1).flatten(2)  # (B, T, E)
        return self.out(self.norm(y.to(x.dtype), gate))

    def _map(self, q: Tensor, k: Tensor, step: Tensor, A: Tensor, skip: Tensor, eye: Tensor) -> Tensor:
        """The share of each input u of a head in each of its outputs y + skip u, (B, G, R, T, n)."""
        S = q.new_zeros(*step.shape[:3], self.state, eye.shape[1])
        return decayed(q, k, step * eye, step[..., 0] * A, S, self.chunk)[0] + skip[..., None] * eye

    def _heads(self, t: Tensor) -> Tensor:
        """(B, T, heads * x) -> (B, G, R, T, x)."""
        return t.unflatten(-1, (self.groups, self.heads // self.groups, -1)).movedim(1, 3)

    def _empty(self, like: Tensor) -> Tensor:
        shape = self.groups, self.heads // self.groups, self.state, self.hidden // self.heads
        return like.new_zeros(like.shape[0], *shape)

    def start(self, batch: int, length: int, like: Tensor) -> Recurrent:
        wide = torch.promote_types(like.dtype, torch.float32)
        empty = like.new_zeros(batch, self.conv_kernel - 1, self.mixed)
        return Recurrent(empty, self._empty(empty.to(wide)))


class GatedRMSNorm(Part):
    """y = z / sqrt(mean(z^2) + eps) * weight with z = x silu(gate), the mean over a group of channels.

    In half precision z and the mean are float32. Shape: x, gate (..., E) -> same.
    """

    def __init__(self, dim: int, groups: int = 1, eps: float = 1e-5):
        super().__init__()
        self.weight, self.groups, self.eps = nn.Parameter(torch.ones(dim)), groups, eps

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        z = (x.to(wide) * F.silu(gate.to(wide))).unflatten(-1, (self.groups, -1))  # (…, G, E / G)
        return self.weight * F.rms_norm(z, z.shape[-1:], None, self.eps).flatten(-2).to(x.dtype)
