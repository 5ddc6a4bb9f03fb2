"""A study of runs: the three approaches side by side, intervals, and how well the largest runs were foretold."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.hub.formats.guard import atomic_write
from anyformer.scale import surface
from anyformer.scale.approaches import Allocation, envelope, parabolas
from anyformer.scale.approaches import surface as third
from anyformer.scale.laws import FIELDS, Law
from anyformer.scale.runs import LEAST, Runs
from anyformer.scale.surface import Surface


@dataclass(frozen=True)
class Held:
    """A run that the fit did not see. `interval`: 90 %, of the law, without the noise of the run itself. `carried`: the
    loss of the largest run that it saw."""

    params: float
    tokens: float
    loss: float
    predicted: float
    interval: tuple[float, float]
    carried: float

    @property
    def error(self) -> float:
        """Of the prediction, as a share of the loss."""
        return self.predicted / self.loss - 1

    @property
    def carried_error(self) -> float:
        """Of the loss carried forward."""
        return self.carried / self.loss - 1


@dataclass(frozen=True)
class Study:
    """The result of `study`. `law` is the fit of all runs, with draws. `note`: why nothing was held out."""

    runs: Runs
    fit: Surface
    law: Law
    allocations: tuple[Allocation, ...]
    held: tuple[Held, ...]
    note: str

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, for machines."""
        law = {n: {"value": getattr(self.law, n), "interval": self._interval(n)} for n in (*FIELDS, "a")}
        exponents = {a.name: {"a": _known(a.a), "log_g": _known(a.log_g), "note": a.note} for a in self.allocations}
        held = [{**vars(h), "error": h.error, "carried_error": h.carried_error} for h in self.held]
        return {
            "runs": len(self.runs.loss), "objective": self.fit.objective, "agreeing_starts": self.fit.agreeing,
            "law": law, "approaches": exponents, "held_out": held, "note": self.note,
        }  # fmt: skip

    def _interval(self, name: str) -> tuple[float, float] | None:
        return self.law.interval(lambda law: getattr(law, name))

    def __str__(self) -> str:
        f, lines = self.fit, []
        lines.append(
            f"L(N, D) = E + A / N^alpha + B / D^beta of {len(self.runs.loss)} runs: objective {f.objective:.6g}, "
            f"reached by {f.agreeing} of {surface.STARTS} starts"
        )
        lines.append(f"{'':13}{'value':>11}   90 % interval of {len(self.law.draws)} resamples")
        for name in (*FIELDS, "a"):
            low, high = self._interval(name) or (np.nan, np.nan)
            said = "  (best N grows as C^a, best D as C^(1 - a))" if name == "a" else ""
            lines.append(f"  {name:11}{getattr(self.law, name):11.4g}   {low:.4g} to {high:.4g}{said}")
        lines.append("\napproach        exponent a    best N and D for ten times the most operations of a run")
        flops = 10 * self.runs.flops.max()
        for each in self.allocations:
            n, d = each.optimal(flops)
            lines.append(f"  {each.name:13}" + (f"{each.a:11.3f}    {n:.3g}, {d:.3g}" if not each.note else each.note))
        if self.held:
            lines.append("\nheld out: the largest runs, foretold by a fit of the others")
            lines.append(
                "    parameters      tokens    loss   foretold   90 % interval     error   last loss carried on"
            )
        for h in self.held:
            lines.append(
                f"  {h.params:12,.0f}{h.tokens:12.3g}{h.loss:8.4f}{h.predicted:11.4f}   "
                f"{h.interval[0]:.4f} to {h.interval[1]:.4f}{h.error:+8.1%}{h.carried_error:+12.1%}"
            )
        return "\n".join([*lines, *([f"\n{self.note}"] if self.note else [])])


