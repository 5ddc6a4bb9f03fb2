"""Session of `train` and `finetune`: processes, folder, display, memory estimate, loggers, and the run itself."""

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
from anyformer.train.film import Film, paths_of
from anyformer.train.loggers import observers
from anyformer.train.loop import Done, Loop, Measure
from anyformer.train.memory import check_memory
from anyformer.train.objectives import Objective, adjusted
from anyformer.train.options import FinetuneOptions, RunOptions, TrainOptions
from anyformer.train.progress import Screen
from anyformer.train.schedule import ENDING
from anyformer.train.settings import Settings
from anyformer.train.tasks.base import Task


@dataclass(frozen=True)
class Session:
    """One call of a command.

    Attributes:
        options: as given. `world`: the processes. `run`: the folder. `screen`: that of the main process is not silent.
    """

    options: RunOptions
    world: World
    run: Run
    screen: Screen

    def learn(
        self, model: Any, task: Task, settings: Settings, facts: dict[str, Any], options: TrainOptions | FinetuneOptions
    ) -> tuple[Loop, Done]:
        """Trains the model, with memory estimate, display, loggers and curves.

        Args:
            facts: beside those of the task and the settings, for comparison when the run resumes.
            options: with their resolved values, for config.yaml.

        Raises:
            ValueError, OSError, FloatingPointError: see `train.train`.
        """
        screen = self.screen
        for note in task.notes:
            screen.message(note)
        screen.message(rate_summary(settings))
        start = f"resumes {self.run.checkpoint}" if self.run.checkpoint else "writes"
        screen.message(f"{start} to {self.run.folder}")
        screen.unit = task.unit
        measure = functools.partial(task.measure, batch=options.batch)
        objective = adjusted(task.objective, label_smoothing=options.label_smoothing, z_loss=options.z_loss)
        facts = {**facts, "batch": options.batch, "context": options.context, **task.facts}
        task.begin(self.run.folder, settings, screen.message)
        with ExitStack() as stack:
            batches: Batches = Global(task.rows, options.batch)
            if options.workers:
                batches = stack.enter_context(Prefetch(batches, options.workers))
            loop = _loop(screen, options, model, batches, objective, settings, self.run, measure, facts, self.world)
            self.world.on_main(
                lambda: _write_config(options, self.run.folder)
            )  # not before: a run that is refused leaves everything as it was
            done = loop.run()
        self.world.on_main(lambda: _draw_curves(screen, loop))
        return loop, done

    def conclude(self, done: Done) -> None:
        """Reports the end of a run that did not reach its last step."""
        if done.stopped:
            self.screen.message(
                f"stopped after step {done.step}, {done.checkpoint} is complete; --resume true continues from it"
            )
        if done.early:
            best = (done.best or {}).get("step")
            self.screen.message(f"no better evaluation since step {best}: ended after step {done.step}")


def _write_config(options: TrainOptions | FinetuneOptions, folder: Path) -> None:
    """config.yaml: every option with its resolved value, so that `--config` repeats the run."""
    import yaml

    values: dict[str, Any] = dict(vars(options))
    if isinstance(options.model, Recipe):
        atomic_write(folder / "recipe.json", (json.dumps(options.model.to_json(), indent=2) + "\n").encode())
        values["model"] = str(folder / "recipe.json")
    values |= {"out": str(folder), "resume": False, "betas": list(options.betas)}
    values["activation_checkpointing"] = list(options.activation_checkpointing)
    values["data"] = options.data if isinstance(options.data, dict) else str(options.data)
    atomic_write(folder / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())


def rate_summary(s: Settings) -> str:
    """The learning-rate schedule in a line, with a warning for a warm-up as long as the run."""
    if s.warmup >= s.steps > 1:
        return (
            f"learning rate: the warmup of {s.warmup} steps does not end within {s.steps} steps, so the rate "
            f"ends at {s.lr * s.steps / s.warmup:.2g}; a shorter warmup would let it reach {s.lr:g}"
        )
    ends = f", then {s.schedule}" + (f" to {s.lr * s.min_lr_ratio:.2g}" if s.schedule in ENDING else "")
    return f"learning rate: {s.lr:g} after {s.warmup} steps of warmup{ends}"


@contextlib.contextmanager
def session(options: RunOptions, name: str) -> Iterator[Session]:
    """Joins the processes, opens the folder of the run (`name` is a part of a new one's) and the screen."""
    o = options
    with world(o.parallel, o.mesh, o.communication, o.device) as processes:
        folder = processes.on_main(lambda: _folder(o.out, name, o.resume))
        with Run(folder, o.resume, processes) as run, Screen(o.quiet or not processes.main) as screen:
            yield Session(options, processes, run, screen)


def _folder(out: str | Path | None, name: str, resume: bool | str) -> Path:
    if out is not None:
        return Path(out)
    if str(resume).lower() != "false":
        raise ValueError("resume needs out, the folder of the run")
    return next(p for i in itertools.count(1) if not (p := Path("runs") / f"{name}-{i}").exists())


def context_of(model: Any, context: int | None, longest: int, least: int, hint: str) -> int:
    """Tokens of a window or an example: `context`, or the context of the model, at most `longest`.

    Raises:
        ValueError: for fewer than `least`, or more than the model's; `hint` is added to the message.
    """
    most = model.context
    if context is None:
        return min(longest, most or longest)
    if context < least or (most is not None and context > most):
        raise ValueError(f"context={context} must be from {least} to the context of the model, {most}{hint}")
    return context


def _loop(
    screen: Screen,
    options: RunOptions,
    model: Any,
    batches: Any,
    objective: Objective,
    settings: Settings,
    run: Run,
    measure: Measure,
    facts: dict[str, Any],
    processes: World,
) -> Loop:
    """The loop, ready to run, with memory estimate, display and loggers.

    Raises:
        ValueError: if the run will not fit the memory, or energy cannot be measured. ImportError: for a missing
        package.
    """
    paths_of(model, options.look)
    if options.look and processes.size > 1:
        raise ValueError("look runs the model between two steps, which several processes do not; leave it out")
    check_memory(screen, model, batches(0), objective, settings, options.memory)
    screen.energy = Energy() if options.energy else None
    facts = {**facts, "label_smoothing": options.label_smoothing}
    if options.z_loss:  # runs from before it know nothing of it
        facts["z_loss"] = options.z_loss
    loop = Loop(model, batches, objective, settings, run, measure, facts, screen, processes)
    board, wandb = (chosen and processes.main for chosen in (options.tensorboard, options.wandb))
    films = [Film(run.folder, model, options.look, settings.steps, loop.step)] if options.look else []
    # not before: a run that is refused writes nothing
    loop.observer = observers(screen, run.folder, vars(options), board, wandb, *films)
    return loop


def _draw_curves(screen: Screen, loop: Loop) -> None:
    """Writes curves.png and curves.html."""
    try:
        plots.write(loop.folder.folder, screen.unit)
    except ImportError as error:  # the log is there: they can be drawn later
        screen.message(str(error))
