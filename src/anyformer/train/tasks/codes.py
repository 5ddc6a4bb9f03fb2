"""The task reconstruct: a discrete autoencoder learns to say pictures by codes. B rows, T cells, V codes.

In training the codes of a cell are drawn with noise for the number of the example: it depends neither on the cut of a
step into batches nor on the number of processes, and a run that resumes draws the same. Measured are the likeliest
codes. The temperature stays that of the model; `models.dvae.annealed` is for loops of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from anyformer.data.batches import Batch
from anyformer.data.order import Rows
from anyformer.parts.codes import gumbel


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
