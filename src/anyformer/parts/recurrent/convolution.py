"""Mixing by a convolution. B batch, T time, D width, W width of the kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import built, call, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.parts.ffn import activation
from anyformer.parts.fused import depthwise
from anyformer.parts.recurrent.chunked import Recurrent

SHORT = 64  # the longest kernel that is applied directly, in tokens; longer ones by FFT


class Convolution(Mixer):
    """A gated convolution, a kernel for each channel: y = out(conv(u) * silu(gate)), u and gate from x (the gated form
    is Hyena's of order 2: Poli et al., 2023; arXiv:2302.10866).

    ```
    x ─ into ─┬─ u ─ conv over the last W tokens ─(x)─ out ──>
              └─ gate ─ silu ─────────────────────┘
    ```
    In a decoder position t sees t - W + 1 … t, in an encoder (W - 1) / 2 positions on each side, one more before it if
    W is even. In an encoder a kernel of more than 64 tokens is applied by FFT, in T log T; in a decoder always
    directly, in T W: the FFT would carry rounding from later tokens to earlier ones.

    Args:
        width: W, at least 1.
        bias: of `into`, `conv` and `out`.

    Shape: (B, T, D) -> same. State: the last W - 1 inputs of the convolution.
    """

    def __init__(self, dim: int, width: int = 4, bias: bool = True):
        super().__init__()
        if width < 1:
            raise ValueError(f"Convolution: width is the tokens that the kernel sees, at least 1; got {width}")
        self.width = width
        self.into, self.out = nn.Linear(dim, 2 * dim, bias), nn.Linear(dim, dim, bias)
        self.conv = nn.Conv1d(dim, dim, width, groups=dim, bias=bias)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        slot, keep = flow.slot(self), flow.keep_now(x.shape[1])
        u, gate = self.into(x).chunk(2, -1)  # (B, T, D) each
        u = u if keep is None else u * keep[..., None]
        before = self.width - 1 if flow.causal else self.width // 2
        if slot is None:
            inputs = F.pad(u, (0, 0, before, self.width - 1 - before))  # (B, W - 1 + T, D)
        else:
            inputs = torch.cat((slot.held[0], u), 1)
            slot.put(x.shape[1], inputs[:, inputs.shape[1] - before :])
        direct = flow.causal or self.width <= SHORT or isinstance(x.shape[1], torch.SymInt)
        y = depthwise(inputs, self.conv.weight, self.conv.bias) if direct else self._by_fft(inputs.mT).mT  # (B, T, D)
        return self.out(y * F.silu(gate))

    def _by_fft(self, inputs: Tensor) -> Tensor:
        """(B, D, W - 1 + T) -> (B, D, T)."""
        size = 1 << (inputs.shape[-1] - 1).bit_length()  # no wrap-around into the kept positions
        wide = torch.promote_types(inputs.dtype, torch.float32)
        kernel = torch.fft.rfft(self.conv.weight[:, 0].flip(-1).to(wide), size)  # (D, size / 2 + 1)
        y = torch.fft.irfft(torch.fft.rfft(inputs.to(wide), size) * kernel, size)  # (B, D, size)
        y = y[..., self.width - 1 : inputs.shape[-1]].to(inputs.dtype)
        return y if self.conv.bias is None else y + self.conv.bias[:, None]

    def start(self, batch: int, length: int, like: Tensor) -> Recurrent:
        return Recurrent(like.new_zeros(batch, self.width - 1, self.out.in_features))


class ConvPositions(Mixer):
    """Positions by convolution (Baevski et al., 2020, "wav2vec 2.0"; arXiv:2006.11477): x + act(conv(x)) before the
    first block, `entry=ConvPositions.of()`. A token infers its position from its neighbours.

    ```
    weight = gain_w direction / |direction|_w         one length for each of the W taps (Salimans and Kingma, 2016)
    ```
    In an encoder a token sees W / 2 before it and W - 1 - W / 2 after it, in a decoder the last W - 1 and itself.

    Args:
        width: W. `groups`: the channels mix inside each of these groups; D groups are a depthwise convolution.
        act: after the convolution.
        norm: of the sum, or None. `dropout`: after it.

    Parameters: `direction` (D, D / groups, W), `gain` (W,), `bias` (D,). Shape: (B, T, D) -> same. State: the last
    W - 1 inputs.
    """

    def __init__(
        self,
        dim: int,
        width: int = 128,
        groups: int = 16,
        act: str = "gelu",
        norm: Recipe[Norm] | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        if width < 1 or groups < 1 or dim % groups:
            raise ValueError(
                f"ConvPositions: width and groups must be at least 1, and groups divide the width {dim} of the stream; "
                f"got width={width}, groups={groups}"
            )
        self.width, self.groups = width, groups
        self.direction = nn.Parameter(torch.empty(dim, dim // groups, width))
        self.gain, self.bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.zeros(dim))
        self.act, self.norm, self.dropout = activation("ConvPositions", act), built(norm, dim), dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.direction, std=2 / (self.width * self.direction.shape[0]) ** 0.5)
        nn.init.zeros_(self.bias)
        if self.direction.is_meta:
            return  # there, arithmetic imports PyTorch's compiler
        with torch.no_grad():
            self.gain.copy_(self._lengths())

    def _lengths(self) -> Tensor:
        """|direction| of each tap, (W,). PyTorch's norm over the axes in front takes ten times as long as this sum."""
        return self.direction.square().sum((0, 1)).sqrt()

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        slot = flow.slot(self)
        before = self.width - 1 if flow.causal else self.width // 2
        clean = flow.clear(x)
        if slot is None:
            inputs = F.pad(clean, (0, 0, before, self.width - 1 - before))  # (B, W - 1 + T, D)
        else:
            inputs = torch.cat((slot.held[0], clean), 1)
            slot.put(x.shape[1], inputs[:, inputs.shape[1] - before :])
        weight = self.direction * (self.gain / self._lengths())
        places = self.act(F.conv1d(inputs.mT, weight, self.bias, groups=self.groups)).mT  # (B, T, D)
        return drop(self, call(self.norm, x + places))

    def start(self, batch: int, length: int, like: Tensor) -> Recurrent:
        return Recurrent(like.new_zeros(batch, self.width - 1, len(self.bias)))
