"""Settings of the training loop: optimiser, schedule, precision, checkpoints, in one immutable object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from anyformer.core.part import check_option
from anyformer.parts.quantised import BITS
from anyformer.train import renamed
from anyformer.train.precision import PRECISIONS
from anyformer.train.schedule import SCHEDULES

CHOICES = {
    "optimizer": ("adamw", "muon"),
    "schedule": tuple(SCHEDULES),
    "precision": PRECISIONS,
    "chunked_loss": ("auto", "on", "off"),
}
FREE = {"steps", "save_every", "eval_every", "log_every", "keep_last", "patience", "statistics_every"}


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """The settings that `Settings`, `train` and `finetune` share.

    Args:
        min_lr_ratio: the learning rate at the end of the schedule, as a share of lr.
        weight_decay: of matrices; biases, norms and embeddings do not decay.
        betas: of AdamW.
        grad_clip: the largest norm of the gradient over all parameters; inf switches clipping off.
        accumulate: batches in one step.
        seed: of first weights, the order of the data, dropout, and batches that are drawn.
        save_every: steps between checkpoints; 0 = only at the end.
        eval_every: steps between evaluations; 0 = only at the end.
        log_every: steps between updates of the display; the log files have every step.
        keep_last: number of checkpoints that are kept, beside the best one.
        optimizer: adamw, or muon: Muon for the matrices inside the model, AdamW for all other parameters.
        schedule: cosine, linear, wsd, inverse_sqrt or constant, see `train.schedule`.
        lr_multipliers: factors of the learning rate by path pattern of parameters, e.g. {"embed.**": 0.1}.
        ema: decay of a running mean of the weights, e.g. 0.999, which is then evaluated and saved in ema/; 0 = none.
        patience: evaluations without improvement after which the run ends; 0 = never.
        precision: fp32; bf16 or fp16 (with a scaled loss): products in half precision, weights in float32.
        aware: 8, 4 or 3: each step computes with matrices of so many bits, as `anyformer compress` will round them, and
            learns the full ones; 0 = none.
        activation_checkpointing: path patterns of modules whose activations are computed again in the backward pass,
            e.g. blocks.*
        compile: run through torch.compile; what it gains is measured and told before the first step.
        chunked_loss: on: the logits of tokens are made and scored some rows at a time, which takes less memory; off; or
            auto: from 64 MB of logits on, where nothing else stands against it.
        statistics_every: steps between rows of statistics.jsonl: RMS of activations and gradients; 0 = none.

    Raises:
        ValueError: for a value out of range, an unknown name, or settings that contradict each other.
    """

    min_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    accumulate: int = 1
    seed: int = 0
    save_every: int = 0
    eval_every: int = 0
    log_every: int = 10
    keep_last: int = 2
    optimizer: str = "adamw"
    schedule: str = "cosine"
    lr_multipliers: dict[str, float] = field(default_factory=dict)
    ema: float = 0.0
    patience: int = 0
    precision: str = "fp32"
    aware: int = 0
    activation_checkpointing: Sequence[str] = ()
    compile: bool = False
    chunked_loss: str = "auto"
    statistics_every: int = 0

    if not TYPE_CHECKING:

        def __new__(cls, *values: Any, **options: Any) -> Any:
            renamed.refuse(options)
            return super().__new__(cls)

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation_checkpointing", tuple(self.activation_checkpointing or ()))
        object.__setattr__(self, "lr_multipliers", dict(self.lr_multipliers or {}))
        for name in ("accumulate", "log_every", "keep_last"):
            whole_number(name, getattr(self, name), 1)
        for name in ("seed", "save_every", "eval_every", "patience", "statistics_every"):
            whole_number(name, getattr(self, name), 0)
        for name in ("min_lr_ratio", "weight_decay"):
            _at_least(name, getattr(self, name), 0)
        for name, value in {"grad_clip": self.grad_clip, **self.lr_multipliers}.items():
            _above_zero(name, value)
        finite("weight_decay", self.weight_decay)
        if self.min_lr_ratio > 1:
            raise ValueError(f"min_lr_ratio is a share of lr, at most 1, got {self.min_lr_ratio}")
        for name, value in {"ema": self.ema, "betas[0]": self.betas[0], "betas[1]": self.betas[1]}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
        for name, known in CHOICES.items():
            check_option("Settings", name, getattr(self, name), known)
        if self.aware not in (0, *BITS):
            raise ValueError(f"aware must be 0 or bits of a matrix, {', '.join(map(str, BITS))}, got {self.aware!r}")
        if self.patience and not self.eval_every:
            raise ValueError(f"patience={self.patience} counts evaluations, and eval_every=0 has none before the end")
        for name in ("compile", "statistics_every") if self.chunked_loss == "on" else ():
            if getattr(self, name):
                raise ValueError(f"chunked_loss='on' takes the product out of the head, and {name} needs it there")
        if self.compile and self.statistics_every:
            raise ValueError("statistics_every hooks every module, and compile=True fuses them; choose one")

    def settings(self, steps: int, lr: float, warmup: int, multipliers: Mapping[str, float] | None = None) -> Settings:
        """The settings of the loop, with the values that depend on model and data.

        Args:
            multipliers: of the learning rate; `lr_multipliers` take precedence.
        """
        common = {f.name: getattr(self, f.name) for f in fields(CommonSettings)}
        common["lr_multipliers"] = {**(multipliers or {}), **self.lr_multipliers}
        return Settings(steps, lr=lr, warmup=warmup, **common)


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Settings of the training loop, stored with each checkpoint; a run resumes with the same ones, except for `FREE`.

    Args:
        steps: updates of the weights.
        lr: the highest learning rate.
        warmup: steps until it is reached.
    """

    steps: int
    lr: float = field(default=1e-3, kw_only=True)
    warmup: int = field(default=100, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("steps", self.steps, 1)
        whole_number("warmup", self.warmup, 0)
        _above_zero("lr", self.lr)
        finite("lr", self.lr)


def whole_number(name: str, value: float, least: int) -> None:
    """Raises ValueError for a number that is not whole, or below `least`."""
    _at_least(name, value, least)
    if not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, got {value!r}")


def finite(name: str, value: float) -> None:
    """Raises ValueError for infinity and NaN."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
