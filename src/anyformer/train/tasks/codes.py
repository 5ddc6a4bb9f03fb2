"""The task reconstruct: a discrete autoencoder learns to say pictures, or sounds, by codes. B rows, T cells, V codes,
N samples, C channels.

In training the codes of a cell are drawn with noise for the number of the example: it depends neither on the cut of a
step into batches nor on the number of processes, and a run that resumes draws the same. Measured are the likeliest
codes. The temperature stays that of the model; `models.dvae.annealed` is for loops of one's own.

Of a sound, a codec learns a second at a time, from a random place on, by a random one of its bandwidths. Measured is
the second in its middle, by all books.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from anyformer.data.batches import Batch
from anyformer.data.order import Rows
from anyformer.parts.codes import gumbel

SECONDS = 1.0  # of a sound that are learned at once


@dataclass(frozen=True, eq=False)
class Coded:
    """Rows of pictures with noise for their codes, and themselves as labels, (B, C, height, width)."""

    source: Rows
    model: Any
    seed: int

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        pixels = self.source.rows(first, count)["pixel_values"]
        cells = self.model.embed.length({"pixel_values": pixels})
        codes, generator, noise = self.model.codes.table.num_embeddings, torch.Generator(), []
        for number in range(first, first + len(pixels)):
            words = np.random.SeedSequence((self.seed, number)).generate_state(2, np.uint32)
            generator.manual_seed(int(words[0]) << 32 | int(words[1]))
            noise.append(gumbel(1, cells, codes, generator=generator))
        return {"pixel_values": pixels, "noise": torch.cat(noise), "labels": pixels}


def prepared(rows: Rows, held_out: Callable[[int], Iterator[Batch]], model: Any, seed: int) -> tuple[Rows, Any]:
    """Rows to learn from, and held-out batches without noise."""

    def batches(batch: int) -> Iterator[Batch]:
        for pictures in held_out(batch):
            yield {"pixel_values": pictures["pixel_values"], "labels": pictures["pixel_values"]}

    return Coded(rows, model, seed), batches


@dataclass(frozen=True, eq=False)
class Seconds:
    """Rows of sounds, cut to a second each, and themselves as labels, (B, N, C), NaN at padding.

    Args:
        learns: at a place and with a bandwidth by the number of the example; else in the middle, with all books.
    """

    source: Rows
    model: Any
    seed: int
    learns: bool = True

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        return self.cut(self.source.rows(first, count), first)

    def cut(self, batch: Batch, first: int) -> Batch:
        """A batch whose rows have the numbers from `first` on."""
        sounds, mask, size = batch["input_values"], batch.get("attention_mask"), int(SECONDS * self.model.rate)
        counts = [sounds.shape[1]] * len(sounds) if mask is None else mask.sum(1).tolist()
        width, books = min(size, max(counts)), []
        made = sounds.new_full((len(sounds), width, sounds.shape[2]), torch.nan)
        for row, count in enumerate(counts):
            draw, spare = np.random.default_rng((self.seed, first + row)), max(0, count - size)
            at = int(draw.integers(spare + 1)) if self.learns else spare // 2
            made[row, : min(size, count)] = sounds[row, at : at + min(size, count)]
            books.append(self.model.books_for(draw.choice(self.model.bandwidths or [None])))
        there = made[..., 0].isfinite()
        inputs = {"input_values": made.nan_to_num(0.0), "labels": made}
        inputs |= {} if bool(there.all()) else {"attention_mask": there.long()}
        return {**inputs, "books": torch.tensor(books)} if self.learns else inputs


def sounds(
    rows: Rows, held_out: Callable[[int], Iterator[Batch]], model: Any, seed: int
) -> tuple[Rows, Callable[[int], Iterator[Batch]]]:
    """Rows of sounds to learn from, and held-out batches."""
    middle = Seconds(rows, model, seed, learns=False)
    return Seconds(rows, model, seed), lambda batch: (middle.cut(some, 0) for some in held_out(batch))


def check_parallel(parallel: str, mesh: Mapping[str, int] | None) -> None:
    """Raises ValueError for processes that see the same rows: the tables would follow them twice."""
    if parallel in ("tp", "ep") or (mesh or {}).get("tensor", 1) > 1:
        raise ValueError(
            f"parallel={parallel}: processes that share matrices see the same sounds, and the tables of a codec would "
            "follow these twice; with ddp, fsdp or zero they follow the sounds of all processes"
        )
