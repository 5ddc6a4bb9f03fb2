"""A training task: examples by number, an objective, a measure on held-out data, and a baseline.

B rows of a batch, T places, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.data.batches import Batch
from anyformer.data.order import Rows
from anyformer.data.store import Example
from anyformer.train import objectives
from anyformer.train.objectives import IGNORE, counted
from anyformer.train.settings import Settings

LEARNED = 64  # batches from which a guess learns
WRONG, LABEL, SQUARED = "error rate", "nats a label", "squared error a number"


@dataclass(frozen=True, eq=False)
class Task:
    """A training task: data, objective, measure and baseline.

    Attributes:
        rows: training examples, by number.
        held_out: batch size -> held-out examples, in batches.
        objective: the training loss. `loss`: the measure; None: the error rate. `unit`: of the measure, in words.
        summary: of the data, in words. `notes`: for the user.
        facts: for comparison when a run resumes.
        divisor: of the measured loss; by default the number of labels.
        guess: the measure of a trivial baseline, if known.
        size: examples of an epoch, where they are counted.
    """

    name: str
    rows: Rows
    held_out: Callable[[int], Iterator[Batch]]
    objective: Any
    loss: Any
    unit: str
    summary: str
    facts: dict[str, Any]
    notes: tuple[str, ...] = field(default=())
    divisor: float | None = None
    guess: float | None = None
    size: int = 0

    @torch.no_grad()
    def measure(self, model: Any, batch: int) -> float:
        """The measure on held-out examples, lower is better: mean loss of a label, or error rate."""
        device, total, count = next(model.parameters()).device, 0.0, 0
        for arrays in self.held_out(batch):
            inputs = {name: value.to(device) for name, value in arrays.items()}
            labels = inputs.pop("labels")
            output = model(**inputs)
            if self.loss is None:
                total += int(((output.logits.argmax(-1) != labels) & (labels != IGNORE)).sum())
            else:
                labels = self._token_labels(labels)
                total += float(self.loss(output, labels, 1.0))
            count += int(getattr(self.loss, "counted", counted)(labels))
        return total / (self.divisor or max(1, count))

    def begin(self, folder: Path, settings: Settings, say: Callable[[str], None]) -> None:
        """Called once before the first step, with the folder of the run and what shows a message to the user."""

    def baseline(self, batch: int) -> float:
        """The measure of a trivial baseline: `guess`, else one by the frequencies of labels in training examples."""
        if self.guess is not None:
            return self.guess
        if guess := getattr(self.objective, "guess", None):
            every = [b["labels"] for b in self.held_out(batch)]
            own = getattr(self.objective, "counted", counted)
            return sum(map(guess, every)) / max(1, sum(int(own(labels)) for labels in every))
        learned = torch.cat(
            [self._token_labels(self.rows.rows(i * batch, batch)["labels"]).flatten() for i in range(LEARNED)]
        )
        wanted = torch.cat([self._token_labels(b["labels"]).flatten() for b in self.held_out(batch)])
        learned, wanted = learned[learned != IGNORE], wanted[wanted != IGNORE]
        if wanted.is_floating_point():
            return float((wanted - learned.mean()).square().mean())
        counts = torch.bincount(learned, minlength=int(max(learned.max(), wanted.max())) + 1).double()
        if self.loss is None:
            return float((wanted != counts.argmax()).double().mean())
        return float(-((counts + 1) / (counts + 1).sum()).log()[wanted].mean())

    def _token_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels of tokens alone, where those of pairs stand before them."""
        return labels[:, 1:] if isinstance(self.objective, objectives.MaskedAndNextSentence) else labels


def collate(examples: Sequence[Example], pad: int = 0) -> Batch:
    """Examples as a batch, padded on the right to the longest, with masks where anything is padded."""
    fill = {"labels": IGNORE, "token_type_ids": 0, "visual_attention_mask": 0, "input_values": 0, "codes": IGNORE}
    batch: Batch = {}
    for name in examples[0]:
        if isinstance(examples[0][name], torch.Tensor):  # media, one after another
            batch[name] = torch.cat([torch.as_tensor(example[name]) for example in examples])
            continue
        values = [np.asarray(example[name]) for example in examples]
        if values[0].ndim == 3:  # an image
            batch[name] = torch.from_numpy(np.stack(values))  # (B, C, height, width)
            continue
        kind = torch.float32 if values[0].dtype.kind == "f" else torch.long
        if values[0].ndim == 0:
            batch[name] = torch.tensor([v.item() for v in values], dtype=kind)  # (B,)
            continue
        lengths, width = [len(v) for v in values], max(map(len, values))
        inner = values[0].shape[1:]
        batch[name] = torch.full((len(values), width, *inner), fill.get(name, pad), dtype=kind)  # (B, T, …)
        for row, value in zip(batch[name], values, strict=True):
            row[: len(value)] = torch.as_tensor(value.astype(np.float32 if kind.is_floating_point else np.int64))
        if name.endswith(("input_ids", "input_values")) and min(lengths) < width:
            mask = name.replace("input_ids", "attention_mask").replace("input_values", "attention_mask")
            batch[mask] = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return batch
