"""Do Informer and Autoformer forecast better than a week ago, exponential smoothing and a linear model? In minutes.

    python examples/series.py --out runs/series --into docs/series.md    # prints the table, writes it and the pictures

Two series: half-hourly electricity demand in England and Wales (4,032 values, summer 2000; from the PyPI package
pmdarima), and hourly temperatures of Seattle in 2010 (8,759; from the Debian package python3-vega-datasets). The last
fifth is the test part. Every window whose two days (one day of temperatures, 48 steps each) lie in it is scored, one
begins at each step. Models learn from what is before; where one has to choose, the last tenth of that decides; the
transformers do not see it.

- week ago: the value of one week before, and draws of the errors that this rule made before the test part;
- ETS: exponential smoothing with additive error, damped trend and a daily season (statsmodels), its states followed
  through the test part;
- linear: ridge regression from the last values, less the last one, to the steps ahead (as DLinear, Zeng et al., 2022);
  look-back and penalty chosen; draws of its errors where it chose;
- informer, autoformer: size mini, all steps at once.
"""

from __future__ import annotations

import argparse
import ast
import csv
import datetime
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch

from anyformer.data import debian
from anyformer.data.sources import File, Source, place
from anyformer.generate.forecasting import Tally, backtest, draws, window
from anyformer.media.series import TimeSeries, read_series
from anyformer.train import train

BEGIN, END = "<!-- table -->", "<!-- end -->"
TAYLOR = Source(
    "taylor", "half-hourly electricity demand", "pmdarima", "2.1.1", "MIT (the package)", 698_040, "pmdarima/datasets",
    (File("taylor.py", 35_522, "3df2f44f654bfe4338ea39350912140c9710fa776270f50a2529b2f5c87a4e19"),), single=True,
)  # fmt: skip
TEST, HORIZON, DRAWS = 0.2, 48, 100
Draw = Callable[[int], np.ndarray]  # the first step ahead -> (draws, HORIZON)


def demand() -> tuple[datetime.datetime, datetime.timedelta, list[float]]:
    """The values of the package's file, which is read and not run."""
    lists = [node for node in ast.walk(ast.parse(place(TAYLOR).read_text("utf-8"))) if isinstance(node, ast.List)]
    values = [float(ast.literal_eval(node)) for node in max(lists, key=lambda node: len(node.elts)).elts]
    return datetime.datetime(2000, 6, 5), datetime.timedelta(minutes=30), values


def temperature() -> tuple[datetime.datetime, datetime.timedelta, list[float]]:
    """In degrees Fahrenheit; an hour without a row stays one."""
    name = "usr/lib/python3/dist-packages/vega_datasets/_data/seattle-temps.csv"
    file = debian.fetch("python3-vega-datasets", name.replace(".", "[.]"), 4, "BSD-3-clause") / name
    rows = {row["date"]: float(row["temp"]) for row in csv.DictReader(file.open(encoding="utf-8"))}
    first, last = (datetime.datetime.strptime(text, "%Y/%m/%d %H:%M") for text in (min(rows), max(rows)))
    count = int((last - first) / datetime.timedelta(hours=1)) + 1
    times = [first + i * datetime.timedelta(hours=1) for i in range(count)]
    return first, datetime.timedelta(hours=1), [rows.get(f"{t:%Y/%m/%d %H:%M}", float("nan")) for t in times]


SERIES = {"demand": demand, "temperature": temperature}


def written(name: str, folder: Path) -> tuple[Path, Path]:
    """The whole series as a table, and its part before the test."""
    first, step, values = SERIES[name]()
    paths = folder / f"{name}.csv", folder / f"{name}-before.csv"
    for path, count in zip(paths, (len(values), int(len(values) * (1 - TEST))), strict=True):
        rows = (f"{first + i * step},{'' if np.isnan(v) else v}" for i, v in enumerate(values[:count]))
        path.write_text("\n".join(["time,target", *rows]) + "\n", encoding="utf-8")
    return paths


def filled(values: np.ndarray) -> np.ndarray:
    """What is missing is the value before; for the baselines, which know no gaps."""
    there = np.where(np.isnan(values), 0, np.arange(len(values)))
    return values[np.maximum.accumulate(there)]


