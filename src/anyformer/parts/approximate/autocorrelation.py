"""Auto-correlation: attention of a text to its own shifts, at the delays of the largest self-similarity.

B batch, T time, S time of the memory, D width, A delays.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.parts.rows import Rows, rows


class AutoCorrelation(Mixer):
    """Attention between sub-series instead of tokens (Wu et al., 2021; arXiv:2106.13008).

    ```
    R(d) = mean over channels, heads included, of sum_t q[t + d] k[t]        a text goes round: t + d is taken modulo T
    the A = factor * ln T delays of the largest R, rounded down:      y[t] = sum_d softmax(R)_d v[t + d]
    ```
    All R come from one Fourier transform, the mean taken before its inverse, and so does the sum: O(T log T).

    Padding is not counted, and each row has its own delays. In transformers a row of a batch depends on the others:
    training takes the delays of their mean, evaluation mixes up the delays of rows. There is at least one delay;
    transformers has none for a text of one token, and returns zeros.

    With `cross`, k and v are of the encoder's memory: its first T steps. In a memory with fewer steps, zeros follow,
    and of the T queries only the first T - S are read, as in transformers.

    Args:
        factor: see above.
        bias: of all projections.
        cross: keys and values come from the encoder's memory; neither side can have padding.

    Shape: (B, T, D) -> same. It mixes the future in: no use in a causal decoder, and no state.
    """

    def __init__(self, dim: int, factor: float = 3.0, bias: bool = True, cross: bool = False):
        super().__init__()
        if factor <= 0:
            raise ValueError(f"AutoCorrelation: factor must be above 0; got {factor}")
        self.factor, self.cross = factor, cross
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias) for _ in range(4))

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_both_ways(flow)
        there = rows(flow, x)
        if self.cross:
            q, k, v = self._across(x, flow)
        else:
            real = there.real()[:, None, :, None]
            q, k, v = (there.packed(p(x)[:, None]).where(real, 0.0)[:, 0] for p in (self.q, self.k, self.v))
        likeness = self.likeness(q, k, there)  # (B, T) of (B, T, D) each
        delays = (self.factor * there.count.double().log()).long().minimum(there.count).clamp(min=1)  # (B, 1) A
        most = max(1, min(int(self.factor * math.log(x.shape[1])), x.shape[1]))
        top, delay = likeness.topk(most, 1)  # (B, A) each
        top = top.masked_fill(torch.arange(most, device=x.device) >= delays, float("-inf"))  # a short row has fewer
        # a weight of e^-40 is negligible beside 1, and its gradient, below 1e-38, would slow every product down
        top = top.masked_fill(top < top[:, :1] - 40, float("-inf"))
        y = self.delayed(v, top.softmax(1), delay, there)  # (B, T, D)
        return self.o(there.unpacked(y[:, None])[:, 0])

    def _across(self, x: Tensor, flow: Flow) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the memory, (B, T, D) each."""
        memory = flow.memory
        if memory is None or memory.keep is not None or flow.keep is not None:
            raise ValueError(
                "AutoCorrelation with cross=True needs an encoder's output, and whole windows on both sides: an "
                "encoder-decoder without padding"
            )
        time, source = x.shape[1], memory.stream.shape[1]
        q, k, v = self.q(x), *(p(memory.stream[:, :time]) for p in (self.k, self.v))
        if time > source:
            q = torch.cat((q[:, : time - source], torch.zeros_like(q[:, :source])), 1)
            k, v = (torch.cat((t, t.new_zeros(t.shape[0], time - source, t.shape[2])), 1) for t in (k, v))
        return q, k, v

    def delayed(self, v: Tensor, share: Tensor, delay: Tensor, there: Rows) -> Tensor:
        """sum_i share_i v[t + delay_i], modulo the length of the row: (B, T, D), (B, A) twice -> (B, T, D).

        By linear transforms: in a row of n tokens, whose v ends in zeros, v[t + d] and v[t + d - n] add up to the
        circular one. The gradient is one transform, too, instead of one for each of A copies of the text.
        """
        wide, time = torch.promote_types(v.dtype, torch.float32), v.shape[1]
        if there.whole:  # a transform of the text's own length is circular
            weight = share.new_zeros(v.shape[0], time, dtype=wide).scatter_add(1, delay, share.to(wide))
            a, b = torch.fft.rfft(v.to(wide), dim=1), torch.fft.rfft(weight, dim=1)
            return torch.fft.irfft(a * b.conj()[..., None], time, dim=1).to(v.dtype)
        weight = share.new_zeros(v.shape[0], 2 * time, dtype=wide)
        for lag in (delay, (delay - there.count) % (2 * time)):
            weight = weight.scatter_add(1, lag, share.to(wide))
        a, b = torch.fft.rfft(v.to(wide), 2 * time, dim=1), torch.fft.rfft(weight, dim=1)
        return torch.fft.irfft(a * b.conj()[..., None], 2 * time, dim=1)[:, :time].to(v.dtype)

    def likeness(self, q: Tensor, k: Tensor, there: Rows) -> Tensor:
        """R at the delays 0 … T - 1, the least number beyond a row's length, (B, T, D) twice -> (B, T).

        The transform has room for twice the text, so that it is linear; then the delays d and d - n of a row of n
        tokens, which are the same, are added.
        """
        wide, time = torch.promote_types(q.dtype, torch.float32), q.shape[1]
        if there.whole:
            a, b = (torch.fft.rfft(t.to(wide), dim=1) for t in (q, k))
            return torch.fft.irfft((a * b.conj()).mean(-1), time, dim=1)
        a, b = (torch.fft.rfft(t.to(wide), 2 * time, dim=1) for t in (q, k))  # (B, T + 1, D)
        linear = torch.fft.irfft((a * b.conj()).mean(-1), 2 * time, dim=1)  # (B, 2 T): d, and 2 T - d for -d
        delay = torch.arange(time, device=q.device)
        back = linear.gather(1, (delay - there.count) % (2 * time))  # (B, T)
        return (linear[:, :time] + back).masked_fill(~there.real(), torch.finfo(wide).min)
