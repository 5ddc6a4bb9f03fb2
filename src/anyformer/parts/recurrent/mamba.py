"""State-space mixers. B batch, T time, D width, E inner width, N state, R rank of the step, W width of the
convolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.parts.recurrent.chunked import Recurrent, convolved, drawn_steps, implied
from anyformer.parts.recurrent.mamba_cpu import scan_in_blocks
from anyformer.parts.recurrent.mamba_cuda import scanned, selective_scan

CHUNK = 32
OPEN = 4000 * CHUNK  # the longest text of an exported model, in tokens


class Mamba(Mixer):
    """Selective state space (Gu and Dao, 2023; arXiv:2312.00752).

    ```
    x ─ into ─┬─ u ─ conv ─ silu ─┬──────────── scan ── (+ skip * u) ─(x)─ out ──>
              │                   └─ select ─ step, B, C ─┘            │
              └─ gate ─ silu ──────────────────────────────────────────┘

    h_t = exp(step_t A) h_{t-1} + step_t B_t u_t          y_t = C_t h_t + skip u_t
    ```
    where step, B and C depend on the token, and A = -exp(A_log) does not.

    Args:
        hidden: E; 2 x width by default.
        state: N.
        rank: R; width / 16, rounded up, by default.
        conv_kernel: W, tokens in reach of the convolution.
        bias: of `into` and `out`. `conv_bias`: of the convolution.
        norm: of the selected values, before use: the step's R numbers, B and C (Jamba), or None.
        chunk: tokens that are scanned sequentially, except on the CPU; the number does not change the result.

    On CUDA it uses the kernel of mamba-ssm if that is installed (`parts/recurrent/mamba_cuda.py`).

    Shape: (B, T, D) -> same. State: (B, E, N) and the last W - 1 inputs of the convolution.
    """

    packs, maps = True, True

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        state: int = 16,
        rank: int | None = None,
        conv_kernel: int = 4,
        bias: bool = False,
        conv_bias: bool = True,
        norm: Recipe[Norm] | None = None,
        chunk: int = CHUNK,
    ):
        super().__init__()
        self.hidden = 2 * dim if hidden is None else hidden
        self.rank = math.ceil(dim / 16) if rank is None else rank
        if min(self.rank, conv_kernel, chunk) < 1:
            raise ValueError(
                f"Mamba: rank, conv_kernel and chunk must be at least 1; got {self.rank}, {conv_kernel} and {chunk}"
            )
        self.state, self.conv_kernel, self.chunk = state, conv_kernel, chunk
        self.into, self.out = nn.Linear(dim, 2 * self.hidden, bias), nn.Linear(self.hidden, dim, bias)
        self.conv = nn.Conv1d(self.hidden, self.hidden, conv_kernel, groups=self.hidden, bias=conv_bias)
        self.select = nn.Linear(self.hidden, self.rank + 2 * state, bias=False)
        self.step = nn.Linear(self.rank, self.hidden)
        widths = {"step": self.rank, "B": state, "C": state}
        self.norm = None if norm is None else nn.ModuleDict({name: norm.build(n) for name, n in widths.items()})
        self.A_log, self.skip = nn.Parameter(torch.empty(self.hidden, state)), nn.Parameter(torch.empty(self.hidden))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets A = -1 … -N on every channel and draws steps log-uniformly in 0.001 … 0.1 (the paper's section
        3.6)."""
        nn.init.uniform_(self.step.weight, -(self.rank**-0.5), self.rank**-0.5)
        rates = torch.arange(1, self.state + 1, dtype=torch.float32, device="cpu").log()
        self.A_log.copy_(rates.expand_as(self.A_log))
        self.skip.fill_(1.0)
        self.step.bias.copy_(drawn_steps(self.hidden))

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_causal(flow)
        slot, keep = flow.slot(self), flow.keep_now(x.shape[1])
        u, gate = self.into(x).chunk(2, -1)  # (B, T, E) each
        u = u if keep is None else u * keep[..., None]  # padding adds nothing to the state
        past = u.new_zeros(u.shape[0], self.conv_kernel - 1, self.hidden) if slot is None else slot.held[0]
        u, past = convolved(self.conv, u, past, flow)  # (B, T, E), (B, W - 1, E)
        u = F.silu(u)
        u = u if keep is None else u * keep[..., None]
        step, B, C = self.select(u).split([self.rank, self.state, self.state], -1)  # (B, T, R), (B, T, N), (B, T, N)
        if self.norm is not None:
            step, B, C = self.norm["step"](step), self.norm["B"](B), self.norm["C"](C)
        step = F.softplus(self.step(step))  # (B, T, E)
        wide = torch.promote_types(x.dtype, torch.float32)  # in half precision the state would drift
        h = u.new_zeros(u.shape[0], self.hidden, self.state, dtype=wide) if slot is None else slot.held[1]
        A = -self.A_log.to(wide).exp()  # (E, N)
        begins = None if flow.documents is None else flow.positions == 0  # (B, T)
        u_wide, step, B, C = (t.to(wide) for t in (u, step, B, C))
        if slot is None:  # `u` of each channel, a head of width 1; the skip is an unmixed part of it
            implied(flow, self, lambda eye: self._map(step, A, B, C, eye, begins), x, wide, keep)
        begin = begins is None and (slot is None or (slot.length == 0 and not torch.is_grad_enabled()))
        if begin and (kernel := selective_scan(u_wide)) is not None:
            y, h = scanned(kernel, u_wide, step, A, B, C)  # (B, T, E), (B, E, N)
        else:
            y, h = scan(u_wide, step, A, B, C, h, self.chunk, begins)
        if slot is not None:
            slot.put(x.shape[1], past, h)
        return self.out((y.to(x.dtype) + u * self.skip) * F.silu(gate))

    def _map(self, step: Tensor, A: Tensor, B: Tensor, C: Tensor, eye: Tensor, begins: Tensor | None) -> Tensor:
        """The share of each input of a channel in each of its outputs, (B, E, T, n): a scan for each column."""
        h = step.new_zeros(len(step), self.hidden, self.state)
        each = [scan(one[:, None].expand_as(step), step, A, B, C, h, self.chunk, begins)[0] for one in eye.unbind(1)]
        return torch.stack(each, -1).transpose(1, 2) + self.skip.to(step)[:, None, None] * eye  # (B, E, T, n)

    def start(self, batch: int, length: int, like: Tensor) -> Recurrent:
        wide = torch.promote_types(like.dtype, torch.float32)
        inputs = like.new_zeros(batch, self.conv_kernel - 1, self.hidden)
        h = like.new_zeros(batch, self.hidden, self.state, dtype=wide)
        return Recurrent(inputs, h)