def from_errors(point: Callable[[int], np.ndarray], errors: np.ndarray) -> Draw:
    """Draws of a rule: its value, plus errors that it made in other windows, (N, HORIZON)."""

    def draw(at: int) -> np.ndarray:
        chosen = np.random.default_rng(at).choice(len(errors), DRAWS, replace=len(errors) < DRAWS)
        return point(at)[None] + errors[chosen]

    return draw


def week_ago(values: np.ndarray, cut: int, season: int) -> Draw:
    """The value of a week before."""

    def point(at: int) -> np.ndarray:
        return values[at - 7 * season : at - 7 * season + HORIZON]

    errors = [values[at : at + HORIZON] - point(at) for at in range(7 * season, cut - HORIZON + 1)]
    return from_errors(point, np.stack(errors))


def linear(values: np.ndarray, cut: int, season: int) -> tuple[Draw, str]:
    """A linear map from the last values to the steps ahead, with the look-back and the penalty that were best."""
    chosen, best, early = None, np.inf, int(cut * 0.9)
    for back in (season, 2 * season, 7 * season):
        wide = np.lib.stride_tricks.sliding_window_view(values[:cut], back + HORIZON)
        x, y = wide[:, :back] - wide[:, back - 1 : back], wide[:, back:] - wide[:, back - 1 : back]
        x = np.concatenate((x / values[:early].std(), np.ones((len(x), 1))), 1)
        learn = early - back - HORIZON + 1  # windows that end before the part that decides
        for penalty in (0.1, 1.0, 10.0, 100.0):
            a = x[:learn].T @ x[:learn] + penalty * np.eye(x.shape[1])
            weight = np.linalg.solve(a, x[:learn].T @ y[:learn])
            errors = y[early - back :] - x[early - back :] @ weight
            if np.abs(errors).mean() < best:
                best, chosen = np.abs(errors).mean(), (back, penalty, weight, errors)
    assert chosen is not None
    back, penalty, weight, errors = chosen

    def point(at: int) -> np.ndarray:
        past = values[at - back : at]
        return past[-1] + np.append((past - past[-1]) / values[:early].std(), 1.0) @ weight

    return from_errors(point, errors), f"linear, {back} values, penalty {penalty:g}"


def smoothing(values: np.ndarray, cut: int, season: int) -> Draw:
    """ETS(A, Ad, A): fitted before the test part, its states followed through it."""
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    options: Any = {"error": "add", "trend": "add", "damped_trend": True, "seasonal": "add", "seasonal_periods": season}
    with warnings.catch_warnings(action="ignore"):
        fitted = ETSModel(values[:cut], **options, initialization_method="heuristic").fit(disp=False)
        whole = ETSModel(values, **options, initialization_method="heuristic").smooth(fitted.params)

    def draw(at: int) -> np.ndarray:
        rng = np.random.default_rng(at)
        found = whole.simulate(HORIZON, anchor=at, repetitions=DRAWS, rng=rng)
        return np.asarray(found).reshape(HORIZON, DRAWS).T

    return draw


def scored(series: TimeSeries, cut: int, draw: Draw) -> Any:
    """The scores of a baseline, over the windows of `backtest`."""
    total = Tally()
    total.begin(series, cut)
    for at in range(cut, len(series) - HORIZON + 1):
        total.add(series.values[at : at + HORIZON], draw(at)[..., None])
    return total.scores()


def learned(page: str, start: int, before: Path, seed: int, args: argparse.Namespace) -> Any:
    """A forecaster of the part before the test."""
    label = f"{before.stem}-{page}-{start}-{seed}"
    overrides = {"horizon": HORIZON, "context": args.context, "start": start}
    return train(
        page, overrides=overrides, data=before, out=args.out / label, steps=args.steps, batch=args.batch, lr=args.lr,
        seed=seed, eval_every=0, save_every=0, quiet=True, memory=100.0,
    ).model  # fmt: skip


MODELS = {"informer": ("informer", 48), "autoformer": ("autoformer", 48)}


