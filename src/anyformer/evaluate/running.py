"""`evaluate`: one model, or two on the same items. The same function is `anyformer eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from anyformer.core.shown import Shown
from anyformer.evaluate.answering import Measured, choice, classification, generation, perplexity
from anyformer.evaluate.baselines import baselines
from anyformer.evaluate.bias import templates, weat
from anyformer.evaluate.calibration import calibration
from anyformer.evaluate.intervals import Estimate
from anyformer.evaluate.items import TASKS, read, repeated, task_of
from anyformer.evaluate.shots import Form
from anyformer.hub.formats.guard import atomic_write

Task = Literal["auto", "perplexity", "classification", "choice", "generation", "weat", "templates", "calibration"]
SHOTS = ("choice", "classification", "generation", "calibration")


@dataclass(frozen=True)
class Result(Shown):
    """Result of an evaluation.

    Attributes:
        count: items. metrics: figures with intervals. baselines: beside them.
        against: the figures of the other model, and differences: first minus other, with paired standard errors.
        details: confusion, reliability and the like. rows: what was computed of each item. settings: of the run.
    """

    task: str
    count: int
    metrics: dict[str, Estimate]
    baselines: dict[str, Estimate]
    notes: list[str]
    settings: dict[str, Any]
    details: dict[str, Any] = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)
    against: dict[str, Estimate] = field(default_factory=dict)
    differences: dict[str, Estimate] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """For machines."""
        named = ("metrics", "baselines", "against", "differences")
        figures = {part: {name: e.json() for name, e in getattr(self, part).items()} for part in named}
        return {
            "task": self.task, "items": self.count, "settings": self.settings, **figures, "notes": self.notes,
            "details": self.details, "rows": self.rows,
        }  # fmt: skip

    def write(self, out: str | Path) -> None:
        """Writes everything as JSON, whole or not at all."""
        atomic_write(out, (json.dumps(self.json(), indent=1, ensure_ascii=False) + "\n").encode())


def evaluate(
    model: Any,
    file: str | Path,
    task: Task = "auto",
    *,
    shots: int = 0,
    seed: int = 0,
    examples: str | Path | None = None,
    template: str | None = None,
    separator: str = " ",
    fields: Mapping[str, str] | None = None,
    window: int | None = None,
    stride: int | None = None,
    max_new_tokens: int = 64,
    regex: str | None = None,
    against: Any = None,
) -> Result:
    """Measures a model on a file.

    Args:
        model: any page that can do the task: see the tables of `items` and `scoring`.
        task: auto = by the columns of the file.
        shots: examples in front of each item, drawn by `seed`, never the item itself.
        examples: a file of them, in the same form, from which baselines learn too; None = the file itself for shots.
        template: around the text of an item, with {text}. separator: in front of an answer.
        window, stride: of perplexity, in tokens; by default the context, at most 1,024, and half a window.
        max_new_tokens, regex: of generation.
        against: another model, on the same items.

    Raises:
        ValueError: naming file, row or option, for rows that do not fit the task, a prompt that is too long, a model
            that cannot do the task. FileNotFoundError.
    """
    name = _task(file, task, fields, shots, regex)
    items = [] if name == "weat" else read(file, name, fields)
    pool = items if examples is None or name == "weat" else read(examples, name, fields)
    form = Form(template or "{text}", separator, shots, seed, pool if shots or examples is not None else ())

    def measured(one: Any) -> Measured:
        if name == "weat":
            return weat(one, file, seed)
        if name == "templates":
            return templates(one, items)
        if name == "perplexity":
            return perplexity(one, items, form, window, stride)
        if name == "generation":
            return generation(one, items, form, max_new_tokens, regex)
        return {"choice": choice, "classification": classification, "calibration": calibration}[name](one, items, form)

    first = measured(model)
    second = Measured({}) if against is None else measured(against)
    notes = repeated(items) if name != "perplexity" else []
    notes += [*form.notes(items, examples is None), *first.notes]
    settings = {"file": str(file), **form.facts(), "max_new_tokens": max_new_tokens}
    figures, others = ({n: m.estimate(seed) for n, m in one.metrics.items()} for one in (first, second))
    beside = first.baselines | baselines(name, items, pool if examples is not None else ())
    return Result(
        name, len(items) or len(first.rows), figures, beside, notes, settings, first.details, first.rows, others,
        {} if against is None else _differences(first, second, seed),
    )  # fmt: skip


def _task(file: str | Path, task: str, fields: Mapping[str, str] | None, shots: int, regex: str | None) -> str:
    if task not in ("auto", *TASKS):
        raise ValueError(f"task must be auto or one of {', '.join(TASKS)}; got {task!r}")
    name = task_of(file, fields) if task == "auto" else task
    if shots and name not in SHOTS:
        raise ValueError(f"shots are for {', '.join(SHOTS)}; {name} has no answers to show")
    if regex is not None and name != "generation":
        raise ValueError(f"regex is for generation; the task is {name}")
    return name


def _differences(first: Measured, second: Measured, seed: int) -> dict[str, Estimate]:
    made = {}
    for name, metric in first.metrics.items():
        found = metric.minus(second.metrics[name], seed)  # type: ignore[arg-type]
        if found is not None:
            made[name] = found
    return made