def scan(
    u: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    h: Tensor,
    chunk: int = CHUNK,
    begins: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence h_t = exp(step_t A) h_{t-1} + step_t B_t u_t, y_t = C_t h_t, over all t.

    On a CPU token by token, in the memory of a block of tokens (`scan_in_blocks`); elsewhere, and in a
    compiled model, `side_by_side`.

    `begins` marks the start of a document: nothing comes from before, exp(step_t A) is 0 there.

    Shapes: u, step (B, T, E); A (E, N); B, C (B, T, N); h (B, E, N); begins (B, T) -> y (B, T, E), the last h (B, E,
    N).
    """
    time = u.shape[1]
    if time == 1 and begins is None:
        fade = torch.exp(step[:, 0, :, None] * A)  # (B, E, N)
        h = fade * h + (step * u)[:, 0, :, None] * B[:, 0, None]
        return (h * C[:, 0, None]).sum(-1)[:, None], h
    if isinstance(time, torch.SymInt):  # torch.export: the length is open, and no loop can depend on it
        return scan_open(u, step, A, B, C, h, begins)
    if u.device.type == "cpu" and not torch.compiler.is_compiling():
        return scan_in_blocks(u, step, A, B, C, h, begins)
    return side_by_side(u, step, A, B, C, h, chunk, begins)


def side_by_side(
    u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, chunk: int, begins: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scan` for processors that prefer few large steps.

    The text is split into chunks. All chunks advance in parallel from an empty state, then the states at their ends are
    chained, then each chunk adds the decayed state before it: `chunk` + T / `chunk` steps instead of T, and only
    products of numbers below 1, so nothing overflows. All B T E N states are in memory at once.
    """
    time = u.shape[1]
    pad, length = -time % min(chunk, time), min(chunk, time)
    u, step, B, C = (F.pad(t, (0, 0, 0, pad)).unflatten(1, (-1, length)) for t in (u, step, B, C))  # (B, chunks, L, …)
    fade = torch.exp(step[..., None] * A)  # (B, chunks, L, E, N); 1 at the padding, where step = 0
    if begins is not None:
        fade = fade.masked_fill(F.pad(begins, (0, pad)).unflatten(1, (-1, length))[..., None, None], 0.0)
    new = (step * u)[..., None] * B[..., None, :]  # (B, chunks, L, E, N)
    states, faded = [new[:, :, 0]], [fade[:, :, 0]]
    for t in range(1, new.shape[2]):
        states.append(torch.addcmul(new[:, :, t], fade[:, :, t], states[-1]))  # (B, chunks, E, N)
        faded.append(fade[:, :, t] * faded[-1])
    before = [h]
    for c in range(new.shape[1]):
        before.append(torch.addcmul(states[-1][:, c], faded[-1][:, c], before[-1]))  # (B, E, N)
    start = torch.stack(before[:-1], 1)[:, :, None]  # (B, chunks, 1, E, N)
    whole = torch.addcmul(torch.stack(states, 2), torch.stack(faded, 2), start)  # (B, chunks, L, E, N)
    y = (whole @ C[..., None]).squeeze(-1)  # (B, chunks, L, E)
    return y.flatten(1, 2)[:, :time], before[-1]


def scan_open(
    u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, begins: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scan` for `torch.export`: the same chunks, but their tokens, and then the chunks, are chained by doubling.

    At most `OPEN` tokens; more are an error.
    """
    batch, time = u.shape[:2]
    torch._check(time <= OPEN)
    chunks = time // CHUNK + 2  # never one: torch.export would fix the program to exactly one
    pad = chunks * CHUNK - time
    u, step, B, C = (F.pad(t, (0, 0, 0, pad)).unflatten(1, (chunks, CHUNK)) for t in (u, step, B, C))
    fade = torch.exp(step[..., None] * A)  # (B, chunks, L, E, N)
    new = (step * u)[..., None] * B[..., None, :]  # (B, chunks, L, E, N)
    empty = torch.zeros_like(new[:, :, 0]).flatten(0, 1)  # (B * chunks, E, N)
    faded = torch.exp(step.cumsum(2)[..., None] * A)  # (B, chunks, L, E, N): the product of all `fade` so far
    if begins is not None:
        here = F.pad(begins, (0, pad)).unflatten(1, (chunks, CHUNK))[..., None, None]  # (B, chunks, L, 1, 1)
        fade, faded = fade.masked_fill(here, 0.0), faded.masked_fill(here.cumsum(2) > 0, 0.0)
    states = doubled(new.flatten(0, 1), fade.flatten(0, 1), empty, CHUNK)[:, 1:].unflatten(0, (batch, -1))
    before = doubled(states[:, :, -1], faded[:, :, -1], h, OPEN // CHUNK + 2)  # (B, chunks + 1, E, N)
    whole = torch.addcmul(states, faded, before[:, :-1, None])  # (B, chunks, L, E, N)
    y = (whole @ C[..., None]).squeeze(-1)  # (B, chunks, L, E)
    return y.flatten(1, 2)[:, :time], before[:, -1]


def doubled(new: Tensor, fade: Tensor, first: Tensor, most: int) -> Tensor:
    """h_0 = first, h_t = fade_t h_{t-1} + new_t, for at most `most` steps, in log2 of them (Hillis and Steele, 1986).

    After round k each h covers the 2^k before it. Shapes: new, fade (B, T, E, N); first (B, E, N) -> (B, T + 1, E, N).
    """
    states = torch.cat((first[:, None], new), 1)
    fade = torch.cat((torch.zeros_like(first)[:, None], fade), 1)  # products that reach h_0 are 0: nothing precedes it
    place = torch.arange(states.shape[1], device=first.device)
    for k in range(most.bit_length()):
        earlier = (place - (1 << k)).clamp(min=0)
        states, fade = torch.addcmul(states, fade, states[:, earlier]), fade * fade[:, earlier]
    return states
