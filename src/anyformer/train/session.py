"""What `train` and `finetune` share: the processes, folder and screen of a run, and the run itself."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.data.batches import Batches
from anyformer.data.order import Global
from anyformer.data.prefetch import Prefetch
from anyformer.hub.formats.guard import atomic_write
from anyformer.train import plots
from anyformer.train.checkpoint import Run
from anyformer.train.distributed import world
from anyformer.train.distributed.base import World
from anyformer.train.energy import Energy
from anyformer.train.loggers import observers
from anyformer.train.loop import Done, Loop, Measure
from anyformer.train.memory import check_memory
from anyformer.train.objectives import Objective, smoothed
from anyformer.train.progress import Screen
from anyformer.train.schedule import ENDING
from anyformer.train.settings import Settings
from anyformer.train.tasks.base import Task


@dataclass(frozen=True)
class Session:
    """One call of a command.

    Attributes:
        given: its options by name. `world`: the processes. `run`: the folder. `screen`: the main process alone speaks.
    """

    given: dict[str, Any]
    world: World
    run: Run
    screen: Screen

    def learn(self, model: Any, task: Task, settings: Settings, facts: dict[str, Any]) -> tuple[Loop, Done]:
        """Trains the model, with all that the options offer around it (`_loop`).

        Args:
            facts: what decides the numbers beside the task and the settings, for comparison when the run resumes.

        Raises:
            ValueError, OSError, FloatingPointError: see `train.train`.
        """
        given, screen = self.given, self.screen
        for note in task.notes:
            screen.say(note)
        screen.say(told_rate(settings))
        screen.say(f"{'resumes ' + str(self.run.checkpoint) if self.run.checkpoint else 'writes'} to {self.run.folder}")
        screen.unit = task.unit
        measure = functools.partial(task.measure, batch=given["batch"])
        objective = smoothed(task.objective, given["label_smoothing"])
        facts = {**facts, "batch": given["batch"], "context": given["context"], **task.facts}
        with ExitStack() as stack:
            batches: Batches = Global(task.rows, given["batch"])
            if given["workers"]:
                batches = stack.enter_context(Prefetch(batches, given["workers"]))
            loop = _loop(screen, given, model, batches, objective, settings, self.run, measure, facts, self.world)
            self.world.on_main(self._write_config)  # not before: a run that is refused leaves everything as it was
            done = loop.run()
        self.world.on_main(lambda: _finish(screen, loop))
        return loop, done

    def conclude(self, done: Done) -> None:
        """Says how the run ended, if it was not by its last step."""
        if done.stopped:
            self.screen.say(
                f"stopped after step {done.step}, {done.checkpoint} is complete; --resume true goes on from there"
            )
        if done.early:
            best = (done.best or {}).get("step")
            self.screen.say(f"no better evaluation since step {best}: ended after step {done.step}")

    def _write_config(self) -> None:
        """config.yaml: every option with its value, so that `--config` repeats the run."""
        import yaml

        given, folder = self.given, self.run.folder
        if isinstance(given["model"], Recipe):
            atomic_write(folder / "recipe.json", (json.dumps(given["model"].to_json(), indent=2) + "\n").encode())
            given = {**given, "model": str(folder / "recipe.json")}
        given = {**given, "out": str(folder), "betas": list(given["betas"]), "resume": False}
        given["data"] = given["data"] if isinstance(given["data"], dict) else str(given["data"])
        atomic_write(folder / "config.yaml", yaml.safe_dump(given, sort_keys=False, allow_unicode=True).encode())


def told_rate(s: Settings) -> str:
    """How the learning rate moves, in a line; and that a warm-up as long as the run never ends."""
    if s.warmup >= s.steps > 1:
        return (
            f"learning rate: the warmup of {s.warmup} steps is not over when the {s.steps} steps are, so the rate ends "
            f"at {s.lr * s.steps / s.warmup:.2g}; a shorter warmup would let it reach {s.lr:g}"
        )
    ends = f", then {s.schedule}" + (f" to {s.lr * s.final_lr:.2g}" if s.schedule in ENDING else "")
    return f"learning rate: {s.lr:g} after {s.warmup} steps of warmup{ends}"


@contextlib.contextmanager
def session(given: dict[str, Any], name: str) -> Iterator[Session]:
    """Joins the processes, opens the folder of the run (`name` is a part of a new one's) and the screen."""
    with world(given["parallel"], given["mesh"], given["exchange"], given["device"]) as processes:
        folder = processes.on_main(lambda: _folder(given["out"], name, given["resume"]))
        with Run(folder, given["resume"], processes) as run, Screen(given["quiet"] or not processes.main) as screen:
            yield Session(given, processes, run, screen)


def _folder(out: str | Path | None, name: str, resume: bool | str) -> Path:
    if out is not None:
        return Path(out)
    if str(resume).lower() != "false":
        raise ValueError("resume needs out, the folder of the run")
    return next(p for i in itertools.count(1) if not (p := Path("runs") / f"{name}-{i}").exists())


def context_of(model: Any, context: int | None, longest: int, least: int, hint: str) -> int:
    """Tokens of a window or an example: `context`, or what the model reads, but no more than `longest`.

    Raises:
        ValueError: for fewer than `least`, or more than the model reads; `hint` says what to do.
    """
    most = model.context
    if context is None:
        return min(longest, most or longest)
    if context < least or (most is not None and context > most):
        raise ValueError(f"context={context} must be from {least} to what the model reads, {most}{hint}")
    return context


def _loop(
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
    check_memory(screen, model, batches(0), objective, settings, given["memory"])
    screen.energy = Energy() if given["energy"] else None
    facts = {**facts, "label_smoothing": given["label_smoothing"]}
    loop = Loop(model, batches, objective, settings, run, measure, facts, screen, processes)
    reports = (given[k] and processes.main for k in ("tensorboard", "wandb"))
    loop.watch = observers(screen, run.folder, given, *reports)  # writes: not for a run that is refused
    return loop


def _finish(screen: Screen, loop: Loop) -> None:
    """Closes what was reported to, and draws the curves."""
    loop.watch.finish()
    try:
        plots.write(loop.folder.folder, screen.unit)
    except ImportError as error:  # the log is there: they can be drawn later
        screen.say(str(error))
