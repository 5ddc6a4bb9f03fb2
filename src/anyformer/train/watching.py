"""A run with what `train` offers around it: foreseen, shown, reported elsewhere, drawn at the end."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from anyformer.train import plots
from anyformer.train.checkpoint import Run
from anyformer.train.criterion import Objective
from anyformer.train.energy import Energy
from anyformer.train.loop import Loop, Measure
from anyformer.train.predict import foresee
from anyformer.train.settings import Settings
from anyformer.train.show import Screen
from anyformer.train.watchers import watching
from anyformer.train.world import World


def smoothed(objective: Any, share: float) -> Objective:
    """The objective with label smoothing.

    Raises:
        ValueError: if it has none.
    """
    if share and "label_smoothing" not in inspect.signature(objective).parameters:
        raise ValueError(f"label_smoothing={share} is for objectives over classes or tokens; this task's has none")
    return partial(objective, label_smoothing=share) if share else objective


def watched(
    screen: Screen,
    given: dict[str, Any],
    model: Any,
    batches: Any,
    objective: Objective,
    settings: Settings,
    run: Run,
    measure: Measure,
    facts: dict[str, Any],
    processes: World,
) -> Loop:
    """The loop, ready to run. `given` are the options of `train`: memory, energy, tensorboard, wandb are read here.

    Raises:
        ValueError: if the run will not fit the memory, or energy cannot be measured. ImportError: for what is missing.
    """
    foresee(screen, model, batches(0), objective, settings, given["memory"])
    screen.energy = Energy() if given["energy"] else None
    facts = {**facts, "label_smoothing": given["label_smoothing"]}
    loop = Loop(model, batches, objective, settings, run, measure, facts, screen, processes)
    reports = (given[k] and processes.main for k in ("tensorboard", "wandb"))
    loop.watch = watching(screen, run.folder, given, *reports)  # writes: not for a run that is refused
    return loop


def ended(screen: Screen, loop: Loop) -> None:
    """Closes what was reported to, and draws the curves."""
    loop.watch.finish()
    try:
        plots.write(loop.folder.folder, screen.unit)
    except ImportError as error:  # the log is there: they can be drawn later
        screen.say(str(error))
