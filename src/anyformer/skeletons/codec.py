"""Codecs of sound. B sounds, N samples, C channels, T frames, D width, Q books."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer.core.front import Entrance, FrontEnd, Input
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.parts.sound.books import Books
from anyformer.parts.sound.codec import SoundDecoder
from anyformer.parts.sound.pieces import Coded, Pieces, cut, joined, taken
from anyformer.skeletons.base import Output, Skeleton, embed_inputs

BOOKS = "books"


@dataclass(frozen=True)
class Narrowed(Entrance):
    """The entrance of the sound, with the number of books in use."""

    def inputs(self) -> dict[str, Input]:
        return {**super().inputs(), BOOKS: Input((), required=False, ids=True)}


class Codec(Skeleton, Part):
    """Sound as Q rows of codes, and codes as sound (EnCodec).

    ```
    input_values (B, N, C) -> embed -> hidden (B, T, D) -> codes -> decoder -> heads.sound (B, N, C)
                                                             └─ beside.codes (B, T, Q)
    ```
    `books` (B,) says for each sound how many of the Q books are in use: fewer bits, less likeness.

    Args:
        dim: width of the vectors.
        embed: `SoundEncoder.of(...)`.
        codes: `Books.of(...)`.
        decoder: `SoundDecoder.of(...)`.
        rate: samples a second, in Hz.
        bandwidths: bits a second, in thousands, for which it was trained; the last one takes all books.
    """

    lesson = (200, 2e-3)
    static = frozenset({"time"})  # a program unrolls its LSTM

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        codes: Recipe[Books],
        decoder: Recipe[SoundDecoder],
        rate: int = 24000,
        bandwidths: tuple[float, ...] = (),
    ):
        super().__init__()
        if rate < 1 or any(not b > 0 for b in bandwidths):
            raise ValueError(f"Codec: rate and bandwidths are above 0; got {rate} and {bandwidths}")
        self.embed: Any = embed.build(dim)
        self.codes, self.decoder = codes.build(dim), decoder.build(dim)
        self.rate, self.bandwidths = rate, bandwidths

    def entrances(self) -> tuple[Entrance, ...]:
        return (Narrowed(self.embed),)

    @property
    def frame_rate(self) -> int:
        """Frames a second, rounded up, as published bandwidths count them."""
        return math.ceil(self.rate / self.embed.hop)

    def books_for(self, bandwidth: float | None) -> int:
        """The number of books in `bandwidth` thousand bits a second; None: all.

        Raises:
            ValueError: for a bandwidth that it was not trained for, with those that it was.
        """
        if bandwidth is None:
            return len(self.codes.books)
        if bandwidth not in self.bandwidths:
            known = ", ".join(f"{b:g}" for b in self.bandwidths)
            raise ValueError(f"bandwidth={bandwidth!r}: this codec has {known or 'none'}, in thousand bits a second")
        count = int(max(1, math.floor(bandwidth * 1000 / (math.log2(self.codes.vocab) * self.frame_rate))))
        return min(count, len(self.codes.books))

    def forward(self, **inputs: Tensor | None) -> Output:
        """The inputs by name to an Output with `heads.sound`, 0 at padding, and `beside.codes`."""
        named = self.check_inputs(inputs)
        used = named.pop(BOOKS, None)
        tensors, flow = self.begin(self.entrances()[0], named)
        x = embed_inputs(self.embed, tensors, flow)  # (B, T, D)
        if used is not None and used.shape != x.shape[:1]:
            raise ValueError(f"books must be (batch,) = {tuple(x.shape[:1])}, got {tuple(used.shape)}")
        vectors, codes = self.codes(x, flow, used)
        sound = self._sound(vectors, flow.get(Pieces, "Codec"), tensors["input_values"].shape[1])
        keep, beside = flow.keep_now(x.shape[1]), {"codes": codes}
        return Output(x, None, {"sound": sound}, aux=flow.aux, keep=keep, figures=flow.figures, beside=beside)

    def _sound(self, vectors: Tensor, pieces: Pieces, samples: int) -> Tensor:
        """Vectors (B, T, D) as sound (B, N, C)."""
        if pieces.whole:
            sound = self.decoder(vectors.mT)
            return (sound if pieces.scales[0] is None else sound * pieces.scales[0])[..., :samples].mT
        sounds = []
        for group, scale in zip(pieces.groups, pieces.scales, strict=True):
            sound = self.decoder(taken(vectors, group, -(-group.length // self.embed.hop)).mT)  # (P, C, hop F)
            sounds.append(sound if scale is None else sound * scale)
        zeros = vectors.new_zeros(len(vectors), self.embed.channels, samples)
        return joined(pieces, sounds, self.embed.step, zeros).mT

    @torch.no_grad()
    def codes_of(
        self, input_values: Tensor, attention_mask: Tensor | None = None, bandwidth: float | None = None
    ) -> Coded:
        """The codes of sounds.

        Args:
            input_values: (B, N, C). attention_mask: (B, N), 1 = a real sample.
            bandwidth: one of `bandwidths`; None: all books.
        """
        count = self.books_for(bandwidth)
        named = {"input_values": input_values}
        named |= {} if attention_mask is None else {"attention_mask": attention_mask}
        tensors, flow = self.begin(self.entrances()[0], named)
        x = embed_inputs(self.embed, tensors, flow)
        used = torch.full((len(x),), count, device=x.device)
        codes = self.codes(x, flow, None if count == len(self.codes.books) else used)[1][..., :count]
        pieces = flow.get(Pieces, "Codec")
        counts = [input_values.shape[1]] * len(x) if pieces.whole else pieces.counts
        return Coded(codes, torch.tensor(counts), self._scales(pieces))

    def _scales(self, pieces: Pieces) -> Tensor | None:
        """The loudness of the pieces of each sound in their order, (B, P)."""
        if pieces.whole:
            return None if pieces.scales[0] is None else pieces.scales[0].flatten(1)
        found: list[list[tuple[int, Tensor]]] = [[] for _ in pieces.counts]
        for group, scale in zip(pieces.groups, pieces.scales, strict=True):
            if scale is None:
                return None
            for row, start, one in zip(group.rows, group.starts, scale.flatten(), strict=True):
                found[row].append((start, one))
        if not self.embed.normalise:
            return None
        made = torch.zeros(len(found), max(1, *map(len, found)))
        for row, some in zip(made, found, strict=True):
            row[: len(some)] = torch.tensor([float(one) for _, one in sorted(some, key=lambda piece: piece[0])])
        return made

    @torch.no_grad()
    def sound_of(self, codes: Tensor, counts: Tensor | None = None, scales: Tensor | None = None) -> Tensor:
        """Sounds (B, N, C) of codes (B, T, q), of the first q books; 0 behind the end of each.

        Args:
            counts: (B,) the samples of each; None: hop for each frame, for a codec of whole sounds.
            scales: (B, P) as in `Coded`.

        Raises:
            ValueError: for another shape, a code outside the tables, or a missing argument.
        """
        self._check_codes(codes)
        hop, device = self.embed.hop, self.decoder.first.bias.device
        if counts is None and self.embed.piece is not None:
            raise ValueError("counts is missing: this codec cuts a sound into pieces by its number of samples")
        sizes = [codes.shape[1] * hop] * len(codes) if counts is None else counts.tolist()
        if self.embed.normalise and scales is None:
            raise ValueError("scales is missing: this codec keeps the loudness of a sound beside its codes")
        if wrong := [n for n in sizes if self.embed.frames(n) > codes.shape[1]]:
            raise ValueError(
                f"counts: {wrong[0]} samples have {self.embed.frames(wrong[0])} frames, codes {codes.shape[1]}"
            )
        groups = cut(sizes, hop, self.embed.piece, self.embed.step)
        loud = [self._loudness(group.rows, group.starts, scales) for group in groups]
        pieces = Pieces(groups, tuple(loud), tuple(sizes))
        vectors = self.codes.vectors(codes.to(device))
        return self._sound(vectors, pieces, max(sizes))

    def _loudness(self, rows: tuple[int, ...], starts: tuple[int, ...], scales: Tensor | None) -> Tensor | None:
        if not self.embed.normalise or scales is None:
            return None
        places = [start // (self.embed.step or 1) for start in starts]
        return scales.to(self.decoder.first.bias)[list(rows), places][:, None, None]

    def _check_codes(self, codes: Tensor) -> None:
        most = len(self.codes.books)
        if codes.ndim != 3 or codes.is_floating_point() or not 1 <= codes.shape[2] <= most or not codes.shape[1]:
            raise ValueError(
                f"codes must be whole numbers (batch, frames, 1 to {most} books), got {codes.dtype} of "
                f"{tuple(codes.shape)}"
            )
        bad = codes[(codes < 0) | (codes >= self.codes.vocab)]
        if len(bad):
            raise ValueError(f"code {int(bad[0])} is outside the tables: codes go from 0 to {self.codes.vocab - 1}")
