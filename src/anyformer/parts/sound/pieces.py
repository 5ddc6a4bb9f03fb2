"""Sounds in pieces that are coded apart, and the encoder of a codec.

B sounds, N samples, C channels, P pieces of one length, F frames of a piece, T frames of a sound, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Companion, Flow
from anyformer.core.front import FrontEnd, Input, Inputs
from anyformer.parts.sound.codec import CodecConvolution, CodecDown, CodecLSTM, Convolutions
from anyformer.parts.sound.waves import right_only

LEAST_SCALE = 1e-8  # added to the loudness of a piece, as published


class Coded(NamedTuple):
    """Sounds as codes: `codec.sound_of(*coded)` makes sounds of them.

    Attributes:
        codes: (B, T, Q) whole numbers; padding has 0.
        counts: (B,) the samples of each sound.
        scales: (B, P) the loudness of each piece of a sound, 0 behind the last; None where the codec keeps none.
    """

    codes: Tensor
    counts: Tensor
    scales: Tensor | None


@dataclass(frozen=True)
class Group:
    """Pieces of one length, which are computed together: of sound `rows[p]`, from sample `starts[p]` on, whose frames
    begin at `places[p]`."""

    length: int
    rows: tuple[int, ...]
    starts: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Pieces(Companion):
    """The pieces of a batch, with the loudness of each, (P, 1, 1) a group, or None; and the samples of each sound."""

    left_by: ClassVar[str] = "SoundEncoder"
    groups: tuple[Group, ...]
    scales: tuple[Tensor | None, ...]
    counts: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """True for sounds of one length, each in one piece, all computed together: there are no groups."""
        return not self.groups and bool(self.scales)


def cut(counts: Sequence[int], hop: int, piece: int | None, step: int | None) -> tuple[Group, ...]:
    """The pieces of sounds of so many samples: each whole, or `piece` samples at every `step`."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for row, count in enumerate(counts):
        place = 0
        for start in range(0, count, step or max(1, count)):
            length = count - start if piece is None else min(piece, count - start)
            found.setdefault(length, []).append((row, start, place))
            place += -(-length // hop)
    return tuple(Group(length, *map(tuple, zip(*some, strict=True))) for length, some in found.items())


class SoundEncoder(FrontEnd):
    """Sound to vectors of frames: convolutions that halve and halve again, an LSTM (Défossez et al., 2022;
    arXiv:2210.13438).

    ```
    samples ── conv ── (residual blocks ── ELU ── conv of 2 r, every r-th, twice as wide) x ratios ── LSTM ── conv
    ```
    A sound ends with its last real sample: its padding, norms and loudness are its own. Pieces of equal length are
    computed together, others apart, so a row of a padded batch is the row alone.

    Args:
        how: the convolutions.
        channels: C.
        piece, step: samples of a piece, and between the starts of two; None: a sound is one piece.
        normalise: a piece is divided by its loudness, the root of the mean square of its channels' mean.

    Shape: (B, N, C) -> (B, T, D); T = ceil(N / hop), or the sum over the pieces.
    """

    main, mask, right = "input_values", "attention_mask", True

    def __init__(
        self,
        dim: int,
        how: Convolutions,
        channels: int = 1,
        piece: int | None = None,
        step: int | None = None,
        normalise: bool = False,
    ):
        super().__init__()
        if channels < 1 or (piece is None) != (step is None) or not 1 <= (step or 1) <= (1 if piece is None else piece):
            raise ValueError(
                f"SoundEncoder: channels is at least 1, and piece and step are both None or 1 <= step <= piece; got "
                f"channels={channels}, piece={piece}, step={step}"
            )
        self.channels, self.hop, self.piece, self.step, self.normalise = channels, how.hop, piece, step, normalise
        widths = [how.filters << i for i in range(len(how.ratios) + 1)]
        self.first = CodecConvolution(channels, widths[0], how.kernel, how)
        self.stages = nn.ModuleList(CodecDown(w, r, how) for w, r in zip(widths, reversed(how.ratios), strict=False))
        self.lstm = CodecLSTM(widths[-1], how.lstm)
        self.last = CodecConvolution(widths[-1], dim, how.last_kernel, how)
        self.dim = dim

    def inputs(self) -> dict[str, Input]:
        return {"input_values": Input(("time", "channels"), ("time",), ("channels",))}

    def frames(self, samples: Tensor | int) -> Tensor | int:
        """The frames of so many samples."""
        if self.piece is None or self.step is None:
            return -(-samples // self.hop)
        if isinstance(samples, int):
            every = range(0, samples, self.step)
            return sum(-(-min(self.piece, samples - start) // self.hop) for start in every)
        starts = torch.arange(0, max(1, int(samples.max())), self.step, device=samples.device)
        return -(-(samples[..., None] - starts).clamp(0, self.piece) // self.hop).sum(-1)

    def least(self, count: int) -> int:
        if self.piece is None:
            return (count - 1) * self.hop + 1
        samples = 1
        while self.frames(samples) < count:
            samples += 1
        return samples

    def units(self, inputs: Inputs) -> int:
        return inputs["input_values"].shape[1]

    def length(self, inputs: Inputs) -> int:
        samples = inputs["input_values"]
        if samples.ndim != 3 or samples.shape[2] != self.channels or not samples.is_floating_point():
            raise ValueError(
                f"input_values must be floats of the shape (batch, samples, {self.channels}), one number for each "
                f"channel; got {samples.dtype} of {tuple(samples.shape)}"
            )
        if isinstance(samples.shape[1], int) and samples.shape[1] < 1:
            raise ValueError("input_values have no samples: the sound is empty")
        return self.frames(samples.shape[1])  # type: ignore[return-value]

    def keep(self, mask: Tensor, inputs: Inputs) -> Tensor:
        right_only(mask)
        counts = self.frames(mask.sum(1))
        return torch.arange(self.length(inputs), device=mask.device) < counts[:, None]  # type: ignore[index]

    def example(self, rows: int, size: tuple[int, ...], noise: torch.Generator) -> dict[str, Tensor]:
        return {"input_values": torch.randn(rows, size[0], self.channels, generator=noise)}

    def sizes(self) -> list[tuple[int, ...]]:
        chunked = [] if self.piece is None or self.step is None else [(self.piece + self.step + 1,), (self.piece,)]
        return [(self.least(16),), (1,), (self.hop,), (self.hop + 1,), *chunked]

    def forward(self, inputs: Inputs, flow: Flow) -> Tensor:
        x, mask = inputs["input_values"].to(self.first.bias.dtype).mT, inputs.get("attention_mask")  # (B, C, N)
        if mask is None and self.piece is None:  # with an open length, in an exported program, too
            y, scale = self._piece(x)
            flow.put(Pieces((), (scale,), ()))
            return y.mT
        counts = [x.shape[2]] * len(x) if mask is None else mask.sum(1).tolist()
        groups = cut(counts, self.hop, self.piece, self.step)
        made, scales = x.new_zeros(len(x), self.length(inputs), self.dim), []
        for group in groups:
            several = zip(group.rows, group.starts, strict=True)
            y, scale = self._piece(torch.stack([x[r, :, s : s + group.length] for r, s in several]))
            scales.append(scale)
            made = placed(made, y.mT, group)
        flow.put(Pieces(groups, tuple(scales), tuple(counts)))
        return made

    def _piece(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(P, C, N) to (P, D, F), and the loudness of each piece."""
        scale = None
        if self.normalise:
            scale = x.mean(1, keepdim=True).pow(2).mean(-1, keepdim=True).sqrt() + LEAST_SCALE
            x = x / scale
        x = self.first(x)
        for stage in self.stages:
            x = stage(x)
        return self.last(F.elu(self.lstm(x))), scale


def placed(whole: Tensor, pieces: Tensor, group: Group) -> Tensor:
    """(B, T, D) with the frames (P, F, D) of pieces at their places."""
    frames = torch.arange(pieces.shape[1], device=whole.device)
    rows = torch.tensor(group.rows, device=whole.device)[:, None].expand(-1, len(frames))
    places = torch.tensor(group.places, device=whole.device)[:, None] + frames
    return whole.index_put((rows, places), pieces)


def taken(whole: Tensor, group: Group, frames: int) -> Tensor:
    """The frames (P, F, D) of pieces in (B, T, D): the inverse of `placed`."""
    several = zip(group.rows, group.places, strict=True)
    return torch.stack([whole[row, place : place + frames] for row, place in several])


def joined(pieces: Pieces, sounds: Sequence[Tensor], step: int | None, whole: Tensor) -> Tensor:
    """The decoded pieces (P, C, hop F) of each group as sounds, (B, C, N), 0 behind the end of each.

    Where pieces overlap, a sample is their mean, weighted by the distance to the end of a whole piece:
    w_i = 1/2 - |i / (L + 1) - 1/2|, i = 1 … L.

    Args:
        whole: zeros of the result's shape.
    """
    if step is None:
        for group, sound in zip(pieces.groups, sounds, strict=True):
            rows = torch.tensor(group.rows, device=whole.device)
            whole = whole.index_put((rows,), _filled(sound[..., : group.length], whole.shape[2]))
        return whole
    rows_of: list[list[tuple[int, Tensor]]] = [[] for _ in pieces.counts]
    for group, sound in zip(pieces.groups, sounds, strict=True):
        for row, start, one in zip(group.rows, group.starts, sound, strict=True):
            rows_of[row].append((start, one))
    mixed = [_mixed(row, count, zeros) for row, count, zeros in zip(rows_of, pieces.counts, whole, strict=True)]
    return torch.stack(mixed)


def _filled(x: Tensor, samples: int) -> Tensor:
    return F.pad(x, (0, samples - x.shape[-1]))


def _mixed(row: list[tuple[int, Tensor]], count: int, zeros: Tensor) -> Tensor:
    """One sound of its pieces and their starts, (C, N)."""
    if not row:
        return zeros
    row = sorted(row, key=lambda piece: piece[0])
    end = max(start + one.shape[-1] for start, one in row)
    ramp = torch.linspace(0, 1, row[0][1].shape[-1] + 2, dtype=zeros.dtype, device=zeros.device)[1:-1]
    weights, whole, total = 0.5 - (ramp - 0.5).abs(), zeros.new_zeros(len(zeros), end), zeros.new_zeros(end)
    for start, one in row:
        share, around = weights[: one.shape[-1]], (start, end - start - one.shape[-1])
        whole, total = whole + F.pad(one * share, around), total + F.pad(share, around)
    return _filled((whole / total)[:, :count], zeros.shape[-1])
