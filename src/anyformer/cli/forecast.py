"""forecast a time series: quantiles of the steps ahead, a plot, a test over all rolling windows."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer forecast runs/demand demand.csv --horizon 48 --out ahead.csv --plot ahead.png"


def forecast(
    model: str,
    data: str,
    *,
    horizon: int | None = None,
    quantile: list[float] | None = None,
    samples: int = 100,
    seed: int = 0,
    out: str | None = None,
    plot: str | None = None,
    backtest: bool = False,
    share: float = 0.1,
    fields: dict[str, str] | None = None,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints quantiles of the steps behind the last value of each series, as CSV.

    Args:
        model: a directory, or the folder of a run, of a model that `anyformer train` made of series.
        data: a table of series, .csv, .tsv or .parquet: a column `time`, one or more targets, see --fields.
        horizon: steps ahead, at most the model's, which is the default.
        quantile: the quantiles; by default 0.1 0.25 0.5 0.75 0.9.
        samples: draws of each step, of which the quantiles are.
        seed: of the draws.
        out: write the quantiles to this CSV file.
        plot: draw the last values and the forecast to this file, .png or .svg.
        backtest: score forecasts of all rolling windows in the last part of each series, in place of a forecast.
        share: of that part; 0.1 is what training holds out.
        fields: columns: --fields.time date --fields.target demand,price --fields.known holiday --fields.series shop.
        json: print as JSON.
        task: read another class of the same files.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate import forecasting

    loaded = models.load(model, text=False, task=task, ignore=ignore)
    if backtest:
        if out is not None or plot is not None:
            raise ValueError("--backtest scores windows of the past; --out and --plot are for a forecast")
        found = forecasting.backtest(loaded, data, horizon, share, samples, seed, fields)
        if json:
            print(plain.dump(vars(found)))
            return
        print(f"{found.windows:,} windows, {found.values:,} values")
        rows = [("MASE", f"{found.mase:.4f}"), ("CRPS", f"{found.crps:.4f}")]
        print(plain.table([*rows, ("inside 0.1 … 0.9", f"{found.coverage:.3f}")]))
        return
    asked = [0.1, 0.25, 0.5, 0.75, 0.9] if quantile is None else quantile
    if wrong := [q for q in asked if not 0 < q < 1]:
        raise ValueError(f"--quantile {wrong[0]:g} is a share, above 0 and below 1")
    series = forecasting.forecast(loaded, data, horizon, samples, seed, fields)
    lines = [("series", "time", "target", *(f"q{q:g}" for q in asked))]
    for one in series:
        sides = [one.quantile(q) for q in asked]  # (H, C) each
        for c, target in enumerate(one.series.targets):
            for step, time in enumerate(one.times):
                lines.append((one.series.name, str(time), target, *(f"{side[step, c]:.6g}" for side in sides)))
    if json:
        print(plain.dump([dict(zip(lines[0], line, strict=True)) for line in lines[1:]]))
    elif out is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(lines)
    if out is not None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        Path(out).write_text(text.getvalue(), encoding="utf-8")
    if plot is not None:
        forecasting.drawn_as(series, plot)


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(forecast)


def run(args: Any) -> None:
    """Does it."""
    forecast(**pick(args, forecast))
