"""`train` for tasks other than causal: what is read, what is said, what is left."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from anyformer.data import records, text
from anyformer.data.corpus import weights
from anyformer.hub import load
from anyformer.train import kinds, tasks
from anyformer.train.checkpoint import Run
from anyformer.train.command import Result, _context, _write_config, opened, whole
from anyformer.train.origin import Origin, first_weights
from anyformer.train.settings import Settings
from anyformer.train.show import Screen
from anyformer.train.watching import ended, smoothed, watched


def learn_task(source: Origin, settings: Settings, given: dict[str, Any]) -> Result:
    """Trains on `source.task`. `given` are the options of `train`, which says what they mean and what is raised."""
    kind, batch = source.task, given["batch"]
    for name, plain in {"rows": "drawn", "workers": 0, "cache": None}.items():
        if given[name] != plain:
            raise ValueError(f"{name}={given[name]!r} is for the task causal, and this is {kind}; leave it out")
    if len(several := weights(given["data"])) > 1:
        raise ValueError(
            f"the task {kind} is learned from one source, and data names {len(several)}; mixing is for causal"
        )
    material = Material.read(kind, next(iter(several)), given["fields"])
    with opened(given, source.name) as (processes, run, screen):
        lm = load(run.checkpoint) if run.checkpoint else material.model(source, given)
        lm, factors = first_weights(source, lm, given, new=run.checkpoint is None)
        settings = dataclasses.replace(settings, rates={**factors, **settings.rates})
        lm.to(given["device"] or ("cuda" if torch.cuda.is_available() else "cpu"))
        if kind != "images":
            given["context"] = _context(lm, given["context"])
        task = material.task(lm, given["context"], given["seed"])
        processes.once(lambda: _write_config(run.folder, given))
        facts = {**source.facts, **{name: given[name] for name in ("tokenizer", "vocab", "batch", "context")}}
        baseline, screen.unit = task.baseline(batch), task.unit
        _introduce(screen, run, lm, task, baseline)
        measure = functools.partial(task.measure, batch=batch)
        facts |= {"task": kind, **task.facts}
        objective = smoothed(task.objective, given["label_smoothing"])
        loop = watched(screen, given, lm, task.batches(batch), objective, settings, run, measure, facts, processes)
        done = loop.run()
        lm = whole(lm, done, processes).eval()
        processes.once(lambda: ended(screen, loop))
    if done.stopped:
        screen.say(f"stopped after step {done.step}, {done.checkpoint} is complete; --resume true goes on from there")
    else:
        screen.say(f"held-out: {done.held_out:.3f} {task.unit} (guess: {baseline:.3f})\nmodel: {done.checkpoint}")
    return Result(
        done.checkpoint, done.step, done.stopped, done.loss, None, None, "", lm, kind, done.held_out, baseline
    )


class Material:
    """What a task is learned from: rows, or a text in two parts."""

    def __init__(self, kind: str, rows: list[dict[str, Any]], learn: str, held_out: str):
        self.kind, self.rows, self.learn, self.held_out = kind, rows, learn, held_out

    @classmethod
    def read(cls, kind: str, data: str, fields: dict[str, str] | None) -> Material:
        """All of it, into memory."""
        if kind not in kinds.COLUMNS:
            return cls(kind, [], *text.split(text.read(data, fields)))
        rows = list(records.records(data, fields, need=kinds.COLUMNS[kind]))
        return cls(kind, rows, "\n".join(tasks.texts(kind, tasks.split(rows)[0])), "")

    def model(self, source: Origin, given: dict[str, Any]) -> Any:
        """The model with first weights, with a head for all classes."""
        classes = len(tasks.classes(self.kind, self.rows)) if self.rows and self.kind != "seq2seq" else 0
        return source.model(given["tokenizer"], given["vocab"], self.learn, given["seed"], classes)

    def task(self, model: Any, context: int, seed: int) -> tasks.Task:
        """The task for a model."""
        if self.rows:
            return tasks.on_rows(self.kind, model, self.rows, context, seed)
        learn, held_out = (text.tokenise(model.tokenizer, part) for part in (self.learn, self.held_out))
        return tasks.on_text(self.kind, model, learn, held_out, context, seed)


def _introduce(screen: Screen, run: Run, model: Any, task: tasks.Task, baseline: float) -> None:
    count = sum(p.numel() for p in model.parameters())
    screen.say(
        f"{model.page or 'recipe'}, {task.name}: {count / 1e6:.2f} M parameters; {len(task.held_out):,} examples held "
        f"out, for which a guess that looks at nothing is at {baseline:.3f} {task.unit}"
    )
    for note in task.notes:
        screen.say(note)
    screen.say(f"{'resumes ' + str(run.checkpoint) if run.checkpoint else 'writes'} to {run.folder}")
