"""The scan of a selective state space on a CPU: token by token, in blocks that stay in the processor's cache.

All states of a text are B T E N numbers, far more than all else in the layer. Here only one block of them exists at a
time; forward saves the state before each block, and backward recomputes the states of a block from it, then runs
through the block from its end:

    forward    a_t = exp(step_t A)      h_t = a_t h_{t-1} + B_t (step_t u_t)      y_t = C_t h_t
    backward   g_t = C_t dy_t + a_{t+1} g_{t+1}                   the gradient of h_t
               w_t = g_t h_{t-1} a_t                              the gradient of step_t A
               dstep_t = w_t A + u_t (B_t g_t)     dA = sum_t step_t w_t     du_t = step_t (B_t g_t)
               dB_t = (step_t u_t) g_t             dC_t = dy_t h_t

Memory: O(B T E) and a state a block. B batch, T time, E inner width, N state, L tokens of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

NUMBERS = 1 << 18  # the most numbers in a block's states: 1 MB of float32


def scan_in_blocks(
    u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, begins: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`mamba.scan` for a CPU. Shapes: u, step (B, T, E); A (E, N); B, C (B, T, N); h (B, E, N); begins (B, T) -> y
    (B, T, E), the last h (B, E, N)."""
    return _Scan.apply(u, step, A, B, C, h, begins)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, begins: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y, starts = torch.empty_like(u), []
        for rows in _blocks(u, A):
            starts.append(h)
            _, states = _states(u[:, rows], step[:, rows], A, B[:, rows], h, begins, rows)
            y[:, rows] = _dot(states, C[:, rows])
            h = states[-1].clone()
        ctx.save_for_backward(u, step, A, B, C, begins, *starts)
        return y, h

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:
        u, step, A, B, C, begins, *starts = ctx.saved_tensors
        du, dstep, dB, dC = (torch.empty_like(t) for t in (u, step, B, C))
        dA = torch.zeros_like(A)
        for rows, start in zip(reversed([*_blocks(u, A)]), reversed(starts), strict=True):
            x, s, slope = u[:, rows], step[:, rows], dy[:, rows]  # (B, L, E) each
            fade, states = _states(x, s, A, B[:, rows], start, begins, rows)  # (L, B, E, N) each
            dC[:, rows] = _sum(slope, states)
            g = slope.transpose(0, 1)[..., None] * C[:, rows].transpose(0, 1)[:, :, None]  # (L, B, E, N)
            g[-1] += dh
            late, a = g.unbind(0), fade.unbind(0)
            for t in range(len(late) - 2, -1, -1):
                late[t].addcmul_(a[t + 1], late[t + 1])
            dh = a[0] * late[0]
            into = _dot(g, B[:, rows])  # (B, L, E): the gradient of step u
            dB[:, rows] = _sum(s * x, g)
            w = g.mul_(fade)  # in place: g is not needed any more
            w[1:].mul_(states[:-1])
            w[0].mul_(start)
            du[:, rows] = into * s
            dstep[:, rows] = (w * A).sum(-1).transpose(0, 1).addcmul_(into, x)
            dA += w.mul_(s.transpose(0, 1)[..., None]).sum((0, 1))
        return du, dstep, dA, dB, dC, dh, None


def _blocks(u: Tensor, A: Tensor) -> Iterator[slice]:
    """Time in blocks."""
    size = max(8, NUMBERS // max(1, u.shape[0] * A.numel()))
    for start in range(0, u.shape[1], size):
        yield slice(start, min(start + size, u.shape[1]))


def _states(
    u: Tensor, step: Tensor, A: Tensor, B: Tensor, h: Tensor, begins: Tensor | None, rows: slice
) -> tuple[Tensor, Tensor]:
    """The fades and the states of a block, (L, B, E, N) each."""
    fade = (step.transpose(0, 1)[..., None] * A).exp_()
    if begins is not None:
        fade.masked_fill_(begins[:, rows].T[..., None, None], 0.0)
    states = (step * u).transpose(0, 1)[..., None] * B.transpose(0, 1)[:, :, None]
    for a, state in zip(fade.unbind(0), states.unbind(0), strict=True):
        h = state.addcmul_(a, h)
    return fade, states


def _dot(states: Tensor, weight: Tensor) -> Tensor:
    """(L, B, E, N), (B, L, N) -> (B, L, E)."""
    return (states @ weight.transpose(0, 1)[..., None]).squeeze(-1).transpose(0, 1)


def _sum(weight: Tensor, states: Tensor) -> Tensor:
    """(B, L, E), (L, B, E, N) -> (B, L, N)."""
    return (weight.transpose(0, 1)[:, :, None] @ states).squeeze(2).transpose(0, 1)
