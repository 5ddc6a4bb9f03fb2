"""Parts of Conformer's blocks. B batch, T frames, D width, W width of the kernel, K head width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import Part, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import FeedForward, Norm
from anyformer.parts.attention.attention import Attention
from anyformer.parts.attention.where import Where
from anyformer.parts.ffn import activation
from anyformer.parts.heads import Kept
from anyformer.parts.norms import TimeBatchNorm
from anyformer.parts.positions import Rotary
from anyformer.parts.proteins import Frequencies
from anyformer.parts.recurrent.convolution import ConvPositions
from anyformer.parts.sound.waves import WaveConvolution


class ConvModule(Mixer):
    """The convolution of a Conformer's block (Gulati et al., 2020; arXiv:2005.08100).

    ```
    x ── norm ── linear to 2 D ── a * sigmoid(b) ── 0 at padding ── conv over W frames, each channel alone ── batch norm
                                                                     ── act ── linear ──>
    ```
    A frame sees (W - 1) / 2 frames on both sides, and 0 beyond the ends of its own sound: padding has no trace.

    Args:
        width: W, odd.
        norm: before it. middle: after the convolution. act: after that.
        dropout: at the end.

    Shape: (B, T, D) -> same.
    """

    def __init__(
        self,
        dim: int,
        norm: Recipe[Norm],
        middle: Recipe[TimeBatchNorm],
        width: int = 31,
        act: str = "silu",
        dropout: float = 0.0,
    ):
        super().__init__()
        if width < 1 or width % 2 == 0:
            raise ValueError(f"ConvModule: width is an odd number of frames, the middle one and its sides; got {width}")
        self.norm, self.into, self.out = norm.build(dim), nn.Linear(dim, 2 * dim, False), nn.Linear(dim, dim, False)
        self.conv = WaveConvolution(dim, dim, width, padding=width // 2, groups=dim, bias=False)
        self.middle, self.act, self.dropout = middle.build(dim), activation("ConvModule", act), dropout

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.into.weight)
        nn.init.kaiming_normal_(self.out.weight)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_both_ways(flow)
        x = flow.clear(F.glu(self.into(self.norm(x)), -1))
        x = self.middle(self.conv(x.mT).mT, flow.keep_now(x.shape[1]))
        return drop(self, self.out(self.act(x)))


class Macaron(Part):
    """A Conformer's block: half a feed-forward step, attention, convolution, half a step, norm.

    ```
    x ──┬─ norm ─ ffn / 2 ─(+)─┬─ norm ─ attention ─(+)─┬─ convolution ─(+)─┬─ norm ─ ffn / 2 ─(+)─ norm ──>
        └──────────────────┘   └────────────────────┘   └───────────────┘   └──────────────────┘
    ```
    Args:
        mixer, conv, ffn: recipes; `ffn` is both the first step, `start`, and the last.
        norm: of every norm.
        dropout: at the end of a feed-forward step. mixer_dropout: at the end of the attention.

    Shape: (B, T, D) -> same.
    """

    def __init__(
        self,
        dim: int,
        mixer: Recipe[Mixer],
        conv: Recipe[ConvModule],
        ffn: Recipe[FeedForward],
        norm: Recipe[Norm],
        dropout: float = 0.0,
        mixer_dropout: float = 0.0,
    ):
        super().__init__()
        self.start, self.mixer, self.conv, self.ffn = (part.build(dim) for part in (ffn, mixer, conv, ffn))
        self.norm = nn.ModuleDict({name: norm.build(dim) for name in ("start", "mixer", "ffn", "out")})
        self.dropout, self.mixer_dropout = dropout, mixer_dropout

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        x = x + 0.5 * drop(self, self.start(self.norm["start"](x), flow))
        y = self.mixer(self.norm["mixer"](x), flow)
        x = x + (F.dropout(y, self.mixer_dropout) if self.training and self.mixer_dropout else y)
        x = x + self.conv(x, flow)
        x = x + 0.5 * drop(self, self.ffn(self.norm["ffn"](x), flow))
        return self.norm["out"](x)


class TurnedInput(Attention):
    """Attention whose queries and keys are made of the turned input, each head's channels turned by its position;
    values of the input as it is. (Others turn queries and keys themselves.)

    Args:
        turn: the positions. heads, dropout, kernel: as in `Attention`.

    Shape: (B, T, D) -> same.
    """

    packs = False

    def __init__(self, dim: int, turn: Recipe[Rotary], heads: int = 8, dropout: float = 0.0, kernel: str = "auto"):
        super().__init__(dim, heads=heads, dropout=dropout, kernel=kernel)
        self.turn = turn.build(self.head_dim)

    def _asked(self, x: Tensor, where: Where | None, flow: Flow) -> Tensor:
        return self.turn(self._split(x, self.heads), flow).flatten(2)


class ConformerEntry(Kept, Mixer):
    """What published Conformers store between front-end and blocks: a convolution of positions, which nothing reads;
    and, with `theta`, the frequencies of their rotary positions.

    Args:
        width, groups: of the convolution. theta: base of the frequencies, or None.
        head_dim: K. dropout: of x, the one thing that happens here.

    Shape: (B, T, D) -> same. Leaves `Frequencies` in the flow.
    """

    packs = True
    frequencies: Tensor | None

    def __init__(
        self,
        dim: int,
        width: int = 128,
        groups: int = 16,
        head_dim: int = 64,
        theta: float | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(dim, held=ConvPositions.of(width=width, groups=groups))
        if head_dim < 2 or head_dim % 2:
            raise ValueError(f"ConformerEntry: head_dim is an even number of channels, at least 2; got {head_dim}")
        self.count, self.theta, self.dropout = head_dim // 2, theta, dropout
        self.register_buffer("frequencies", None if theta is None else torch.empty(self.count))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.frequencies is not None and self.theta is not None:
            steps = torch.arange(self.count, dtype=torch.float32, device="cpu")  # on "meta" it imports a compiler
            self.frequencies.copy_(1.0 / self.theta ** (steps / self.count))

    def forward(self, x: Tensor, *flow: Flow) -> Tensor:
        if self.frequencies is not None:
            flow[0].put(Frequencies(self.frequencies))
        return drop(self, x)
