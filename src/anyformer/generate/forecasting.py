"""Forecasts of time series: draws of the steps ahead, their quantiles, and a test over all rolling windows.

N steps of a series, P of a window's past, H ahead, C targets, M draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.hub.processors import SeriesProcessor
from anyformer.hub.processors.series import Window
from anyformer.media.series import TimeSeries, read_series

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
INSIDE = (0.1, 0.9)  # of coverage
ROWS = 1600  # draws that are computed at once


@dataclass(frozen=True, eq=False)
class Forecast:
    """The forecast of one series.

    Args:
        series: the series. times: (H,) of the steps. samples: (M, H, C) draws, in the unit of the values.
    """

    series: TimeSeries
    times: np.ndarray
    samples: np.ndarray

    def quantile(self, share: float) -> np.ndarray:
        """The value below which a share of the draws is, (H, C)."""
        return np.quantile(self.samples, share, axis=0)


@dataclass(frozen=True)
class Scores:
    """What forecasts of many windows are worth; all are means over values, none over batches.

    Attributes:
        mase: mean absolute error of the median, over that of the naive forecast of one season ago in the part before
            the windows (Hyndman and Koehler, 2006); NaN where that is 0.
        crps: mean continuous ranked probability score, in the unit of the values (Gneiting and Raftery, 2007).
        coverage: share of values between the quantiles 0.1 and 0.9; 0.8 is right.
        windows, values: how many were scored; missing values are not.
    """

    mase: float
    crps: float
    coverage: float
    windows: int
    values: int


@torch.no_grad()
def forecast(
    model: Any,
    data: str | Path | Sequence[TimeSeries],
    horizon: int | None = None,
    samples: int = 100,
    seed: int = 0,
    fields: dict[str, str] | None = None,
) -> list[Forecast]:
    """Forecasts every series of a table, from its last value on.

    Missing values are allowed; the scale of a window is that of its observed values.

    Args:
        model: a forecaster with its processor (`anyformer train`).
        data: a CSV or Parquet file, see `media.series`, or series.
        horizon: steps ahead, at most the model's, its default.
        samples: draws of each step. The same for a series alone as beside others.
        fields: columns that have other names.

    Raises:
        ValueError: for another model, a history that is too short, a longer horizon, another step or other columns.
    """
    processor, steps = checked(model, horizon)
    if samples < 1:
        raise ValueError(f"samples={samples} draws; expected at least 1")
    series = read_series(data, fields) if isinstance(data, str | Path) else list(data)
    windows = [window(model, processor, one, len(one)) for one in series]
    drawn = draws(model, processor, windows, samples, [seed * 1_000_003 + i for i in range(len(series))])
    return [
        Forecast(one, one.step.after(one.times[len(one) - 1], steps), own[:, :steps])
        for one, own in zip(series, drawn, strict=True)
    ]


@torch.no_grad()
def backtest(
    model: Any,
    data: str | Path | Sequence[TimeSeries],
    horizon: int | None = None,
    share: float = 0.1,
    samples: int = 100,
    seed: int = 0,
    fields: dict[str, str] | None = None,
) -> Scores:
    """Scores forecasts of all windows whose steps ahead lie in the last part of each series, one window a step.

    Args:
        share: of that part; 0.1 is what `train` holds out.

    Raises:
        ValueError: as `forecast`; and if no window fits.
    """
    processor, steps = checked(model, horizon)
    series = read_series(data, fields) if isinstance(data, str | Path) else list(data)
    total = Tally()
    for place, one in enumerate(series):
        first = held_out(len(one), model.embed.past, steps, share)
        starts = range(first, len(one) - steps + 1)
        if not starts:
            raise ValueError(short(model, one, steps))
        total.begin(one, first)
        for group in chunked(starts, max(1, ROWS // samples)):
            windows = [window(model, processor, one, at) for at in group]
            seeds = [seed * 1_000_003 + place * 100_003 + at for at in group]
            for at, drawn in zip(group, draws(model, processor, windows, samples, seeds), strict=True):
                total.add(one.values[at : at + steps], drawn[:, :steps])
    return total.scores()


def held_out(count: int, past: int, steps: int, share: float) -> int:
    """The first step ahead of the windows that are held out: in the last part, with a whole past before it."""
    if not 0 < share <= 1:
        raise ValueError(f"share={share} of the steps; expected above 0, and 1 at most")
    return max(past, min(count - steps, int(count * (1 - share))))


class Tally:
    """Sums over windows; each value counts once."""

    def __init__(self) -> None:
        self.windows = self.values = self.inside = 0
        self.scaled, self.comparable, self.crps = 0.0, 0, 0.0
        self.usual = np.ones(1)

    def begin(self, series: TimeSeries, first: int) -> None:
        """A series, whose windows begin at step `first`: the naive error of the steps before is the unit of MASE."""
        season = min(series.step.season(), max(1, first - 1))
        past = series.values[:first]
        with np.errstate(invalid="ignore"):
            apart = np.abs(past[season:] - past[:-season])
        there = (~np.isnan(apart)).sum(0)
        self.usual = np.nansum(apart, 0) / np.maximum(there, 1)  # (C,)

    def add(self, true: np.ndarray, drawn: np.ndarray) -> None:
        """A window: (H, C) true values, NaN = missing, and (M, H, C) draws."""
        there = ~np.isnan(true)
        self.windows, self.values = self.windows + 1, self.values + int(there.sum())
        error = np.abs(np.median(drawn, 0) - true)
        scale = np.broadcast_to(self.usual, true.shape)
        known = there & (scale > 0)
        self.scaled += float((error[known] / scale[known]).sum())
        self.comparable += int(known.sum())
        low, high = np.quantile(drawn, INSIDE, axis=0)
        self.inside += int(((true >= low) & (true <= high) & there).sum())
        self.crps += float(crps(drawn, true)[there].sum())

    def scores(self) -> Scores:
        """The means."""
        count = max(1, self.values)
        mase = self.scaled / self.comparable if self.comparable else float("nan")
        return Scores(mase, self.crps / count, self.inside / count, self.windows, self.values)


def crps(drawn: np.ndarray, true: np.ndarray) -> np.ndarray:
    """E|X - y| - E|X - X'| / 2 over M draws X, where X' is another one of them: (M, …) and (…) -> (…).

    So its mean does not depend on M (Ferro, 2014, "Fair scores for ensemble forecasts").
    """
    count = len(drawn)
    ordered = np.sort(drawn, 0)
    rank = (2 * np.arange(1, count + 1) - count - 1).reshape(-1, *[1] * (drawn.ndim - 1))
    return np.abs(drawn - true).mean(0) - (rank * ordered).sum(0) / (count * max(1, count - 1))


def window(model: Any, processor: SeriesProcessor, series: TimeSeries, at: int) -> Window:
    """The window whose first step ahead is `at`.

    Raises:
        ValueError: for a history that is too short, nothing observed in it, or other columns.
    """
    past, horizon = model.embed.past, model.embed.horizon
    number = processor.number(series)
    if at < past:
        raise ValueError(short(model, series, horizon, at))
    values = series.values[at - past : at]
    features = processor.features(series, at + horizon)[at - past :]
    return Window(values, features, number)


def short(model: Any, series: TimeSeries, steps: int, count: int | None = None) -> str:
    """What an error says of a series that is too short."""
    front = model.embed
    name = f"the series {series.name!r}" if series.name else "the series"
    ahead = "" if count is not None else f", and {steps} ahead"
    return (
        f"{name} has {len(series) if count is None else count} steps, and a window needs {front.past}: a context of "
        f"{front.context} and a largest lag of {max(front.lags)}{ahead}"
    )


def checked(model: Any, horizon: int | None) -> tuple[SeriesProcessor, int]:
    """The processor of a forecaster, and the steps ahead.

    Raises:
        ValueError: for a model that does not forecast, one without a processor, or a longer horizon.
    """
    if model.takes != "past_values":
        raise ValueError(
            f"the model reads {model.takes} and does not forecast; `anyformer train --model informer --data data.csv` "
            "trains one that does"
        )
    if model.processor is None:
        raise ValueError(
            "the model has no processor: published files do not say what its targets, step and calendar are. Set "
            "model.processor = anyformer.hub.processors.SeriesProcessor(…) with those that it was trained with"
        )
    most = model.embed.horizon
    if horizon is not None and not 1 <= horizon <= most:
        raise ValueError(f"horizon={horizon} steps ahead, and the model's go from 1 to {most}; train one with more")
    return model.processor, horizon or most


@torch.no_grad()
def draws(
    model: Any, processor: SeriesProcessor, windows: Sequence[Window], samples: int, seeds: Sequence[int]
) -> list[np.ndarray]:
    """Draws of each window, (M, H, C) each, by its own seed: the same beside other windows."""
    was, device, drawn = model.training, next(model.parameters()).device, list[np.ndarray]()
    model.eval()
    try:
        for group in chunked(range(len(windows)), max(1, ROWS // samples)):
            inputs = {n: v.to(device) for n, v in processor([windows[i] for i in group]).items()}
            noise = [torch.Generator().manual_seed(seeds[i]) for i in group]
            steps = stepwise if model.stepwise else at_once
            drawn += list(steps(model, inputs, samples, noise).double().numpy())
    finally:
        model.train(was)
    if not all(np.isfinite(one).all() for one in drawn):
        raise ValueError("a draw of the model is not finite; check its weights, and the size of the values")
    return drawn


def at_once(model: Any, inputs: dict[str, torch.Tensor], samples: int, noise: list[torch.Generator]) -> torch.Tensor:
    """(B, M, H, C): each step by its own law, drawn apart from the others."""
    out = model(**inputs)
    given = [p[:, None].repeat(1, samples, 1, 1) for p in parameters(model, out.logits)]  # (B, M, H, C)
    shift, scale = (wide(model, out.beside[name])[:, None] for name in ("shift", "scale"))
    return model.law.sample(given, shift, scale, noise)


def stepwise(model: Any, inputs: dict[str, torch.Tensor], samples: int, noise: list[torch.Generator]) -> torch.Tensor:
    """(B, M, H, C): each draw goes on from its own values before."""
    steps = model.embed.horizon
    shape = (len(noise), steps, model.embed.size)[: 2 + (model.embed.size > 1)]
    unknown = torch.zeros(shape, device=inputs["past_values"].device)  # read by nothing
    read = model.read({**inputs, "future_values": unknown}).repeated(samples)
    rows = len(read.memory)
    times = inputs["future_time_features"].repeat_interleave(samples, 0)
    shift, scale = read.window.shift.cpu(), read.window.scale.cpu()  # (B M, 1, C)
    past: list[torch.Tensor] = []
    for step in range(steps):
        blank = torch.zeros(rows, 1, model.embed.size, device=times.device)
        known = torch.cat([*past, blank], 1)  # the last one is read by no row
        ahead = {"future_values": known[..., 0] if model.embed.size == 1 else known}
        out = model.told(read, {**ahead, "future_time_features": times[:, : step + 1]})
        given = [p[:, -1:].unflatten(0, (-1, samples)) for p in parameters(model, out.logits)]  # (B, M, 1, C)
        own = (shift.unflatten(0, (-1, samples)), scale.unflatten(0, (-1, samples)))
        past.append(model.law.sample(given, *own, noise).flatten(0, 1).to(times))
    return torch.cat(past, 1).unflatten(0, (-1, samples)).cpu()


def parameters(model: Any, out: torch.Tensor) -> list[torch.Tensor]:
    """The parameters of the law, (B, T, C) each, in float32 at least."""
    wide_ = out.to(torch.promote_types(out.dtype, torch.float32)).cpu()
    return [p[..., None] if model.embed.size == 1 else p for p in wide_.unbind(-1)]


def wide(model: Any, value: torch.Tensor) -> torch.Tensor:
    """Shift or scale, (B, 1, C)."""
    value = value.to(torch.promote_types(value.dtype, torch.float32)).cpu()
    return value[..., None] if model.embed.size == 1 else value


def chunked(numbers: range, size: int) -> Iterator[range]:
    """The numbers, so many at a time."""
    return (numbers[i : i + size] for i in range(0, len(numbers), size))


def drawn_as(found: Sequence[Forecast], path: str | Path, shown: int = 3) -> None:
    """A picture of forecasts: the last values, the median, and the range from 0.1 to 0.9.

    Args:
        shown: times the horizon, of the past that is drawn.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a plot needs matplotlib: pip install 'anyformer[plot]'") from None
    panels = [(one, c) for one in found for c in range(one.samples.shape[2])][:12]
    figure = Figure(figsize=(9, 2.6 * len(panels)), layout="constrained")
    for axes, (one, c) in zip(np.atleast_1d(figure.subplots(len(panels))), panels, strict=True):
        past = slice(max(0, len(one.series) - shown * len(one.times)), len(one.series))
        axes.plot(one.series.times[past], one.series.values[past, c], color="#333", linewidth=1)
        for low, high, alpha in ((0.1, 0.9, 0.2), (0.25, 0.75, 0.35)):
            sides = one.quantile(low)[:, c], one.quantile(high)[:, c]
            axes.fill_between(one.times, *sides, color="#06c", alpha=alpha, linewidth=0)
        axes.plot(one.times, one.quantile(0.5)[:, c], color="#06c", linewidth=1.5)
        axes.set_title(" ".join(filter(None, (one.series.name, one.series.targets[c]))), loc="left")
    figure.savefig(path, dpi=110)
