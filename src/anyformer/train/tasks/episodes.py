"""The tasks act and clone: to take the actions of episodes. A window of K steps begins at every step, in an order of
its own in each epoch.

act: given the return that was reached from each step on (Chen et al., 2021). clone: without it.
B rows of a batch, K steps, A numbers of an action.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.data.batches import Batch
from anyformer.data.episodes import COLUMNS, Episodes, examples
from anyformer.data.labels import IGNORE
from anyformer.data.mixing import picked, shares
from anyformer.data.order import shuffled
from anyformer.data.store import Store, stored
from anyformer.hub.processors import Steps, TrajectoryProcessor
from anyformer.train import objectives
from anyformer.train.options import FinetuneOptions, TrainOptions
from anyformer.train.tasks import tables
from anyformer.train.tasks.base import Task
from anyformer.train.tasks.splits import one_in_ten

WINDOW = 20  # steps in a window by default


class EpisodeData:
    """Data of episodes; one of each ten is held out."""

    classes, longest = 0, WINDOW

    def __init__(self, kind: str, options: TrainOptions | FinetuneOptions):
        self.kind, self.options = kind, options
        self.tables = tables.read(options.data, options.fields)
        self.parts: tuple[list[Episodes], list[Episodes]] = ([], [])
        self.keys = [table.key(COLUMNS) for table in self.tables]
        for table, key in zip(self.tables, self.keys, strict=True):
            store = stored_episodes(table, key, options.cache)
            for part, places in zip(self.parts, one_in_ten(table.source.name, len(store)), strict=True):
                part.append(Episodes(store, places.of(np.arange(places.size))))
        self._check()

    def _check(self) -> None:
        kinds = [(e.states.shape[1], *e.actions.shape[1:]) for e in (part.whole(0) for part in self.parts[0])]
        if len(set(kinds)) > 1:
            differing = ", ".join(f"{t.source.name}: {kind}" for t, kind in zip(self.tables, kinds, strict=True))
            raise ValueError(
                f"the sources are of different environments; numbers of a state, and of an action: {differing}"
            )

    def words(self) -> tuple[str, ...]:
        """No text."""
        return ()

    @property
    def implied(self) -> dict[str, Any]:
        """The hyperparameters that the episodes decide."""
        whole = [steps for half in self.parts for part in half for steps in part]
        longest, state = max(len(s.states) for s in whole), whole[0].states.shape[1]
        if whole[0].actions.ndim == 1:
            most = 1 + max(int(s.actions.max()) for s in whole)
            return {"state": state, "action": most, "steps": longest, "tanh": False}
        bounded = all(np.abs(s.actions).max() <= 1 for s in whole)
        return {"state": state, "action": whole[0].actions.shape[1], "steps": longest, "tanh": bounded}

    def task(self, model: Any, context: int | None) -> Task:
        """The task for a model, which gets the processor that was learned from the episodes, if it has none."""
        made = self._processor(model, context)
        if model.processor is None:
            model.processor = made
        elif model.processor.return_scale is None and self.kind == "act":
            raise ValueError("the model was trained without returns (clone), which its files record; start a new one")
        model.processor = processor = replace(model.processor, window=made.window)
        self._fits(model, processor)
        learn, out = self.parts
        weights = tuple(table.weight for table in self.tables)
        taught = Windows(tuple(learn), weights, self.options.seed, processor)

        def held_out(batch: int) -> Iterator[Batch]:
            for part in out:
                some = list(part.in_order(processor.window))
                for first in range(0, len(some), batch):
                    yield taught.batch(some[first : first + batch])

        objective = objectives.classification if processor.choices else objectives.regression
        unit = "nats an action" if processor.choices else "squared error of an action's number"
        steps = [sum(part.steps for part in half) for half in self.parts]
        count = sum(len(part.numbers) for part in learn)
        summary = (
            f"{count:,} episodes, {steps[0]:,} steps, returns from {processor.lowest_return:g} to "
            f"{processor.best_return:g}; {steps[1]:,} steps held out"
        )
        digest = hashlib.sha256(repr(self.keys).encode()).hexdigest()[:16]
        facts = {"task": self.kind, "examples": digest, "shares": shares(weights).tolist(), "window": processor.window}
        return Task(self.kind, taught, held_out, objective, objective, unit, summary, facts, size=steps[0])

    def _processor(self, model: Any, context: int | None) -> TrajectoryProcessor:
        """The statistics of the training episodes alone."""
        count, total, squares, returns, longest = 0, 0.0, 0.0, [], 0
        for steps in (steps for part in self.parts[0] for steps in part):
            states = steps.states.astype(np.float64)
            count, longest = count + len(states), max(longest, len(states))
            total, squares = total + states.sum(0), squares + (states**2).sum(0)
            returns.append(float(steps.to_go[0]))
        mean = np.asarray(total / count)
        std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        std = np.where(std > 1e-6 * np.maximum(1.0, np.abs(mean)), std, 1.0)  # a number that never changes
        scale = max(map(abs, returns)) or 1.0
        choices = self.parts[0][0].whole(0).actions.ndim == 1
        return TrajectoryProcessor(
            tuple(mean.tolist()), tuple(std.tolist()), model.embed.sizes_of["actions"], choices,
            scale if self.kind == "act" else None, min(returns), max(returns), context or WINDOW, longest,
        )  # fmt: skip

    def _fits(self, model: Any, processor: TrajectoryProcessor) -> None:
        """Raises ValueError for a model of other widths, or of shorter episodes."""
        for steps in (steps for half in self.parts for part in half for steps in part):
            processor.normal(steps.states[:1])
            processor.vectors(steps.actions)
            if len(steps.states) > model.embed.steps:
                raise ValueError(
                    f"an episode has {len(steps.states)} steps, and the model has {model.embed.steps}; build it with "
                    f"more: --overrides.steps {len(steps.states)}"
                )
        if len(processor.state_mean) != model.embed.sizes_of["states"]:
            raise ValueError(
                f"the states have {len(processor.state_mean)} numbers, the model reads {model.embed.sizes_of['states']}"
            )


def stored_episodes(table: tables.Table, key: str, cache: str | Path | None) -> Store:
    """The episodes of a table, read now or before."""
    return stored(lambda: examples(table.rows(COLUMNS), table.source.name), f"episodes {key}", cache)


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of episodes of one or several parts by number, see `data.order.Rows`."""

    parts: tuple[Episodes, ...]
    weights: tuple[float, ...]
    seed: int
    processor: TrajectoryProcessor

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        by_place: dict[int, Steps] = {}
        for part, (before, places) in zip(self.parts, picked(self.weights, self.seed, first, count), strict=True):
            items = shuffled(before, len(places), part.steps, self.seed)[1]
            windows = [part.window(i, self.processor.window) for i in items.tolist()]
            by_place |= dict(zip(places.tolist(), windows, strict=True))
        return self.batch([by_place[i] for i in range(count)])

    def batch(self, windows: Sequence[Steps]) -> Batch:
        """Inputs of the model, and the actions as labels: (B, K) choices, or (B, K, A)."""
        inputs = self.processor(windows)
        return {**inputs, "labels": self._labels(inputs)}

    def _labels(self, inputs: dict[str, Tensor]) -> Tensor:
        labels = inputs["actions"].argmax(-1) if self.processor.choices else inputs["actions"]
        gaps = inputs["attention_mask"] == 0
        return torch.where(gaps if labels.ndim == 2 else gaps[..., None], IGNORE, labels)
