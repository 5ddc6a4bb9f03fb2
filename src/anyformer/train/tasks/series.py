"""The task forecast: the law of the steps ahead of time series. A window begins at every step, in an order of its own
in each epoch; the last tenth of each series is held out.

B rows of a batch, P steps of the past, H ahead, C targets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from anyformer.data.batches import Batch
from anyformer.data.corpus import weights
from anyformer.data.mixing import picked, shares
from anyformer.data.order import shuffled
from anyformer.generate.forecasting import held_out
from anyformer.hub.processors import SeriesProcessor
from anyformer.hub.processors.series import Window, calendar_of
from anyformer.media.series import DAY, Step, TimeSeries, read_series
from anyformer.parts.series.laws import LAWS
from anyformer.train.likelihood import Likelihood
from anyformer.train.options import FinetuneOptions, TrainOptions
from anyformer.train.tasks.base import Task

SHARE = 0.1  # of each series that is held out
NEAR = (1, 2, 3, 4, 5, 6, 7)
UNIT = "nats a step"


def lags_of(step: Step) -> tuple[int, ...]:
    """Steps back that a window's rows hold by default: the last ones, and those around a day and a week, or a year."""
    seasons = [12 // step.months] if step.months and 12 % step.months == 0 else []
    if step.seconds:
        seasons = [size // step.seconds for size in (DAY, 7 * DAY) if size % step.seconds == 0 and size > step.seconds]
    around = {season + off for season in seasons for off in (-1, 0, 1) if season + off > 0}
    return tuple(sorted({*NEAR, *around}))


class SeriesData:
    """Series of one or several tables."""

    classes = 0
    longest = 0  # no tokens

    def __init__(self, kind: str, options: TrainOptions | FinetuneOptions):
        self.options, self.wanted = options, weights(options.data)
        shares(tuple(self.wanted.values()))
        self.tables = [read_series(name, options.fields) for name in self.wanted]
        kinds = {(one.targets, one.knowns, str(one.step)) for table in self.tables for one in table}
        if len(kinds) > 1:
            shown = "; ".join(f"{', '.join(t)}, known {', '.join(k) or 'nothing'}, steps of {s}" for t, k, s in kinds)
            raise ValueError(f"the series differ in columns or steps, and one model reads one kind: {shown}")

    def words(self) -> tuple[str, ...]:
        """No text."""
        return ()

    @property
    def first(self) -> TimeSeries:
        """The first series, which is of the kind of all."""
        return self.tables[0][0]

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the series, if there are several."""
        names = sorted({one.name for table in self.tables for one in table})
        return tuple(names) if len(names) > 1 else ()

    @property
    def implied(self) -> dict[str, Any]:
        """The hyperparameters that the series decide."""
        made: dict[str, Any] = {
            "targets": len(self.first.targets), "known": len(self.first.knowns), "lags": lags_of(self.first.step),
            "calendar": len(calendar_of(self.first.step)),
        }  # fmt: skip
        if self.options.context is not None:
            made["context"] = self.options.context
        if self.names:
            made |= {"categories": (len(self.names),), "widths": (min(50, (len(self.names) + 1) // 2),)}
        return made

    def task(self, model: Any, context: int | None) -> Task:
        """The task for a model, which gets the processor of these series, if it has none.

        Raises:
            ValueError: for a model of other columns, or series that are too short for one window to learn from and one
                to hold out; for counts that are none.
        """
        first = self.first
        if model.processor is None:
            step, calendar = first.step, calendar_of(first.step)
            model.processor = SeriesProcessor(
                first.targets, first.knowns, calendar, step.seconds, step.months, self.names
            )
        processor, front = model.processor, model.embed
        if len(processor.calendar) + len(processor.known) != front.times or len(processor.targets) != front.size:
            raise ValueError(
                f"the series have {len(processor.targets)} targets and {len(processor.calendar)} + "
                f"{len(processor.known)} features, and the model reads {front.size} and {front.times}"
            )
        self._fits(model)
        learn, out = ([Windows(one, processor, front, late) for one in self.tables] for late in (False, True))
        for part, what in ((learn, "to learn from"), (out, "to hold out")):
            for name, windows in zip(self.wanted, part, strict=True):
                if not windows.size:
                    longest = max(map(len, windows.series))
                    raise ValueError(
                        f"{name}: no window {what}: the longest series has {longest} steps; a window has "
                        f"{front.past} of the past (a context of {front.context}, a largest lag of {max(front.lags)}) "
                        f"and a horizon of {front.horizon}, and the last tenth is held out; give a shorter "
                        "--overrides.context, --overrides.horizon or --overrides.lags"
                    )
        mixed = SeriesRows(tuple(learn), tuple(self.wanted.values()), self.options.seed, processor, model.stepwise)
        objective = Likelihood.of(model)

        def measured(batch: int) -> Iterator[Batch]:
            for windows in out:
                for begin in range(0, windows.size, batch):
                    yield mixed.batch([windows[i] for i in range(begin, min(begin + batch, windows.size))])

        every = [one for table in self.tables for one in table]
        missing = sum(int(np.isnan(one.values).sum()) for one in every)
        values = sum(one.values.size for one in every)
        short = sum(len(one) < front.past + front.horizon for one in every)
        summary = (
            f"{len(every):,} series, {sum(w.size for w in learn):,} windows of {front.past} + {front.horizon} steps of "
            f"{first.step}, {sum(w.size for w in out):,} held out"
        )
        notes = [f"{missing:,} of {values:,} values are missing: no loss counts them"] if missing else []
        notes += [f"{short:,} series are too short for a window, and left out"] if short else []
        facts = {"task": "forecast", "examples": self._digest(), "shares": shares(mixed.weights).tolist()}
        return SeriesTask(
            "forecast", mixed, measured, objective, objective, UNIT, summary, facts, tuple(notes), size=mixed.size
        )

    def _fits(self, model: Any) -> None:
        """Raises ValueError for other columns than the processor's, and for values that the law does not have."""
        for one in (one for table in self.tables for one in table):
            model.processor.number(one)
            counts = one.values[~np.isnan(one.values)]
            if model.law is LAWS["negative_binomial"] and ((counts < 0) | (counts % 1 != 0)).any():
                bad = counts[(counts < 0) | (counts % 1 != 0)][0]
                raise ValueError(
                    f"the law negative_binomial is for counts, and a value is {bad:g}; use --overrides.law student_t"
                )

    def _digest(self) -> str:
        """Equal for equal series."""
        digest = hashlib.sha256()
        for one in (one for table in self.tables for one in table):
            digest.update(repr((one.name, one.targets, one.knowns, str(one.times[0]), one.step)).encode())
            digest.update(one.values.tobytes() + one.known.tobytes())
        return digest.hexdigest()[:16]


class Windows:
    """All windows of a table by number: those whose steps ahead end before the last tenth of their series, or the later
    ones, that begin in it. Windows without any value ahead are left out.

    Args:
        series: of the table. front: the model's front-end. late: the held-out ones.
    """

    def __init__(self, series: Sequence[TimeSeries], processor: SeriesProcessor, front: Any, late: bool):
        self.series, self.past, self.horizon = series, front.past, front.horizon
        self.numbers = [processor.number(one) for one in series]
        self.features = [processor.features(one, len(one)) for one in series]
        self.starts: list[np.ndarray] = []
        for one in series:
            cut = held_out(len(one), front.past, front.horizon, SHARE)
            first, last = (cut, len(one)) if late else (front.past, cut)
            starts = np.arange(first, max(first, last - front.horizon + 1))
            there = np.concatenate(([0], np.cumsum(~np.isnan(one.values).all(1))))
            self.starts.append(starts[there[starts + front.horizon] > there[starts]] if len(starts) else starts)

    @cached_property
    def ends(self) -> np.ndarray:
        """The number of windows up to the end of each series."""
        return np.cumsum([len(starts) for starts in self.starts])

    @property
    def size(self) -> int:
        """Their number."""
        return int(self.ends[-1])

    def __getitem__(self, number: int) -> Window:
        which = int(np.searchsorted(self.ends, number, "right"))
        at = int(self.starts[which][number - (int(self.ends[which - 1]) if which else 0)])
        part = slice(at - self.past, at + self.horizon)
        values = self.series[which].values[part]
        return Window(values[: self.past], self.features[which][part], self.numbers[which], values[self.past :])


@dataclass(frozen=True, eq=False)
class SeriesRows:
    """Windows of one or several tables by number, see `data.order.Rows`."""

    parts: tuple[Windows, ...]
    weights: tuple[float, ...]
    seed: int
    processor: SeriesProcessor
    told: bool

    @property
    def size(self) -> int:
        """Windows of an epoch."""
        return sum(part.size for part in self.parts)

    def rows(self, first: int, count: int) -> Batch:
        """See `data.order.Rows`."""
        by_place: dict[int, Window] = {}
        for part, (before, places) in zip(self.parts, picked(self.weights, self.seed, first, count), strict=True):
            items = shuffled(before, len(places), part.size, self.seed)[1]
            by_place |= dict(zip(places.tolist(), (part[i] for i in items.tolist()), strict=True))
        return self.batch([by_place[i] for i in range(count)])

    def batch(self, windows: Sequence[Window]) -> Batch:
        """Inputs of the model, and the values ahead as labels, NaN where one is missing: (B, H) or (B, H, C)."""
        inputs = self.processor(windows, self.told)
        ahead = np.stack([w.ahead for w in windows if w.ahead is not None])
        labels = torch.from_numpy((ahead[..., 0] if ahead.shape[2] == 1 else ahead).astype(np.float32))
        return {**inputs, "labels": labels}


@dataclass(frozen=True, eq=False)
class SeriesTask(Task):
    """The task forecast, measured by the likelihood of held-out windows, given the true values before each step."""

    def baseline(self, batch: int) -> float:
        """The same of a normal law with the mean and the deviation of the observed past, in each window."""
        total, count = 0.0, 0
        for arrays in self.held_out(batch):
            past, there, labels = arrays["past_values"], arrays["past_observed_mask"], arrays["labels"]
            if labels.ndim == 2:
                past, there, labels = past[..., None], there[..., None], labels[..., None]
            number = there.sum(1, keepdim=True).clamp(min=1)
            mean = (past * there).sum(1, keepdim=True) / number
            spread = ((past - mean) * there).square().sum(1, keepdim=True) / number
            law = torch.distributions.Normal(mean, spread.sqrt().clamp(min=1e-6))
            whole = ~labels.isnan().any(-1)
            loss = -law.log_prob(labels.nan_to_num(0.0)).sum(-1)
            total, count = total + float(loss[whole].double().sum()), count + int(whole.sum())
        return total / max(1, count)