def study(runs: Runs, hold_out: int = 2, draws: int = 200, seed: int = 0) -> Study:
    """The study of runs.

    Args:
        hold_out: the runs of most operations, which a fit of the others foretells. draws: resamples for intervals.

    Raises:
        ValueError: those of `surface.fit`. ImportError: without scipy.
    """
    fit = surface.fit(runs, seed)
    law = surface.bootstrap(runs, fit.law, draws, seed)
    held: tuple[Held, ...] = ()
    note = ""
    if hold_out and len(runs.loss) - hold_out < LEAST:
        note = f"nothing is held out: {len(runs.loss)} runs without {hold_out} are too few for a fit"
    elif hold_out:
        held = _foretold(runs, hold_out, draws, seed)
    return Study(runs, fit, law, (envelope(runs), parabolas(runs), third(law)), held, note)


def _foretold(runs: Runs, hold_out: int, draws: int, seed: int) -> tuple[Held, ...]:
    order = np.argsort(runs.flops, kind="stable")
    seen, unseen = runs.take(order[:-hold_out]), order[-hold_out:]
    law = surface.bootstrap(seen, surface.fit(seen, seed).law, draws, seed)
    carried, made = float(seen.loss[-1]), []
    for of in unseen:
        n, d, loss = float(runs.params[of]), float(runs.tokens[of]), float(runs.loss[of])
        interval = law.interval(lambda each, n=n, d=d: each.loss(n, d)) or (np.nan, np.nan)
        made.append(Held(n, d, loss, law.loss(n, d), interval, carried))
    return tuple(made)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def draw(study: Study, path: str | Path) -> None:
    """A PNG: losses with the law's curves, and the best size for an amount of computation by each approach.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a plot needs matplotlib: pip install 'anyformer[scale]'") from None
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _losses(left, study)
    _sizes(right, study)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    atomic_write(Path(path), content.getvalue())


def _losses(axes: Any, study: Study) -> None:
    """The loss against computation; of few sizes, a curve for each."""
    runs, law = study.runs, study.law
    sizes = np.unique(runs.params)
    order = np.log(runs.params)
    shown = axes.scatter(runs.flops, runs.loss, c=order, cmap="viridis", s=26, zorder=3, label="runs")
    for size in sizes if len(sizes) <= 12 else np.geomspace(sizes[0], sizes[-1], 8):
        tokens = np.geomspace(runs.tokens.min(), runs.tokens.max(), 60)
        color = shown.cmap(shown.norm(np.log(size)))
        axes.plot(6 * size * tokens, law.loss(size, tokens), color=color, lw=1, alpha=0.8)
        axes.annotate(f"{size:.2g}", (6 * size * tokens[0], law.loss(size, tokens[0])), fontsize=8, color=color)
    for i, held in enumerate(study.held):
        at = 6 * held.params * held.tokens
        low, high = held.interval
        bars = [[max(0.0, held.predicted - low)], [max(0.0, high - held.predicted)]]
        label = "foretold without them" if i == 0 else None
        axes.errorbar([at], [held.predicted], bars, fmt="x", color="crimson", zorder=4, capsize=3, label=label)
    flops = np.geomspace(runs.flops.min(), 3 * runs.flops.max(), 60)
    axes.plot(flops, [law.loss(*law.optimal(c)) for c in flops], "k--", lw=1.2, label="the law's best")
    axes.set(xscale="log", yscale="log", xlabel="operations 6 N D", ylabel="loss")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.set_title("losses, and the law by parameters", loc="left", fontsize=11)
    axes.legend(fontsize=8, frameon=False)


def _sizes(axes: Any, study: Study) -> None:
    runs = study.runs
    axes.scatter(runs.flops, runs.params, s=12, color="0.75", label="runs")
    flops = np.geomspace(runs.flops.min(), 10 * runs.flops.max(), 20)
    for each, color in zip(study.allocations, ("C0", "C1", "C2"), strict=True):
        if not each.note:
            axes.plot(flops, [each.optimal(c)[0] for c in flops], color=color, label=f"{each.name}: a = {each.a:.2f}")
        if each.points:
            axes.scatter(*zip(*each.points, strict=True), s=18, color=color, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="operations 6 N D", ylabel="parameters N")
    axes.set_title("the best size", loc="left", fontsize=11)
    axes.legend(fontsize=8, frameon=False)
