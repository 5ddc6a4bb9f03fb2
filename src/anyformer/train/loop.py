"""The training loop, for any model and any batches, safe to interrupt.

```python
done = fit(model, batches, objectives.classification, Settings(steps=1000, lr=3e-4), out="runs/mine")
```
A step depends only on the model, the optimiser state and the random state: batch and learning rate are functions of its
number. So `N steps = k steps + resume + (N - k)`, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.core.machine import kept_memory
from anyformer.core.recompute import recomputing
from anyformer.core.shown import Shown
from anyformer.data.batches import Batch, Batches, Numbered
from anyformer.train import (
    batch_checks,
    checkpoint,
    diagnostics,
    environment,
    master_weights,
    optim,
    precision,
    random_state,
    resume,
)
from anyformer.train.aware import Aware
from anyformer.train.distributed.base import World
from anyformer.train.ema import Average
from anyformer.train.interrupts import Interrupts
from anyformer.train.log import Log, Silent
from anyformer.train.loggers import Observer
from anyformer.train.objectives import Objective, counted
from anyformer.train.schedule import rate
from anyformer.train.settings import Settings
from anyformer.train.step_loss import Loss, real_tokens

Measure = Callable[[Any], float]  # model (in eval mode, without gradients) -> a number; lower is better


@dataclass(frozen=True)
class Done(Shown):
    """Result of `fit`.

    Attributes:
        checkpoint: the last one; with `ema`, the mean of the weights is the model in its folder `ema`.
        step: updates done. `stopped`: a signal came before the last one. `early`: patience ended first.
        loss: of the last step. `held_out`: the last evaluation, or None.
        best: the step and the value of the best evaluation, or None.
    """

    checkpoint: Path
    step: int
    loss: float
    held_out: float | None
    stopped: bool
    early: bool = False
    best: dict[str, Any] | None = None


def fit(
    model: Any,
    batches: Batches | Iterable[Batch],
    objective: Objective,
    settings: Settings,
    out: str | Path,
    *,
    measure: Measure | None = None,
    resume: bool | str | Path = False,
    facts: dict[str, Any] | None = None,
    world: World | None = None,
    observer: Observer | None = None,
) -> Done:
    """Trains a model in place, and keeps checkpoints of it in `out`.

    Args:
        model: anything that `af.build` or `af.load` gives.
        batches: a function from the batch's number to the batch, or an iterable (see `data.batches.Numbered`). A batch
            is a dictionary: the model's inputs by name, and `labels`.
        objective: see `train.objectives`.
        measure: evaluates the model; lower is better.
        observer: receives metrics and evaluations during the run, see `train.loggers.Observer`.
        resume: see `train.checkpoint.Run`.
        facts: stored with each checkpoint and compared on resuming, as the settings are.
        world: the processes of the run, see `train.distributed.world`; by default this one alone.

    Raises:
        ValueError: for settings, batches or a folder that do not fit; FloatingPointError when the loss is not finite.
    """
    with world or World() as world, checkpoint.Run(out, resume, world) as run:
        observer = observer if observer is not None and world.main else Observer()
        return Loop(model, batches, objective, settings, run, measure, facts or {}, observer, world).run()


class Loop:
    """One run of `fit`. Its attributes are the state of a step and of a checkpoint."""

    def __init__(
        self,
        model: Any,
        batches: Batches | Iterable[Batch],
        objective: Objective,
        settings: Settings,
        run: checkpoint.Run,
        measure: Measure | None,
        facts: dict[str, Any],
        observer: Observer,
        world: World | None = None,
    ):
        if settings.patience and measure is None:
            raise ValueError(f"patience={settings.patience} counts evaluations, which need measure")
        batch_checks.across(objective, settings.accumulate)
        self.model, self.objective, self.settings, self.folder, self.measure = model, objective, settings, run, measure
        self.bounds = [part.bound for part in model.modules() if hasattr(part, "bound")]
        self.world = world or World()
        self.batches: Batches = batches if callable(batches) else Numbered(batches)
        self.facts, self.observer = json.loads(json.dumps(facts)), observer
        for p in model.parameters():
            if p.data_ptr() % 64:  # a view into a file; sums over unaligned memory may round differently
                p.data = p.data.clone()
        self.undo = contextlib.ExitStack()  # changes to the model other than weights, until the run ends
        try:
            self._prepare(model, run)
        except BaseException:
            self.undo.close()
            raise

    def _prepare(self, model: Any, run: checkpoint.Run) -> None:
        """The model, its optimiser and everything else at the first step, or as the checkpoint has it."""
        settings = self.settings
        held = None if run.checkpoint is None else resume.Held(run.checkpoint)
        if held is not None:
            held.compare(settings, self.facts)
        self.types = master_weights.to_float32(model, settings.precision)
        if self.world.size == 1:  # else it may be in parts
            self.undo.callback(master_weights.restore_types, model, self.types)
        self.undo.enter_context(recomputing(model, *settings.activation_checkpointing))
        if held is not None:
            checkpoint.restore_weights(model, held.folder, exact=held.tensors("master"), loaded=model is run.loaded)
        self.criterion = Loss(model, self.objective, settings, self.world.whole)
        self.part = self.world.wrap(self.criterion)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device if self.parameters else torch.device("cpu")
        self.optimizer = optim.Optimizer(*map(self.world.wrap_optimizer, optim.make(model, settings).parts))
        if settings.compile:
            self.criterion.run = precision.compiled(self.criterion.run, self.device)
        self.average = Average(self.parameters, settings.ema) if settings.ema else None
        if settings.aware and not self.world.whole:
            raise ValueError(f"aware={settings.aware} rounds whole matrices, and processes hold parts of them here")
        self.aware = Aware(model, settings.aware) if settings.aware else None
        self.scale = precision.Scale() if settings.precision == "fp16" else None
        self.spikes, self.before = diagnostics.Spikes(), list[Batch]()
        self.step, self.saved, self.loss = 0, -1, math.nan
        self.best: dict[str, Any] | None = None
        self.held_out: float | None = None
        self.rows: list[dict[str, Any]] = []
        self.count: tuple[Any, int] = (1, 1)  # labels (one number or one a kind) and tokens that count in the step
        self.began, self.inside = math.nan, 0.0  # when the rows began; seconds in the model and the optimiser since
        random_state.seed_all(settings.seed)
        if held is not None:
            resume.restore(self, held)
        if self.world.main:
            environment.write(run.folder)
        self.log = Log(run.folder, self.step) if self.world.main else Silent()
        for told in (master_weights.summary(model, self.types), precision.cost(self.device, settings.precision)):
            if told:
                self.observer.message(told)

    def run(self) -> Done:
        """Trains until the last step, a signal, or the end of patience. A checkpoint is written before an evaluation,
        never after."""
        s, early = self.settings, False
        self.model.train()
        with self.undo, kept_memory(), Interrupts() as interrupts, self.log:
            while True:
                last = self.step >= s.steps or self.world.any_process(interrupts.came)
                measured = self.measure is not None and _due(self.step, s.eval_every)
                if last or measured or any(_due(self.step, every) for every in (s.save_every, s.log_every)):
                    self._report()
                due = last or _due(self.step, s.save_every) or (measured and s.patience)
                if due and self.saved != self.step:
                    resume.save(self)
                if measured or (self.measure and self.step >= s.steps):
                    self._evaluate()
                    early = self.stale >= s.patience > 0 and self.step < s.steps
                if last or early:
                    break
                self.began = self.began if self.rows else time.perf_counter()  # saving and evaluating do not count
                self.advance()
        last_one = self.folder.folder / f"step-{self.step:06d}"
        stopped = self.step < s.steps and not early
        self.observer.close()
        return Done(last_one, self.step, self.loss, self.held_out, stopped, early, self.best)

    @property
    def stale(self) -> int:
        """Evaluations since the best one."""
        every = self.settings.eval_every
        return (self.step - (self.best["step"] if self.best else 0)) // every if every else 0

    def advance(self) -> None:
        """One step: gradients over `accumulate` batches, clipped; one update. A step whose loss or gradient is not
        finite never reaches the weights; this check costs one GPU synchronisation per step."""
        s = self.settings
        self.world.reseed(s.seed, self.step, own=False)
        batches = [self.batches(self.step * s.accumulate + i) for i in range(s.accumulate)]
        if first := self.step in (0, self.saved):
            for batch in batches:
                batch_checks.check(batch, self.objective)
                self.world.check_same_batch(batch)
        batches = [self.world.local_rows(batch) for batch in batches]
        kinds = getattr(self.objective, "counted", counted)  # one number, or one for each kind of label
        counts = torch.stack([kinds(batch["labels"]) for batch in batches]).sum(0)
        real = sum(real_tokens(batch) for batch in batches)
        total = self.world.all_reduce_sum(torch.cat((counts.flatten(), torch.tensor([real]))))
        if not int(total[:-1].sum()):
            batch_checks.nothing_counts(self.step, first, self.observer)
        total = total.clamp(min=1)
        self.count = int(total[0]) if len(total) == 2 else total[:-1].to(self.device), int(total[-1])
        loss, began = torch.zeros((), device=self.device), time.perf_counter()
        self.world.reseed(s.seed, self.step, own=True)
        watching = _due(self.step + 1, s.statistics_every)
        once = precision.casts_kept(s.precision if self.world.whole else "fp32")  # else weights come and go
        with once, self.rounded(), diagnostics.activations(self.model if watching else None) as sizes:
            for i, batch in enumerate(batches):
                with self.world.gradient_sync(last=i == s.accumulate - 1):
                    part = self._loss(batch)
                    self.world.backward(part * self.scale.value if self.scale else part)
                loss += part.detach()
        if self.scale:
            self.scale.undo(self.parameters)
        self.observer.on_gradients(self.step + 1, self.model, batches[0], loss)
        loss, norm = self.world.all_reduce_sum(loss), self.world.clip_grad_norm(self.parameters, s.grad_clip)
        lr = s.lr * rate(s.schedule, self.step, s.steps, s.warmup, s.min_lr_ratio)
        row = {"step": self.step + 1, "loss": float(loss), "lr": lr, "grad_norm": float(norm), "tokens": int(total[0])}
        self.inside += time.perf_counter() - began
        row |= self.criterion.metrics
        if watching:
            self._write_statistics(sizes)
        self._update(row, batches)
        self.before = batches

    def _loss(self, batch: Batch) -> Tensor:
        """The share of a batch in the loss of the step."""
        labels_in_step, real_in_step = self.count
        inputs = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        labels = inputs.pop("labels")
        return self.part(inputs, labels, labels_in_step, real_tokens(batch) / real_in_step)

    def _update(self, row: dict[str, Any], batches: list[Batch]) -> None:
        """Updates the weights if loss and gradient norm are finite."""
        finite = math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])
        if self.scale:
            self.scale.learn(finite)
        if finite:
            if unusual := self.spikes.notice(loss=row["loss"], grad_norm=row["grad_norm"]):
                self.observer.message(f"step {row['step']}: a spike: {unusual}; {self._grown(batches)}")
            began = time.perf_counter()
            self.optimizer.rate(row["lr"])
            self.optimizer.step()
            self.inside += time.perf_counter() - began
            for bound in self.bounds:
                bound()
        elif self.scale:
            self.observer.message(
                f"step {row['step']}: overflow in fp16, no weight was changed; the scale of the loss is now "
                f"{self.scale.value:g}"
            )
        self.step += 1
        self.world.after_step(self.step, self.step == self.settings.steps)
        self.rows.append(row if finite else {**row, "loss": _or_none(row["loss"]), "grad_norm": None})
        if not finite and not self.scale:
            self._report()
            self._fail(row, batches)
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.step)

    def _fail(self, row: dict[str, Any], batches: list[Batch]) -> None:
        where = diagnostics.nonfinite_origin(self.model, batches, self._loss)
        latest = checkpoint.latest(self.folder.folder) or "none"
        raise FloatingPointError(
            f"step {row['step']}: loss {row['loss']}, gradient norm {row['grad_norm']}; {where}. Nothing was saved "
            f"after it. Last good checkpoint: {latest}. A lower lr or a longer warmup may help"
        )

    def _grown(self, batches: list[Batch]) -> str:
        """Origin of a spike, found by running this step and the one before once more; changes nothing."""
        slopes, states, largest = diagnostics.gradients(self.model), random_state.random_states(), []
        with torch.no_grad():
            for some in (self.before or batches, batches):
                with diagnostics.activations(self.model) as sizes:
                    for batch in some:
                        self._loss(batch)
                largest.append(dict(sizes))
        random_state.restore_random(states)
        return diagnostics.spike_origin(largest[0], largest[1], slopes)

    def _write_statistics(self, sizes: dict[str, float]) -> None:
        kinds = {"activations": sizes, "gradients": diagnostics.gradients(self.model)}
        kinds["weights"] = diagnostics.weights(self.model)
        self.log.statistics({"step": self.step + 1, **{k: diagnostics.rounded(v) for k, v in kinds.items()}})

    def _report(self) -> None:
        """Logs the steps since the last report."""
        if not self.rows:
            return
        rows = [{k: float(v) if isinstance(v, Tensor) else v for k, v in row.items()} for row in self.rows]
        seconds, inside = time.perf_counter() - self.began, self.inside
        self.rows, self.inside = [], 0.0
        speed = sum(row["tokens"] for row in rows) / seconds
        self.log.add([{**row, "tokens_per_second": round(speed, 1)} for row in rows])
        done = next((row for row in reversed(rows) if row["grad_norm"] is not None), None)
        if done:
            self.loss = done["loss"]
            self.observer.on_steps({**done, "outside": 1 - inside / seconds}, speed, self.settings.steps)

    @torch.no_grad()
    def _evaluate(self) -> None:
        assert self.measure is not None
        states = random_state.random_states()  # a measure that draws does not change the run
        self.model.eval()
        with self.averaged(), self.rounded():
            measured = float(self.measure(self.model))
        self.held_out = self.world.on_main(lambda: measured)  # all decide the same, whatever their last bits
        self.model.train()
        random_state.restore_random(states)
        if not math.isfinite(self.held_out):
            self.observer.message(f"step {self.step}: the metric is {self.held_out}, which cannot be compared")
        elif self.best is None or self.held_out < self.best["held_out"]:
            self.best = {"step": self.step, "held_out": self.held_out}
        self.log.add([{"step": self.step, "held_out": _or_none(self.held_out)}])
        self.observer.on_evaluation(self.step, self.held_out)

    def averaged(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, the model has the running mean of the weights, where there is one."""
        return self.average.swapped() if self.average else contextlib.nullcontext()

    def rounded(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, the model computes with matrices in few bits, if the settings ask for it."""
        return self.aware.rounded() if self.aware else contextlib.nullcontext()


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
