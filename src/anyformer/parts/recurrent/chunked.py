"""Chunked matrix-state recurrences, and their decoding state: for linear attention, Mamba-2, the delta rule.

… any leading axes (batch, heads), T time, K key width, V value width, n chunks, L tokens of a chunk.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.state import Slot
from anyformer.parts.fused import depthwise

CHUNK = 64
HEADS, GROUPS = 64, 8  # of implied maps: more heads than that are shown as groups
COLUMNS = 1 << 24  # numbers of an implied map that are made at once, about
PIECE = 2048  # tokens of parallel chunks: their intermediate values should stay in the processor's cache


def decayed(
    q: Tensor, k: Tensor, v: Tensor, fade: Tensor | None, state: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The recurrence S_t = exp(fade_t) S_{t-1} + k_t v_t^T, y_t = S_t^T q_t, over all t (Dao and Gu, 2024;
    arXiv:2405.21060).

    ```
    y_t of a chunk   =   sum over s <= t in the chunk of (q_t . k_s) exp(fade_{s+1} + … + fade_t) v_s      pairs, L x L
                       + exp(fade_first + … + fade_t) S_before^T q_t                              the earlier chunks
    ```
    Chunks are computed in parallel and only their states are chained: T L (K + V) + 2 T K V products, memory linear in
    T.

    Args:
        fade: logarithms, 0 or less; None = no decay.
        chunk: L; it does not change the result.

    Shapes: q, k (…, T, K); v (…, T, V); fade (…, T); state (…, K, V) -> y (…, T, V), the last state. The leading axes
    of q and k can have size 1 where those of v, fade and the state do not (groups).
    """
    time = v.shape[-2]
    if not isinstance(time, torch.SymInt) and time == 1:
        state = (state if fade is None else fade.exp()[..., None] * state) + k.mT @ v
        return q @ state, state
    if not isinstance(time, torch.SymInt) and time > PIECE:
        step = functools.partial(decayed, chunk=chunk)
        return piecewise(step, time, state, (q, -2), (k, -2), (v, -2), (fade, -1))
    q, k, v = (cut(t, chunk, -2) for t in (q, k, v))  # (…, n, L, K), the same, (…, n, L, V)
    pairs = q @ k.mT  # (…, n, L, L)
    if fade is None:
        y = pairs.tril() @ v
        before = torch.cat((state[..., None, :, :], k.mT @ v), -3).cumsum(-3)  # (…, n + 1, K, V)
        y = y + q @ before[..., :-1, :, :]
    else:
        level = cut(fade, chunk, -1).cumsum(-1)  # (…, n, L)
        end = level[..., -1:]  # (…, n, 1)
        y = (pairs * left(level)) @ v
        before = chained((k * (end - level).exp()[..., None]).mT @ v, end[..., 0], state)
        y = y + level.exp()[..., None] * (q @ before[..., :-1, :, :])
    return y.flatten(-3, -2)[..., :time, :], before[..., -1, :, :]


