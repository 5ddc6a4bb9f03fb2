"""Options of `federate`: the parameters of the function and of the command, written once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from anyformer.train.options import FinetuneOptions
from anyformer.train.schedule import SCHEDULES
from anyformer.train.settings import whole_number

SHARED = (
    "model", "method", "task", "fields", "overrides", "ignore", "tokenizer", "context", "held_out", "targets", "rank",
    "alpha", "dropout", "trainable", "batch", "lr", "weight_decay", "grad_clip", "seed", "device", "cache",
)  # fmt: skip
FREE = ("out", "resume", "processes", "timeout", "tls", "device", "quiet", "cache", "drop", "blind", "clients")


@dataclass(frozen=True, kw_only=True)
class FederateOptions:
    """The options of `federate`.

    Args:
        model: real weights by name (minilm …), a model directory, a .gguf file, or a hub id; each client reads it.
        clients: a folder; each file or folder in it is a client with its examples, as `finetune` reads them.
        rounds: meetings of the clients.
        method: full: every weight is trained; lora, dora, qlora: adapters, and alone they travel.
        out: the folder of the run.
        local_steps: updates of a client in a round; by default one pass over its examples.
        optimizer: of a client, new in each round: adamw, or sgd without momentum.
        lr: the highest learning rate of a client; 5e-5 for full, 5e-4 for adapters.
        schedule: of lr over the rounds: cosine, linear, wsd, inverse_sqrt or constant.
        batch: examples in a batch.
        weight_decay: of matrices.
        grad_clip: the largest norm of a gradient in a local step; inf switches clipping off.
        sample: probability that a client is in a round, independently of the others.
        secure: the server sees sums alone; needs the package cryptography.
        threshold: clients that a secure round needs; by default more than half of those drawn.
        bits: of a number in a secure sum.
        limit: the largest number in a secure sum, of updates times their weights; with epsilon it is clip.
        epsilon: differential privacy of whole clients at the end of the run.
        delta: of that guarantee.
        clip: the largest length of an update; 1 with epsilon, else none.
        drop: probability that a client leaves a round on purpose, at any of its stages, to try that.
        task: see `train.tasks.encode`; auto: inferred from the columns of the examples.
        fields: columns that have other names, e.g. --fields.text review.
        overrides: hyperparameters that differ from those of its files: --overrides.task none reads them without head.
        ignore: keys of the files of a model directory that are read as if they were absent.
        tokenizer: a folder with one, where the model has none.
        context: tokens of an example; by default the context of the model, at most 512.
        held_out: share of each client's examples to measure on and never to train on.
        targets: paths of the layers that get adapters; by default every layer of every block.
        rank: of the adapters, 8 by default.
        alpha: adapters are scaled by alpha / rank; 16 by default.
        dropout: on the input of the adapters, 0 by default.
        trainable: paths of parameters that are trained in full, beside adapters or alone.
        seed: of a new head, adapters, orders, samples without epsilon.
        processes: of clients, one for each by default; with fewer, each runs several clients.
        timeout: seconds after which a client that does not answer is gone.
        tls: connections are encrypted; needs the package cryptography.
        blind: clients send no measures, losses, and shares of what was clipped.
        resume: false; true: go on behind the last round in out; auto: go on if there is one.
        device: cpu, cuda …; by default a GPU if there is one.
        cache: the folder of encoded examples; by default in the user's cache.
        quiet: print nothing.

    Raises:
        ValueError: for a value out of range, or options that contradict each other.
    """

    model: str = field(kw_only=False)
    clients: str | Path
    rounds: int = 10
    method: Literal["full", "lora", "dora", "qlora"] = "lora"
    out: str | Path = "runs/federated"
    local_steps: int | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | None = None
    schedule: str = "cosine"
    batch: int = 16
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    sample: float = 1.0
    secure: bool = False
    threshold: int | None = None
    bits: int = 24
    limit: float = 1.0
    epsilon: float | None = None
    delta: float = 1e-5
    clip: float | None = None
    drop: float = 0.0
    task: str = "auto"
    fields: dict[str, str] | None = None
    overrides: dict[str, Any] | None = None
    ignore: list[str] = field(default_factory=list)
    tokenizer: str | None = None
    context: int | None = None
    held_out: float = 0.1
    targets: list[str] | None = None
    rank: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    trainable: list[str] | None = None
    seed: int = 0
    processes: int | None = None
    timeout: float = 600.0
    tls: bool = False
    blind: bool = False
    resume: bool | str = False
    device: str | None = None
    cache: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("rounds", "local_steps", "threshold", "processes"):
            if (value := getattr(self, name)) is not None:
                whole_number(name, value, 1)
        for name in ("epsilon", "clip", "timeout", "limit"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        for name, value, least in (("sample", self.sample, 1e-6), ("drop", self.drop, 0.0)):
            if not least <= value <= 1:
                raise ValueError(f"{name} is a probability, got {value}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {self.schedule!r}")
        if self.threshold is not None and not self.secure:
            raise ValueError(f"threshold={self.threshold} is of secure sums; add --secure")
        if self.epsilon is not None and self.clip is None:
            object.__setattr__(self, "clip", 1.0)
        self.of("x")  # checks what finetune shares

    def of(self, data: str | Path) -> FinetuneOptions:
        """The options of one client for the functions of `finetune`."""
        return FinetuneOptions(data=data, **{name: getattr(self, name) for name in SHARED})  # type: ignore[arg-type]
