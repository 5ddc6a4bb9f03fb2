"""The tasks contrast and units: frames of sound are hidden, by the number of the example. B rows, T frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.core.taps import Taps
from anyformer.data.batches import Batch
from anyformer.data.clusters import kmeans, nearest
from anyformer.data.hiding import distractors, hidden_frames
from anyformer.data.labels import IGNORE
from anyformer.data.order import Rows
from anyformer.media.mfcc import mfcc
from anyformer.parts.sound.heads import Quantised, Units

LEARNED, MEASURED = 0, 1  # examples to learn from, held-out examples
DISTRACTORS = 100
MOST = 50_000  # frames from which clusters are learned
MFCC = "mfcc"


@dataclass(frozen=True, eq=False)
class Hidden:
    """Rows of sounds, some of whose frames are hidden by their numbers.

    Args:
        source: rows with input_values, and for units the clusters of their frames as labels.
        part: LEARNED or MEASURED. among: distractors of a hidden frame; 0: its label is its cluster.
    """

    source: Rows
    model: Any
    seed: int
    part: int
    among: int

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        return self.hide(self.source.rows(first, count), first)

    def hide(self, batch: Batch, first: int) -> Batch:
        """A batch whose rows have the numbers from `first` on: `hidden_frames` (B, T), labels (B, T) or (B, T, K)."""
        samples, mask = batch["input_values"], batch.get("attention_mask")
        counts = [samples.shape[1]] * len(samples) if mask is None else mask.sum(1).tolist()
        width = max(1, self.model.embed.frames(samples.shape[1]))
        hidden = torch.zeros(len(samples), width, dtype=torch.bool)
        shape = (len(samples), width, self.among) if self.among else (len(samples), width)
        labels = torch.full(shape, IGNORE)
        for row, count in enumerate(counts):
            draw = np.random.default_rng((self.seed, self.part, first + row))
            frames = max(0, self.model.embed.frames(count))
            hides = hidden_frames(frames, draw)
            hidden[row, :frames] = torch.from_numpy(hides)
            if self.among:
                labels[row, :frames] = torch.from_numpy(distractors(hides, self.among, draw))
            else:
                named = batch["labels"][row, :frames]
                labels[row, :frames] = named.masked_fill(~hidden[row, :frames], IGNORE)
        return {**batch, "hidden_frames": hidden, "labels": labels}


def prepared(
    rows: Rows, held_out: Callable[[int], Iterator[Batch]], model: Any, seed: int, among: int
) -> tuple[Rows, Callable[[int], Iterator[Batch]]]:
    """Rows to learn from and held-out batches, with hidden frames."""
    hidden = Hidden(rows, model, seed, MEASURED, among)

    def measured(batch: int) -> Iterator[Batch]:
        first = 0
        for clean in held_out(batch):
            yield hidden.hide(clean, first)
            first += len(clean["input_values"])

    return Hidden(rows, model, seed, LEARNED, among), measured


def check(model: Any, kind: str) -> None:
    """Raises ValueError for a model without the heads of the task, or whose front-end hides no frames."""
    wanted = Quantised if kind == "contrast" else Units
    heads = getattr(model, "heads", {})
    if not any(isinstance(head, wanted) for head in heads.values()):
        needs = {"contrast": "codes (wav2vec2, task=pretrain)", "units": "units (hubert, task=units)"}[kind]
        raise ValueError(f"the task {kind} needs heads of {needs}; the model has {', '.join(heads) or 'none'}")
    if "hidden_frames" not in model.inputs():
        raise ValueError(f"the task {kind} hides frames, and the model has no vector for them; set hides=True")


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of the frames of sounds: of MFCC, or of what a model has at a path.

    Args:
        source: mfcc, or FOLDER:PATH, the model directory and the path. centres: (K, C).
        model: the one that learns the clusters, whose frames are labelled. other: that of the folder, or None.
    """

    source: str
    centres: np.ndarray
    model: Any
    other: Any

    def labels(self, path: Path) -> np.ndarray:
        """The cluster of each frame of a sound, (T,)."""
        return nearest(features(self.model, self.other, self.source, path), self.centres)[0]


def learn(source: str, model: Any, paths: Sequence[Path], count: int, seed: int) -> Clusters:
    """The clusters of sounds, in their order until there are frames enough.

    Raises:
        ValueError: for a source that is neither, a path that the other model lacks, or frames of another length.
    """
    other = None
    if source != MFCC:
        from anyformer.hub import load

        folder, _, path = source.rpartition(":")
        if not folder or not path:
            raise ValueError(f"units is mfcc, or FOLDER:PATH as in runs/one/step-000500:blocks.2; got {source!r}")
        other = load(folder).eval()
    seen, found = 0, []
    for path_of in paths:
        found.append(features(model, other, source, path_of))
        seen += len(found[-1])
        if seen >= MOST:
            break
    return Clusters(source, kmeans(np.concatenate(found)[:MOST], count, seed), model, other)


@torch.no_grad()
def features(model: Any, other: Any, source: str, path: Path) -> np.ndarray:
    """The vectors of the frames of a sound, (T, C), one for each frame of `model`."""
    samples = model.processor.samples(str(path))
    frames, front = max(0, model.embed.frames(len(samples))), model.embed
    if other is None:
        hop = front.least(2) - front.least(1)
        centres = np.arange(frames) * hop + front.least(1) / 2
        return mfcc(samples, model.processor.rate, centres)
    tap = source.rpartition(":")[2]
    with Taps(other, tap) as taps:
        other(**{n: v.to(next(other.parameters())) for n, v in other.processor([str(path)]).items()})
        vectors = taps[tap][0].float().cpu().numpy()
    if vectors.ndim != 2 or len(vectors) != frames:
        raise ValueError(
            f"{path}: {source} has {tuple(vectors.shape)} vectors, and the model {frames} frames: each needs a "
            "label; take a model with the same strides, and a path of its stream"
        )
    return vectors