def delta(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, fade: Tensor, state: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The gated delta rule S_t = a_t S_{t-1} + k_t u_t^T, u_t = beta_t (v_t - a_t S_{t-1}^T k_t), y_t = S_t^T q_t, with
    a_t = exp(fade_t) (Yang et al., 2024; arXiv:2412.06464): the state's value for k_t is replaced, not added to.

    Inside a chunk the u depend on each other and on the state before it; they are one triangular system of L equations:
    (I + A) U = beta (V - decay K S_before), A_ts = beta_t decay_ts k_t . k_s for s < t (arXiv:2406.06484, section 3.2).

    Shapes: q, k (…, T, K); v (…, T, V); beta, fade (…, T); state (…, K, V) -> y (…, T, V), the last state.
    """
    time = v.shape[-2]
    if not isinstance(time, torch.SymInt) and time == 1:
        state = fade.exp()[..., None] * state
        state = state + k.mT @ (beta[..., None] * (v - k @ state))
        return q @ state, state
    if not isinstance(time, torch.SymInt) and time > PIECE:
        step = functools.partial(delta, chunk=chunk)
        return piecewise(step, time, state, (q, -2), (k, -2), (v, -2), (beta, -1), (fade, -1))
    if isinstance(time, torch.SymInt):  # torch.export: no loop can depend on the length, so the text is one chunk
        q, k, v, beta, fade = (t.unsqueeze(axis) for t, axis in ((q, -3), (k, -3), (v, -3), (beta, -2), (fade, -2)))
    else:
        q, k, v, beta, fade = (
            cut(t, chunk, axis) for t, axis in ((q, -2), (k, -2), (v, -2), (beta, -1), (fade, -1))
        )  # (…, n, L, …)
    level, beta = fade.cumsum(-1)[..., None], beta[..., None]  # (…, n, L, 1) each
    share = left(level[..., 0])  # (…, n, L, L)
    system = (beta * (k @ k.mT) * share).tril(-1)  # with an implicit diagonal of ones
    wanted = torch.cat((beta * v, beta * level.exp() * k), -1)  # (…, n, L, V + K)
    solved = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    new, old = solved.split([v.shape[-1], k.shape[-1]], -1)  # U = new - old S_before
    pairs, end = q @ k.mT * share, level[..., -1:, :]  # (…, n, L, L), (…, n, 1, 1)
    q, k, fall = q * level.exp(), k * (end - level).exp(), end.exp()
    rows = []  # unbound, not indexed: the gradient of an index is as large as all chunks
    for q_c, k_c, pairs_c, new_c, old_c, fall_c in zip(
        *(t.unbind(-3) for t in (q, k, pairs, new, old, fall)), strict=True
    ):
        u = new_c - old_c @ state  # (…, L, V)
        rows.append(q_c @ state + pairs_c @ u)
        state = fall_c * state + k_c.mT @ u
    return torch.cat(rows, -2)[..., :time, :], state


def piecewise(
    step: Callable[..., tuple[Tensor, Any]],
    time: int | torch.SymInt,
    state: Any,
    *texts: tuple[Tensor | None, int],
) -> tuple[Tensor, Any]:
    """`y, state = step(*texts, state)` over texts of the same length, `PIECE` tokens at a time.

    Args:
        texts: each with its axis of time; None stays None.

    Returns:
        y of all pieces, (…, T, V), and the last state.
    """
    whole = isinstance(time, torch.SymInt) or time <= PIECE
    cuts = (itertools.repeat(t) if t is None else [t] if whole else t.split(PIECE, axis) for t, axis in texts)
    rows = []
    for some in zip(*cuts, strict=False):
        y, state = step(*some, state)
        rows.append(y)
    return torch.cat(rows, -2), state


def implied(
    flow: Flow, mixer: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype, keep: Tensor | None
) -> None:
    """Offers the map that a mixer implies to taps that want it, in blocks of columns: y_t = sum_s M_ts v_s, for what it
    is linear in (Ali et al., 2024; arXiv:2403.01590). Running it on unit vectors of time in place of v gives columns of
    M.

    ```
    implied   M, (B, H, T, T)
    weights   |M_ts| / sum_s |M_ts|: M can be negative, and its rows sum to nothing in particular; of more than 64 heads
              (the channels of Mamba) the means of 8 groups of neighbours
    ```
    Args:
        run: unit vectors (T, n) in place of v -> columns of M, in any shape that flattens to (B, H, T, n).
        x: (B, T, D), the input of the mixer. dtype: of v. keep: (B, T) True = real, or None.
    """
    taps, (batch, time) = flow.taps, x.shape[:2]
    if taps is None:
        return

    @torch.no_grad()
    def columns(at: slice) -> Tensor:
        units = torch.zeros(time, at.stop - at.start, dtype=dtype, device=x.device)
        units[at] = torch.eye(units.shape[1], dtype=dtype, device=x.device)
        M = run(units).reshape(batch, -1, time, units.shape[1])
        return M if keep is None else M * keep[:, None, None, at]

    @functools.cache
    def total() -> Tensor:
        return torch.stack([sizes(at).sum(-1) for at in blocks]).sum(0)[..., None]  # (B, H, T, 1)

    def sizes(at: slice) -> Tensor:
        size = columns(at).abs()
        if size.shape[1] > HEADS:
            size = torch.stack([part.mean(1) for part in size.tensor_split(GROUPS, 1)], 1)
        return size

    def shares(at: slice) -> Tensor:
        parts = torch.cat([sizes(slice(a, min(a + step, at.stop))) for a in range(at.start, at.stop, step)], -1)
        sums = parts.sum(-1, keepdim=True) if parts.shape[-1] == time else total()
        return parts / sums.clamp(min=torch.finfo(dtype).tiny)

    if taps.wants(mixer, "implied"):
        taps.offer(mixer, "implied", columns, time, -1)
    if taps.wants(mixer, "weights"):
        step = max(1, COLUMNS // (time * x.shape[2]))  # of a run, whose heads can be as many as the channels
        blocks = [slice(a, min(a + step, time)) for a in range(0, time, step)]
        taps.offer(mixer, "weights", shares, time, -1)


def cut(t: Tensor, chunk: int, axis: int) -> Tensor:
    """Time in chunks, the last one padded with zeros: T along `axis` (-1 or -2) becomes (n, L)."""
    time = t.shape[axis]
    if isinstance(time, torch.SymInt):
        size, count = chunk, time // chunk + 2  # never one: torch.export would fix the program to exactly one
    else:
        size = min(chunk, time)
        count = -(-time // size)
    if isinstance(time, torch.SymInt) or count * size > time:
        shape = list(t.shape)
        shape[axis] = count * size - time
        t = torch.cat((t, t.new_zeros(shape)), axis)
    return t.unflatten(axis, (count, size))


def left(level: Tensor) -> Tensor:
    """The decay from s to t: exp(level_t - level_s) for s <= t, else 0. Shape: (…, L) -> (…, L, L)."""
    age = level[..., :, None] - level[..., None, :]
    past = torch.ones(age.shape[-2:], dtype=torch.bool, device=age.device).tril()
    return age.masked_fill(~past, float("-inf")).exp()


def chained(new: Tensor, fade: Tensor, state: Tensor) -> Tensor:
    """S_c = exp(fade_c) S_{c-1} + new_c over chunks: the states before each of them, and the last.

    Shapes: new (…, n, K, V), fade (…, n), state (…, K, V) -> (…, n + 1, K, V).
    """
    if isinstance(new.shape[-3], torch.SymInt):  # torch.export: all pairs of chunks instead of a loop
        whole = torch.cat((state[..., None, :, :], new), -3)
        return (left(F.pad(fade, (1, 0)).cumsum(-1)) @ whole.flatten(-2)).unflatten(-1, whole.shape[-2:])
    states = [state]
    for now, left_over in zip(new.unbind(-3), fade.exp()[..., None, None].unbind(-3), strict=True):
        states.append(torch.addcmul(now, left_over, states[-1]))
    return torch.stack(states, -3)


def convolved(conv: nn.Conv1d, u: Tensor, past: Tensor, flow: Flow) -> tuple[Tensor, Tensor]:
    """A convolution over time with its last W - 1 inputs in front; and the inputs in front of the next call.

    It ignores tokens before the first one of a packed document.
    Shapes: u (B, T, E), past (B, W - 1, E) -> (B, T, E), (B, W - 1, E).
    """
    inputs, width = torch.cat((past, u), 1), conv.kernel_size[0]  # (B, W - 1 + T, E)
    rest = inputs[:, inputs.shape[1] - past.shape[1] :]
    if flow.documents is None:
        return depthwise(inputs, conv.weight, conv.bias), rest
    back = torch.arange(width - 1, -1, -1, device=u.device)  # (W,): distance of each weight
    near = flow.positions[..., None] >= back  # (B, T, W)
    y = (inputs.unfold(1, width, 1) * near[:, :, None] * conv.weight[:, 0]).sum(-1)  # (B, T, E)
    return (y if conv.bias is None else y + conv.bias), rest


class Recurrent(Slot):
    """State of a recurrent mixer: tensors of a fixed size, a row for each sequence. It can return only to a
    mark."""

    def __init__(self, *held: Tensor):
        self.held, self.length = held, 0
        self.marked = (0, held)

    def put(self, count: int, *held: Tensor) -> None:
        """Sets the state after `count` more tokens."""
        self.held, self.length = held, self.length + count

    def reorder(self, index: Tensor) -> None:
        length, held = self.marked
        self.held, self.marked = tuple(t[index] for t in self.held), (length, tuple(t[index] for t in held))

    def returns_to(self, length: int) -> bool:
        return length in (self.length, self.marked[0])

    def trim(self, length: int) -> None:
        if length != self.length:
            self.length, self.held = self.marked

    def mark(self) -> None:
        self.marked = (self.length, self.held)

    @property
    def joins(self) -> bool:
        return True

    def shift(self, count: int) -> None:
        self.length += count

    def join(self, other: Recurrent) -> None:
        self.held = tuple(torch.cat(pair) for pair in zip(self.held, other.held, strict=True))
        self.mark()

    def bytes(self) -> int:
        return sum(t.nbytes for t in self.held)


def drawn_rates(count: int) -> Tensor:
    """log A of Mamba-2, A uniform in 1 … 16. (count,)"""
    with torch.device("cpu"):  # on "meta", arithmetic imports PyTorch's compiler
        return torch.empty(count).uniform_(1, 16).log()


def drawn_steps(count: int) -> Tensor:
    """Biases whose softplus, the step, is log-uniform in 0.001 … 0.1 (Gu and Dao, 2023, section 3.6). (count,)"""
    with torch.device("cpu"):
        steps = torch.empty(count).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        return steps + torch.log(-torch.expm1(-steps))
