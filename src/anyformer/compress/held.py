"""Real inputs for a model: one half to calibrate with, the other, which no method sees, to compare on.

Text is a file of the user's or Python's own documentation (`pydoc_data.topics`, 0.7 MB of English in every CPython),
cut into windows; the first half calibrates. A model without a tokenizer gets random inputs, and every figure says so.

B rows, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.hub.formats.guard import read_bytes

LENGTH = 128  # tokens of a window
ROWS = 4  # windows of a batch
BATCHES = 8  # of each half, at most
LEAST = 4  # windows of a text
HIDDEN = 0.15  # the share of tokens that a masked language model guesses
SENTENCE = (80, 600)  # letters of a text that becomes one vector
MOST = 1 << 28  # bytes of a file

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Held:
    """Inputs of a model.

    Attributes:
        calibrate, compare: batches of the two halves. targets: of `compare`, the ids that the scores predict, -100
            elsewhere; empty without. texts: of the second half, for models that make vectors. real: False if random.
    """

    calibrate: list[Inputs]
    compare: list[Inputs]
    targets: list[Tensor]
    real: bool
    source: str
    texts: list[str] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    named: Callable[[Tensor], Inputs] = dict  # rows of ids as inputs

    def draws(self, seed: int) -> Iterator[Inputs]:
        """Batches of windows from random places of the first half, without end; of random inputs, those of `calibrate`
        again and again."""
        noise = random.Random(seed)
        while True:
            if not self.first:
                yield from self.calibrate
                continue
            length = next(iter(self.calibrate[0].values())).shape[1]
            places = [noise.randrange(len(self.first) - length + 1) for _ in range(ROWS)]
            yield self.named(torch.tensor([self.first[at : at + length] for at in places]))


def inputs_of(model: Any, file: str | Path | None = None) -> Held:
    """The inputs of a model.

    Args:
        file: a text; by default Python's documentation.

    Raises:
        ValueError: for a file that holds too little text, or a model that reads none. OSError.
    """
    if model.tokenizer is None or not model.reads_text:
        if file is not None:
            raise ValueError(
                f"--calibrate is a text, and the model {'has no tokenizer' if model.reads_text else 'reads none'}"
            )
        return _random(model)
    text = _topics() if file is None else _file(Path(file))
    length = min(LENGTH, model.context or LENGTH)
    half = len(text) // 2
    halves = [model.tokenizer.encode(part) for part in (text[:half], text[half:])]
    if any(len(ids) < LEAST * length for ids in halves):
        fewest = min(map(len, halves))
        raise ValueError(
            f"{file}: each half of the text needs {LEAST} windows of {length} tokens, and one has {fewest} "
            "tokens: one half "
            "calibrates, the other compares"
        )
    first, second = (_windows(ids, length) for ids in halves)
    compare = [_hide(model, rows) for rows in second]
    texts = [p.strip() for p in text[half:].split("\n\n") if SENTENCE[0] <= len(p.strip()) <= SENTENCE[1]]
    name = "Python's documentation" if file is None else str(file)
    return Held(
        [_named(model, rows) for rows in first],
        [_named(model, rows) for rows, _ in compare],
        [targets for _, targets in compare],
        True,
        name,
        texts[:: max(1, len(texts) // 64)][:64],
        halves[0],
        lambda rows: _named(model, rows),
    )


def _topics() -> str:
    from pydoc_data.topics import topics

    names = sorted(topics)
    return "\n\n".join(topics[name] for name in names[::2] + names[1::2])  # both halves are of all kinds


def _file(path: Path) -> str:
    return read_bytes(path, MOST).decode("utf-8", "replace")


def _windows(ids: Sequence[int], length: int) -> list[Tensor]:
    """Batches of windows that lie evenly in a text, (B, T) each."""
    count = min(ROWS * BATCHES, len(ids) // length)
    apart = len(ids) // count
    rows = torch.tensor([ids[n * apart : n * apart + length] for n in range(count)])
    return list(rows.split(ROWS))


def _hide(model: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows as they are read, and the ids that the scores at each place predict."""
    if model.generates:
        return rows, torch.cat((rows[:, 1:], torch.full_like(rows[:, :1], -100)), 1)
    mask = model.tokenizer.role_id("mask_token")
    if mask is None:
        return rows, torch.full_like(rows, -100)
    hidden = torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)) < HIDDEN
    return rows.masked_fill(hidden, mask), rows.masked_fill(~hidden, -100)


def _named(model: Any, rows: Tensor) -> Inputs:
    """The inputs by their names; of two texts, source and target, both are the same."""
    entrances = [e for e in model.entrances() if e.front.vocab is not None]
    made = {e.prefix + e.front.main: rows for e in entrances}
    needed = {n for n, read in model.inputs().items() if read.required} - made.keys()
    return made if not needed else {**made, **_some(model, len(rows), needed)}


def _some(model: Any, rows: int, names: set[str]) -> Inputs:
    example = model.example(rows, {}, torch.Generator().manual_seed(0))
    return {n: v.to(model_type(model)) if v.is_floating_point() else v for n, v in example.items() if n in names}


def _random(model: Any) -> Held:
    made = []
    for seed in range(2 * BATCHES):
        example = model.example(ROWS, {}, torch.Generator().manual_seed(seed))
        made.append({n: v.to(model_type(model)) if v.is_floating_point() else v for n, v in example.items()})
    return Held(made[:BATCHES], made[BATCHES:], [], False, "random inputs")


def model_type(model: Any) -> torch.dtype:
    """The type of the model's weights."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
