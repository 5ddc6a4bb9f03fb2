"""The wish of a user of a design: the budget, and how to spend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anyformer.edge import artefact, targets
from anyformer.edge.targets import Target


@dataclass(frozen=True)
class Wish:
    """The budget, and how to spend it.

    Attributes:
        task, metric: a file of rows, and what counts. model, of: a page and its size, whose paths are searched.
        size: bytes of the artefact, tokenizer and script included. latency: milliseconds of one text, or piece of
            running text, of `tokens`, one picture of `side` x `side` pixels (None: as the first), or one sound of
            `seconds` (None: as the longest). memory: bytes that the loaded model may add to a process; None is any.
        hours: of computing, all but the table of the device and the export of the best. teacher: a loaded model, or
            None; more: pieces of each text that it reads besides. values: of the space, see `edge.space`. trials: of
            the search, at most. test: rows that are looked at once; None: a tenth of the task's. coverage: the least
            share of the numbers of matrices in few bits, or of the products that a delegate takes. products: float32,
            or int8: tried on the written file.
    """

    task: str
    metric: str
    size: int
    latency: float
    memory: int | None = None
    target: str = "onnx"
    threads: int = 1
    tokens: int = 64
    side: int | None = None
    hours: float = 0.5
    model: str = "bert"
    of: str = "mini"
    teacher: str | None = None
    more: int = 4
    values: Mapping[str, Sequence[Any]] | None = None
    trials: int = 200
    seed: int = 0
    seconds: int | None = None
    test: str | None = None
    coverage: float = artefact.COVERED
    products: str = "float32"

    def runtime(self) -> Target:
        """The target that it names."""
        return targets.find(self.target)(self.threads, self.tokens, self.products, self.coverage)

    def check(self) -> None:
        """Raises ValueError for what cannot be wished for, ImportError for a package that is missing."""
        for name in ("size", "latency", "hours", "tokens", "side", "seconds", "threads", "trials", "memory"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be above 0, got {value:g}")
        if not 0 <= self.coverage <= 1:
            raise ValueError(f"--coverage is a share from 0 to 1, got {self.coverage:g}")
        if self.more < 0:
            raise ValueError(f"--more must be at least 0, got {self.more}")
        target = targets.find(self.target)
        if target.alone and self.metric != target.alone[0]:
            raise ValueError(f"--target {self.target}: --metric {self.metric}: {target.alone[1]}")
        target.check(self.products)
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise ImportError(f'the search needs optuna ({error}): pip install "anyformer[edge]"') from error
