"""The task paint: a denoiser learns what it is to say of noised pictures. B rows, C channels.

    x_t = a x + b n,   loss = mean (said(x_t, t, about) - target(x, n, t))^2           over rows, channels and pixels

Noise, time and whether the row is about nothing are drawn for the number of an example: they depend neither on the cut
of a step into batches nor on the number of processes, and a run that resumes draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from anyformer.data.batches import Batch
from anyformer.data.order import Rows
from anyformer.hub.noising import Noising
from anyformer.hub.text.reading import reading
from anyformer.parts.heads import Unpatch
from anyformer.train.tasks.base import collate

DROPPED = 0.1  # the share of examples that are about nothing, as in the published runs
LEARNED, MEASURED = 0, 1  # examples to learn from, held-out examples


@dataclass(frozen=True, eq=False)
class Noised:
    """Rows of pictures, noised by their numbers.

    Args:
        source: rows with pixel_values, and either labels, the numbers of classes, or input_ids.
        noising: of the model. nothing: the number of the class that means nothing, or the ids of the empty text.
        pad: the id that fills up a text. part: LEARNED or MEASURED. dropped: the share of rows about nothing.
    """

    source: Rows
    noising: Noising
    nothing: int | tuple[int, ...]
    pad: int
    seed: int
    part: int = LEARNED
    dropped: float = DROPPED

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`. Labels are what the model is to say, (B, C, height, width)."""
        return self.noised(self.source.rows(first, count), first)

    def noised(self, batch: Batch, first: int) -> Batch:
        """A batch whose rows have the numbers from `first` on."""
        clean = batch["pixel_values"]
        noise, times, empty = (
            torch.empty_like(clean),
            torch.empty(len(clean)),
            torch.zeros(len(clean), dtype=torch.bool),
        )
        generator = torch.Generator()
        for i in range(len(clean)):
            words = np.random.SeedSequence((self.seed, self.part, first + i)).generate_state(2, np.uint32)
            generator.manual_seed(int(words[0]) << 32 | int(words[1]))
            shares = torch.rand(2, generator=generator)
            times[i], empty[i] = shares[0], shares[1] < self.dropped
            noise[i] = torch.randn(clean.shape[1:], generator=generator)
        times = self.noising.drawn(times)
        about = self._classes(batch, empty) if isinstance(self.nothing, int) else self._texts(batch, empty)
        noised = {"pixel_values": self.noising.noised(clean, noise, times), "timestep": times, **about}
        return {**noised, "labels": self.noising.target(clean, noise, times)}

    def _classes(self, batch: Batch, empty: torch.Tensor) -> Batch:
        assert isinstance(self.nothing, int)
        return {"class_labels": batch["labels"].masked_fill(empty, self.nothing)}

    def _texts(self, batch: Batch, empty: torch.Tensor) -> Batch:
        """The texts, the empty one in place of those that are dropped."""
        ids = batch["input_ids"]
        keep = batch.get("attention_mask", torch.ones_like(ids)).bool()
        texts = [
            np.array(self.nothing) if nothing else row[real].numpy()
            for row, real, nothing in zip(ids, keep, empty.tolist(), strict=True)
        ]
        return collate([{"input_ids": text} for text in texts], self.pad)


def prepared(rows: Rows, held_out: Callable[[int], Iterator[Batch]], model: Any, seed: int) -> tuple[Rows, Any]:
    """Rows to learn from and held-out batches, noised."""
    pad = 0 if model.tokenizer is None else model.tokenizer.pad_id
    learned = Noised(rows, model.noising, nothing_of(model), pad, seed)
    measured = Noised(rows, model.noising, nothing_of(model), pad, seed, MEASURED, 0.0)

    def batches(batch: int) -> Iterator[Batch]:
        first = 0
        for clean in held_out(batch):
            yield measured.noised(clean, first)
            first += len(clean["pixel_values"])

    return learned, batches


def nothing_of(model: Any) -> int | tuple[int, ...]:
    """The inputs of the model for a row that is about nothing."""
    if "class_labels" in model.inputs():
        return next(e.front.nothing for e in model.entrances() if e.front.main == "class_labels")
    return tuple(reading(model.tokenizer, "", False).ids)


def check(model: Any, names: tuple[str, ...]) -> None:
    """Raises ValueError for a model that does not say as many channels as pictures have, or has other classes."""
    wanted = model.entrances()[0].front.channels
    said = next(m for m in model.modules() if isinstance(m, Unpatch)).channels
    if wanted != said:
        raise ValueError(
            f"the model says {said} channels of pictures with {wanted}: a predicted variance is not trained here; "
            f"build it with out={wanted}"
        )
    if names and nothing_of(model) != len(names):
        raise ValueError(f"the data has {len(names)} classes, the model {nothing_of(model)}")
