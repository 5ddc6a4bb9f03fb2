"""The training loop, for any model and any batches: twenty lines of arithmetic, and what makes them safe to interrupt.

```python
done = fit(model, batches, objectives.classification, Settings(steps=1000, lr=3e-4), out="runs/mine")
```
Nothing in a step depends on what was before but the model, the optimiser and the random generators: the batch and the
learning rate are functions of the step. So `N steps = k steps + resume + (N - k)`, bit for bit on a CPU.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.core.part import check_option
from anyformer.core.skeletons import Output
from anyformer.data.batches import Batch, Batches, Numbered
from anyformer.train import checkpoint, optim
from anyformer.train.figures import figures
from anyformer.train.log import Log, Watch
from anyformer.train.objectives import counted, real_tokens, with_auxiliary
from anyformer.train.schedule import inverse_sqrt, warmup_cosine
from anyformer.train.world import World

Objective = Callable[[Output, Tensor, Tensor | float], Tensor]
Measure = Callable[[Any], float]  # model (in eval mode, without gradients) -> a number; lower is better


@dataclass(frozen=True)
class Settings:
    """How a model is trained. Stored with each checkpoint; a run that resumes must have the same ones.

    Args:
        steps: updates of the weights.
        lr: the highest learning rate. `warmup`: steps until it is reached. `final_lr`: where the cosine ends, as a
            share of `lr`.
        weight_decay: of matrices, see `optim.groups`. `betas`: of AdamW.
        clip: longest gradient, as a norm over all parameters; inf switches clipping off.
        accumulate: batches that make one step.
        seed: of the random generators of PyTorch, NumPy and Python: of dropout, and of batches that draw.
        save_every, eval_every: steps between checkpoints and between evaluations; 0 = only at the end.
        log_every: steps between lines on the screen; the log files have every step.
        keep_last: checkpoints that are kept, beside the best one.
        schedule: how the learning rate falls: cosine or inverse_sqrt (which has no `final_lr`).
    """

    steps: int
    lr: float = 1e-3
    warmup: int = 100
    final_lr: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    accumulate: int = 1
    seed: int = 0
    save_every: int = 0
    eval_every: int = 0
    log_every: int = 10
    keep_last: int = 2
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "accumulate": 1, "log_every": 1, "keep_last": 1}.items():
            _at_least(name, getattr(self, name), least)
        for name in ("warmup", "final_lr", "weight_decay", "seed", "save_every", "eval_every"):
            _at_least(name, getattr(self, name), 0)
        check_option("Settings", "schedule", self.schedule, ("cosine", "inverse_sqrt"))
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


FREE = {"steps", "save_every", "eval_every", "log_every", "keep_last"}  # may change when a run resumes


@dataclass(frozen=True)
class Done:
    """What `fit` leaves.

    Attributes:
        checkpoint: the last one.
        step: updates done. `stopped`: a signal came before the last one.
        loss: of the last step. `held_out`: the last evaluation, or None.
    """

    checkpoint: Path
    step: int
    loss: float
    held_out: float | None
    stopped: bool


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
) -> Done:
    """Trains a model in place, and keeps checkpoints of it in `out`.

    Args:
        model: anything that `af.build` or `af.load` gives.
        batches: a function from the batch's number to the batch, or an iterable (see `data.batches.Numbered`). A batch
            is a dictionary: the model's inputs by name, and `labels`.
        objective: see `train.objectives`.
        measure: evaluates the model; lower is better.
        resume: see `train.checkpoint.Run`.
        facts: stored with each checkpoint and compared on resuming: what decides the numbers beside the settings.

    Raises:
        ValueError: for settings, batches or a folder that do not fit; FloatingPointError when the loss is not finite.
    """
    with checkpoint.Run(out, resume) as run:
        return Loop(model, batches, objective, settings, run, measure, facts or {}, Watch()).run()


class Loop:
    """One run of `fit`. Its attributes are what a step reads and what a checkpoint holds."""

    def __init__(
        self,
        model: Any,
        batches: Batches | Iterable[Batch],
        objective: Objective,
        settings: Settings,
        run: checkpoint.Run,
        measure: Measure | None,
        facts: dict[str, Any],
        watch: Watch,
        world: World | None = None,
    ):
        self.model, self.objective, self.settings, self.folder, self.measure = model, objective, settings, run, measure
        self.world = world or World()
        self.batches: Batches = batches if callable(batches) else Numbered(batches)
        self.facts, self.watch = json.loads(json.dumps(facts)), watch
        for p in model.parameters():
            if p.data_ptr() % 64:  # a view into a file; sums over unaligned memory may round differently
                p.data = p.data.clone()
        self.forward = self.world.prepare(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device if self.parameters else torch.device("cpu")
        self.optimizer = optim.adamw(model, settings.lr, settings.betas, settings.weight_decay)
        self.step, self.saved, self.loss = 0, -1, math.nan
        self.best: dict[str, Any] | None = None
        self.held_out: float | None = None
        checkpoint.seed_all(settings.seed)
        if run.checkpoint is not None:
            self._restore(run.checkpoint)
        self.log = Log(run.folder, self.step)

    def run(self) -> Done:
        """Trains until the last step or a signal. A checkpoint is written before an evaluation, never after."""
        s, began = self.settings, math.nan
        rows: list[dict[str, Any]] = []
        self.model.train()
        with Interrupts() as interrupts, self.log:
            while True:
                last = self.step >= s.steps or self.world.any(interrupts.came)
                if last or any(_due(self.step, every) for every in (s.save_every, s.eval_every, s.log_every)):
                    self._report(rows, time.perf_counter() - began)
                    rows = []
                if (last or _due(self.step, s.save_every)) and self.saved != self.step:
                    self._save()
                if self.measure and (_due(self.step, s.eval_every) or self.step >= s.steps):
                    self._evaluate()
                if last:
                    break
                began = began if rows else time.perf_counter()  # saving and evaluating do not count
                rows.append(self.advance())
        last_one = self.folder.folder / f"step-{self.step:06d}"
        return Done(last_one, self.step, self.loss, self.held_out, self.step < s.steps)

    def advance(self) -> dict[str, Any]:
        """One step: gradients over `accumulate` batches, clipped; one update. Nothing here waits for a GPU."""
        s = self.settings
        batches = [self.world.share(self.batches(self.step * s.accumulate + i)) for i in range(s.accumulate)]
        if self.step in (0, self.saved):
            for batch in batches:
                _check(batch)
        kinds = getattr(self.objective, "counted", counted)  # one number, or one for each kind of label
        counts = torch.stack([kinds(batch["labels"]) for batch in batches]).sum(0)
        real = [real_tokens(batch) for batch in batches]
        total = self.world.total(torch.cat((counts.flatten(), torch.tensor([sum(real)])))).clamp(min=1)
        count: Any = int(total[0]) if len(total) == 2 else total[:-1].to(self.device)
        loss = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            inputs = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
            labels = inputs.pop("labels")
            with self.world.exchanging(last=i == s.accumulate - 1):
                output = self.forward(**inputs)
                part = with_auxiliary(self.objective(output, labels, count), output, real[i] / int(total[-1]))
                self.world.backward(part)
            loss += part.detach()
        loss, norm = self.world.total(loss), self.world.clip(self.parameters, s.clip)
        if s.schedule == "inverse_sqrt":
            lr = inverse_sqrt(self.step, s.lr, s.warmup)
        else:
            lr = warmup_cosine(self.step, s.steps, s.lr, s.warmup, s.final_lr * s.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        row = {"step": self.step, "loss": loss, "lr": lr, "grad_norm": norm, "tokens": int(total[0])}
        return {**row, **figures(output)}

    def _report(self, rows: list[dict[str, Any]], seconds: float) -> None:
        """Writes down the steps since the last report; here, and only here, a GPU is waited for."""
        if not rows:
            return
        rows = [{k: float(v) if isinstance(v, torch.Tensor) else v for k, v in row.items()} for row in rows]
        speed = sum(row["tokens"] for row in rows) / seconds
        self.log.add([{**row, "tokens_per_second": round(speed, 1)} for row in rows])
        self.loss = rows[-1]["loss"]
        self.watch.steps(rows[-1], speed, self.settings.steps)
        for row in rows:
            if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
                kept = checkpoint.latest(self.folder.folder) or "none"
                raise FloatingPointError(
                    f"step {row['step']}: loss {row['loss']}, gradient norm {row['grad_norm']}; nothing was saved from "
                    f"there on. Last good checkpoint: {kept}. A lower lr or a longer warmup may help"
                )

    @torch.no_grad()
    def _evaluate(self) -> None:
        assert self.measure is not None
        self.model.eval()
        self.held_out = float(self.measure(self.model))
        self.model.train()
        if self.best is None or self.held_out < self.best["held_out"]:
            self.best = {"step": self.step, "held_out": self.held_out}
        self.log.add([{"step": self.step, "held_out": self.held_out}])
        self.watch.evaluated(self.step, self.held_out)

    def _save(self) -> None:
        moments = self.world.whole(optim.moments(self.optimizer, self.model))
        tensors = {f"optimizer.{k}": v for k, v in moments.items()}
        tensors |= {f"random.{k}": v for k, v in checkpoint.random_states().items()}
        settings = dataclasses.asdict(self.settings)
        facts = {"settings": settings, "facts": self.facts, "best": self.best, "torch": torch.__version__}
        best = self.best["step"] if self.best else None
        self.folder.save(self.step, self.model, tensors, facts, self.settings.keep_last, best)
        self.saved = self.step

    def _restore(self, folder: Path) -> None:
        said, tensors = checkpoint.read(folder)
        ours = json.loads(json.dumps({**dataclasses.asdict(self.settings), **self.facts}))
        theirs = {**said["settings"], **said["facts"]}
        differs = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k) and k not in FREE]
        if differs:
            told = "; ".join(f"{k} was {theirs.get(k)!r} and is now {ours.get(k)!r}" for k in differs[:4])
            raise ValueError(
                f"cannot go on from {folder}: {told}. A command repeats a run's options with --config …/config.yaml"
            )
        checkpoint.restore_weights(self.model, folder)
        state = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
        optim.restore_moments(self.optimizer, self.model, state)
        checkpoint.restore_random({k.removeprefix("random."): v for k, v in tensors.items() if k.startswith("random.")})
        self.step, self.best = said["step"], said["best"]
        self.saved = self.step if folder.parent.resolve() == self.folder.folder.resolve() else -1


class Interrupts:
    """SIGINT and SIGTERM become a flag, so that a step and a save are finished first; a second one acts as usual."""

    def __init__(self) -> None:
        self.came = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # only there does Python deliver signals
            self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _note(self, number: int, frame: Any) -> None:
        self.came = True
        self.__exit__()


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check(batch: Batch) -> None:
    """Two mistakes that train without complaint, and one that does not."""
    if "labels" not in batch:
        raise ValueError(
            f"a batch needs labels, and has {', '.join(batch)}; for a causal model: objectives.next_tokens(input_ids)"
        )
    labels, ids = batch["labels"], batch.get("decoder_input_ids", batch.get("input_ids"))
    seen = labels != -100
    if ids is not None and ids.shape == labels.shape and bool(seen.any()) and torch.equal(ids[seen], labels[seen]):
        raise ValueError(
            "the labels are the inputs themselves: a model would learn to copy. A label stands where it is to be read; "
            "for a causal model it is the next token: objectives.next_tokens(input_ids, attention_mask)"
        )
