"""What decides how a model is trained, in one immutable object."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from anyformer.core.part import check_option
from anyformer.hub.formats.guard import read_json
from anyformer.train.precision import PRECISIONS
from anyformer.train.schedule import SCHEDULES

OPTIMIZERS = ("adamw", "muon")
FREE = {"steps", "save_every", "eval_every", "log_every", "keep_last", "patience", "statistics_every"}


@dataclass(frozen=True)
class Settings:
    """How a model is trained. Stored with each checkpoint; a run that resumes must have the same ones, but for `FREE`.

    Args:
        steps: updates of the weights.
        lr: the highest learning rate. `warmup`: steps until it is reached. `final_lr`: where it ends, as a share of
            `lr`. `schedule`: how it goes there: cosine, linear, wsd, inverse_sqrt, constant (`train.schedule`).
        optimizer: adamw, or muon: Muon for the matrices inside the model, AdamW for all else (`train.optim`).
        weight_decay: of matrices, see `optim.groups`. `betas`: of AdamW.
        rates: factors of the learning rate by path pattern of parameters, `{"embed.**": 0.1}`; muP is made of them.
        clip: longest gradient, as a norm over all parameters; inf switches clipping off.
        accumulate: batches that make one step.
        ema: share of the old value in a running mean of the weights (0.999), which is then what is evaluated, and is
            saved beside the model, in `step-…/ema`; 0 = no mean.
        patience: evaluations without a better one after which the run ends; 0 = never. Saves at each evaluation.
        precision: fp32; bf16 or fp16: products in half precision, weights and optimiser in float32. fp16 scales the
            loss; a step that overflows changes nothing and is reported.
        recompute: path patterns of the modules whose activations are made again in backward, `("blocks.*",)`.
        compile: run through torch.compile.
        seed: of the random generators of PyTorch, NumPy and Python: of dropout, and of batches that draw.
        save_every, eval_every: steps between checkpoints and between evaluations; 0 = only at the end.
        log_every: steps between lines on the screen; the log files have every step.
        keep_last: checkpoints that are kept, beside the best one.
        statistics_every: steps between rows of statistics.jsonl: sizes of activations and gradients of every part.

    Raises:
        ValueError: for a value out of range, an unknown name, or options that contradict each other.
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
    optimizer: str = "adamw"
    schedule: str = "cosine"
    rates: dict[str, float] = field(default_factory=dict)
    ema: float = 0.0
    patience: int = 0
    precision: str = "fp32"
    recompute: tuple[str, ...] = ()
    compile: bool = False
    statistics_every: int = 0

    def __post_init__(self) -> None:
        whole = dict.fromkeys(("steps", "accumulate", "log_every", "keep_last"), 1)
        whole |= dict.fromkeys(("warmup", "seed", "save_every", "eval_every", "patience", "statistics_every"), 0)
        for name, least in {**whole, "final_lr": 0, "weight_decay": 0}.items():
            _at_least(name, getattr(self, name), least)
        for name in whole:
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        for name, value in {"lr": self.lr, "clip": self.clip, **self.rates}.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("lr", "weight_decay"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)}")
        if self.final_lr > 1:
            raise ValueError(f"final_lr is a share of lr, at most 1, got {self.final_lr}")
        for name, value in {"ema": self.ema, "betas[0]": self.betas[0], "betas[1]": self.betas[1]}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
        for name, known in {"optimizer": OPTIMIZERS, "schedule": tuple(SCHEDULES), "precision": PRECISIONS}.items():
            check_option("Settings", name, getattr(self, name), known)
        if self.patience and not self.eval_every:
            raise ValueError(f"patience={self.patience} counts evaluations, and eval_every=0 makes none before the end")
        if self.compile and self.statistics_every:
            raise ValueError("statistics_every listens to every part, which compile=True melts into one; choose one")


def warmup_of(given: int | None, steps: int, checkpoint: Path | None) -> int:
    """The steps of warm-up: those that are `given`; else what a run that goes on began with; else a tenth of all, at
    most 100."""
    if given is None and checkpoint is not None:
        return int(read_json(checkpoint / "training.json")["settings"]["warmup"])
    return min(100, steps // 10) if given is None else given


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
