"""Time series to a forecaster's inputs. N steps, P of the past and H ahead in a window, C targets, K features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from anyformer.hub.processors.base import Origin, Processor
from anyformer.hub.processors.keys import CLASS
from anyformer.hub.tables.config import key, must, quiet
from anyformer.media.series import DAY, Step, TimeSeries

KIND = "SeriesProcessor"


def _of(unit: str, whole: str) -> Callable[[np.ndarray], np.ndarray]:
    """The number of a time's `unit` inside its `whole`, from 0."""
    return lambda times: (times.astype(f"datetime64[{unit}]") - times.astype(f"datetime64[{whole}]")).astype(np.int64)


CALENDAR: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {  # name: (numbers, of times (N,))
    "minute": (60, _of("m", "h")),
    "hour": (24, _of("h", "D")),
    "weekday": (7, lambda times: (times.astype("datetime64[D]").astype(np.int64) + 3) % 7),
    "monthday": (31, _of("D", "M")),
    "yearday": (366, _of("D", "Y")),
    "month": (12, lambda times: times.astype("datetime64[M]").astype(np.int64) % 12),
}


def calendar_of(step: Step) -> tuple[str, ...]:
    """The features of the calendar that change from step to step."""
    if step.months:
        return ("month",)
    if step.seconds < 3600:
        return ("minute", "hour", "weekday", "yearday")
    if step.seconds < DAY:
        return ("hour", "weekday", "yearday")
    return ("weekday", "monthday", "yearday") if step.seconds < 7 * DAY else ("yearday", "month")


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a series: the past, and the features of past and future.

    Args:
        values: (P, C), NaN = missing. `features`: (P + H, K). `ahead`: (H, C), where they are known: in training.
        number: of the series among those of training.
    """

    values: np.ndarray
    features: np.ndarray
    number: int = 0
    ahead: np.ndarray | None = None


ENTRIES = (
    must("feature_extractor_type", KIND, absent=False),
    key("targets", "targets"),
    *(key(name, name, default=()) for name in ("known", "calendar", "names")),
    *(key(name, name, default=0) for name in ("seconds", "months")),
    quiet("processor_class", why=CLASS),
)


@dataclass(frozen=True)
class SeriesProcessor(Processor):
    """Windows of time series to `past_values` and the features of their steps.

    Args:
        targets, known: the columns, in their order.
        calendar: features of the time, see `CALENDAR`, each from -0.5 to 0.5; those of `known` follow them.
        seconds, months: the step of training; one of them is 0.
        names: of the series of training, if there were several: each is a category.
        origin: the file that it was read from.

    Raises:
        ValueError: naming the argument at fault.
    """

    takes = ("past_values",)
    slot = "series_processor"
    entries = ENTRIES

    targets: tuple[str, ...]
    known: tuple[str, ...] = ()
    calendar: tuple[str, ...] = ()
    seconds: int = 0
    months: int = 0
    names: tuple[str, ...] = ()
    origin: Origin = field(default=Origin(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if strange := [name for name in self.calendar if name not in CALENDAR]:
            raise ValueError(f"calendar has {strange[0]!r}; expected some of {', '.join(CALENDAR)}")
        if not self.targets or (self.seconds > 0) == (self.months > 0) or min(self.seconds, self.months) < 0:
            raise ValueError(
                f"targets={self.targets}, seconds={self.seconds}, months={self.months}; expected at least one target, "
                "and a step of seconds or of months"
            )

    @property
    def step(self) -> Step:
        """The step of training."""
        return Step(self.seconds, self.months)

    def __call__(self, media: Sequence[Window], told: bool = False) -> dict[str, Tensor]:
        """Some windows as a batch.

        Args:
            told: with the values ahead, which a forecaster of one step after another reads in training.
        """
        one = (..., 0) if len(self.targets) == 1 else (...,)
        past = np.stack([w.values for w in media])[one]
        count = past.shape[1]
        features = np.stack([w.features for w in media])
        arrays = {
            "past_values": np.nan_to_num(past),
            "past_observed_mask": (~np.isnan(past)).astype(np.int64),
            "past_time_features": features[:, :count],
            "future_time_features": features[:, count:],
        }
        if told:
            arrays["future_values"] = np.nan_to_num(np.stack([w.ahead for w in media if w.ahead is not None])[one])
        if self.names:
            arrays["static_categorical_features"] = np.array([[w.number] for w in media])
        kinds = {name: np.int64 if a.dtype.kind == "i" else np.float32 for name, a in arrays.items()}
        return {name: torch.from_numpy(np.ascontiguousarray(a, kinds[name])) for name, a in arrays.items()}

    def features(self, series: TimeSeries, count: int) -> np.ndarray:
        """The features of the first `count` steps of a series, those behind its rows included, (count, K).

        Raises:
            ValueError: if what is known ahead ends earlier.
        """
        times = series.times[:count]
        if len(times) < count:
            if self.known:
                raise ValueError(
                    f"{', '.join(map(repr, self.known))} must be known for {count - len(series)} steps behind the last "
                    f"value, and the rows go on for {len(series.times) - len(series)}; add rows with an empty target"
                )
            times = np.concatenate((times, series.step.after(times[-1], count - len(times))))
        made = [CALENDAR[name][1](times) / (CALENDAR[name][0] - 1) - 0.5 for name in self.calendar]
        columns = np.stack(made, 1) if made else np.zeros((count, 0))
        return np.concatenate((columns, series.known[:count]), 1) if self.known else columns

    def number(self, series: TimeSeries) -> int:
        """The number of a series among those of training, after checking its columns.

        Raises:
            ValueError: for other columns, another step, or a series that training had not.
        """
        if series.targets != self.targets or series.knowns != self.known:
            raise ValueError(
                f"the model forecasts {', '.join(self.targets)}{self._beside(self.known)}, and the table has "
                f"{', '.join(series.targets)}{self._beside(series.knowns)}"
            )
        if series.step != self.step:
            raise ValueError(f"the model was trained on steps of {self.step}, and the table has steps of {series.step}")
        if self.names and series.name not in self.names:
            raise ValueError(
                f"the series {series.name!r} was not in training; there were {', '.join(map(repr, self.names[:8]))}"
            )
        return self.names.index(series.name) if self.names else 0

    @staticmethod
    def _beside(known: tuple[str, ...]) -> str:
        return f" beside {', '.join(known)}" if known else ""

    def __str__(self) -> str:
        several = f"; {len(self.names)} series" if self.names else ""
        beside = f", and {', '.join(self.known)}" if self.known else ""
        return (
            f"{', '.join(self.targets)} in steps of {self.step}; features {', '.join(self.calendar)}{beside}{several}"
        )
