"""The task draw: a decoder learns to write the codes of a picture after its text. B rows, P places of text, codes of
R x S cells.

    loss = - mean over cells of log p(code | text, codes before it)

A dVAE that learned before makes the codes when a batch is made. Whether a row is without its text is drawn for the
number of an example: it depends neither on the cut of a step into batches nor on the number of processes, and a run
that resumes draws the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.data.batches import Batch
from anyformer.data.labels import IGNORE
from anyformer.data.models import find
from anyformer.data.order import Rows
from anyformer.hub import load
from anyformer.parts.text_and_codes import sequence
from anyformer.skeletons.autoencoder import Autoencoder

DROPPED = 0.1  # the share of examples without their text, so that guidance has something to compare with


@dataclass(frozen=True, eq=False)
class Drawn:
    """Rows of texts and pictures as ids of one sequence; labels are the next code, where the next id is one.

    Args:
        source: rows with pixel_values and input_ids. coder: of the codes, a copy that no process shares.
        vocab: ids of the text. places: P. dropped: the share of rows without their text.
    """

    source: Rows
    coder: Any
    vocab: int
    places: int
    seed: int
    dropped: float = DROPPED

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        return self.drawn(self.source.rows(first, count), first)

    def drawn(self, batch: Batch, first: int) -> Batch:
        """A batch whose rows have the numbers from `first` on."""
        ids, like = batch["input_ids"], next(self.coder.parameters())
        keep = batch.get("attention_mask", torch.ones_like(ids)).bool()
        texts = [row[real].tolist() for row, real in zip(ids, keep, strict=True)]
        blank = [np.random.default_rng((self.seed, first + i)).random() < self.dropped for i in range(len(texts))]
        texts = [[] if empty else text for text, empty in zip(texts, blank, strict=True)]
        codes = self.coder.coded(batch["pixel_values"].to(like)).cpu()  # (B, R, S)
        every = sequence(texts, self.vocab, self.places, codes)  # (B, 1 + P + R S)
        labels = every[:, 1:].masked_fill(every[:, 1:] < self.vocab + self.places, IGNORE)
        return {"input_ids": every[:, :-1], "labels": labels}


def prepared(rows: Rows, held_out: Callable[[int], Iterator[Batch]], model: Any, seed: int) -> tuple[Rows, Any]:
    """Rows to learn from, and held-out batches, all with their texts."""
    coder, places = copy.deepcopy(model.coder).eval(), model.places
    vocab = model.head.codes - places
    learned, measured = (Drawn(rows, coder, vocab, places, seed, share) for share in (DROPPED, 0.0))
    return learned, lambda batch: (measured.drawn(some, 0) for some in held_out(batch))


def coder_of(place: str | Path | None) -> Any:
    """The dVAE of a directory, or of the last checkpoint of a run; None without one.

    Raises:
        ValueError: for another model, or one without a processor.
    """
    if place is None:
        return None
    coder = load(find(str(place)))
    if not isinstance(coder, Autoencoder) or coder.processor is None:
        what = "no preprocessor_config.json" if isinstance(coder, Autoencoder) else "no codes of pictures"
        raise ValueError(f"codes: {place} has {what}; train a dVAE: anyformer train --model dvae --data pictures/")
    return coder.eval()


def implied(coder: Any) -> dict[str, Any]:
    """The hyperparameters of a decoder of these codes."""
    return {"codes": coder.codes.table.num_embeddings, "columns": grid(coder, coder.processor)[1]}


def grid(coder: Any, processor: Any) -> tuple[int, int]:
    """The rows and columns of the codes of a picture, as the processor makes it."""
    shape = (8, 8) if coder.embed.channels == 1 else (8, 8, coder.embed.channels)
    rows, columns = coder.embed.cells({"pixel_values": processor([np.zeros(shape, np.uint8)])["pixel_values"]})
    return int(rows), int(columns)


def with_coder(model: Any, coder: Any) -> Any:
    """The decoder with the dVAE of its codes, which is saved with it, and frozen.

    Args:
        coder: one to keep, or None where the model has its own.

    Raises:
        ValueError: if there is none, or another one than the model's, or its codes do not fit.
    """
    if model.coder is None and coder is None:
        raise ValueError(
            f"{model.page or 'the model'} writes codes of pictures, and whose codes is not said: train a dVAE "
            "(anyformer train --model dvae --data pictures/ --out runs/codes), then --codes runs/codes"
        )
    if model.coder is not None and coder is not None and not _same(model.coder, coder):
        raise ValueError("the model has a dVAE of its own, and codes names another one; leave codes out")
    if model.coder is None:
        model.fits(coder)
        model.recipe = model.recipe.but({"coder": coder.recipe})
        model.coder, model.processor, model.page, model.config = coder, coder.processor, None, None
        model.coder.to(next(model.parameters()).device)
    model.coder.requires_grad_(False)
    rows, columns = grid(model.coder, model.processor)
    if rows != columns or rows * columns != model.context - model.places:
        raise ValueError(
            f"the dVAE makes {rows} x {columns} codes of a picture, and the decoder writes a square of "
            f"{model.context - model.places}; give the dVAE square pictures, the decoder overrides.columns={columns}"
        )
    return model


def _same(one: Any, other: Any) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(v.cpu(), theirs[n].cpu()) for n, v in mine.items())