def run(name: str, whole: Path, before: Path, job: tuple[str, int], args: argparse.Namespace) -> tuple[Any, Any]:
    """The scores of one model, and the draws of the last window."""
    torch.set_num_threads(1)
    label, seed = job
    begun = time.perf_counter()
    model = learned(*MODELS[label], before, seed, args)
    (series,) = read_series(whole)
    scores = backtest(model, whole, share=TEST, samples=DRAWS, seed=seed)
    last = draws(model, model.processor, [window(model, model.processor, series, len(series) - HORIZON)], DRAWS, [seed])
    spent = time.perf_counter() - begun
    print(f"{name}, {label}, seed {seed}: MASE {scores.mase:.3f}, CRPS {scores.crps:.4g}, {spent:.0f} s", flush=True)
    return scores, last[0][..., 0]


def row(name: str, label: str, scores: list[Any]) -> str:
    """A line of the table: means, and deviations between seeds where there are some."""

    def shown(values: list[float], digits: int) -> str:
        mean = f"{statistics.fmean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} ± {statistics.pstdev(values):.{digits}f}"

    digits = 0 if scores[0].crps > 100 else 2
    cells = shown([s.mase for s in scores], 3), shown([s.crps for s in scores], digits)
    return f"| {name} | {label} | {cells[0]} | {cells[1]} | {shown([s.coverage for s in scores], 2)} |"


def measured(name: str, args: argparse.Namespace) -> list[str]:
    """The rows of a series in the table; and its picture."""
    whole, before = written(name, args.out)
    (series,) = read_series(whole)
    cut, season, values = int(len(series) * (1 - TEST)), series.step.season(), filled(series.values[:, 0])
    direct, called = linear(values, cut, season)
    plain = {"week ago": week_ago(values, cut, season), "ETS": smoothing(values, cut, season), called: direct}
    rows = [row(name, label, [scored(series, cut, draw)]) for label, draw in plain.items()]
    print("\n".join(rows), flush=True)
    jobs = [(label, seed) for label in MODELS for seed in range(args.seeds)]
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(partial(run, name, whole, before, args=args), jobs))
    for label in MODELS:
        rows.append(row(name, label, [s for (own, _), (s, _) in zip(jobs, found, strict=True) if own == label]))
    last = {label: draw(len(series) - HORIZON) for label, draw in plain.items()}
    last |= {label: drawn for (label, seed), (_, drawn) in zip(jobs, found, strict=True) if seed == 0}
    picture(series, last, name, (args.out if args.into is None else args.into.parent) / f"series-{name}.png")
    return rows


def picture(series: TimeSeries, last: dict[str, np.ndarray], name: str, path: Path) -> None:
    """The last window of the test part: what came, and what each forecast said."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3), layout="constrained")
    panels: Any = figure.subplots(1, len(last), sharex=True, sharey=True)
    before, ahead = np.arange(-2 * HORIZON, 0), np.arange(HORIZON)
    values = series.values[:, 0]
    for axes, (label, drawn) in zip(panels.flat, last.items(), strict=True):
        axes.plot(before, values[len(values) - 3 * HORIZON : -HORIZON], color="#333", linewidth=1)
        axes.plot(ahead, values[-HORIZON:], color="#333", linewidth=1, linestyle=":")
        axes.fill_between(ahead, *np.quantile(drawn, (0.1, 0.9), axis=0), color="#06c", alpha=0.25, linewidth=0)
        axes.plot(ahead, np.median(drawn, 0), color="#06c", linewidth=1.4)
        axes.set_title(label, loc="left", fontsize=9)
    figure.suptitle(f"{name}: the last {HORIZON} steps (dotted), the median, and 0.1 to 0.9", fontsize=10)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/series"))
    parser.add_argument("--into", type=Path, help=f"a text whose table, between {BEGIN} and {END}, is written anew")
    parser.add_argument("--series", nargs="+", default=list(SERIES))
    parser.add_argument("--lr", type=float, default=2e-3)
    for name, value in {"steps": 400, "batch": 32, "context": 96, "seeds": 2, "processes": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = ["| series | | MASE | CRPS | inside 0.1 … 0.9 |", "|---|---|---|---|---|"]
    for name in args.series:
        table += measured(name, args)
    print("\n".join(table))
    if args.into is not None:
        documents.put(args.into, BEGIN, END, "\n".join(table))


if __name__ == "__main__":
    main()
