"""Continuous batching for one model: texts join and leave at any token.

```
waiting ── prompt, a chunk at a time ──┬── one batch of all texts       ── a token of each ──> pieces
                                       └── or a batch for each request  ── in turns
```
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyformer.generate.decoding import Rows
from anyformer.serve.jobs import Failed, Read, Write
from anyformer.serve.limits import Limits
from anyformer.serve.metrics import Metrics
from anyformer.serve.prefixes import Prefixes
from anyformer.serve.texts import Piece, Text, Token, logs

if TYPE_CHECKING:
    from anyformer.serve.engine import Queue

ROOM = 256  # new tokens for which memory is reserved at once; it grows when they are used


class Row:
    """A place in a batch: a text, the job that it belongs to, and its number there."""

    def __init__(self, job: Write, number: int, text: Text):
        self.job, self.number, self.text = job, number, text

    def give(self, piece: Piece) -> None:
        if piece.text or piece.tokens or piece.end:
            self.job.emit(self.number, piece)


class Reading:
    """Prompts that are being read: one of any length, or several short ones at once.

    Jobs whose options make no sense are told, and are not among `jobs`.
    """

    def __init__(self, model: Any, jobs: list[Write], name: str, prefixes: Prefixes, chunk: int):
        self.name, self.prefixes = name, prefixes
        self.jobs: list[Write] = []
        self.texts: list[list[Text]] = []  # of each job
        self.run, left = _rows(model, jobs), []
        for row, job in enumerate(jobs):  # every rule and option is checked before anything is computed
            before = None if model.reads_source else job.ids[-1]
            try:
                self.texts.append([Text(self.run, row, before, options, job.top) for options in job.options])
            except ValueError as error:
                _fail([job], error)
            else:
                self.jobs.append(job)
                left.append(row)
        if left:
            self.run.reorder(left)
        self.shares = prefixes.limit > 0 and len(jobs) == 1 and not jobs[0].echo and self.run.unread > chunk
        self.found = 0  # tokens whose state was known
        if self.shares and (fresh := self.run.state) is not None:
            known = prefixes.find(model, name, jobs[0].owner, jobs[0].ids, chunk, fresh)
            self.run.state, self.found = known or fresh, 0 if known is None else known.length
        self.tokens: list[Token] = [Token(jobs[0].ids[0])] if jobs[0].echo else []
        self.scores: Tensor | None = None  # (B, V) when all is read

    def step(self, chunk: int) -> bool:
        """Reads the next tokens; true if all are read."""
        job = self.jobs[0]
        if self.run.unread > (0 if job.echo else chunk):
            at = 0 if self.run.state is None else self.run.state.length
            scores = self.run.read(chunk)[0]  # (T, V)
            if job.echo:
                self.tokens += logs(scores, job.ids[at + 1 : at + 1 + len(scores)], job.top)
            if self.shares and self.run.unread <= chunk and (state := self.run.state) is not None:
                self.prefixes.keep(self.run.model, self.name, job.owner, job.ids[: state.length], state)
            return False
        if job.options:
            self.scores = self.run.scores()
        return True


class Batch:
    """The texts of one model that are being written.

    Args:
        exact: a batch for each request: its texts are bit for bit those that it gets alone.
        prefixes: beginnings of prompts that have been read.
    """

    def __init__(self, model: Any, limits: Limits, exact: bool, metrics: Metrics, name: str, prefixes: Prefixes):
        self.prefixes = prefixes
        self.model, self.limits, self.exact, self.metrics, self.name = model, limits, exact, metrics, name
        self.joins = not exact and _joins(model)
        self.reading: Reading | None = None
        self.groups: list[tuple[Rows, list[Row]]] = []

    @property
    def rows(self) -> int:
        """The number of places taken; any thread may ask."""
        reading = self.reading
        waiting = 0 if reading is None else sum(map(_places, reading.jobs))
        return waiting + sum(len(rows) for _, rows in self.groups)

    def bytes(self) -> int:
        """Memory of the states."""
        return sum(run.state.bytes() for run, _ in self.groups if run.state is not None)

    def take(self, queue: Queue) -> list[Write]:
        """The jobs that can begin now: the first one, and with a short prompt others behind it that fit in a chunk."""
        jobs: list[Write] = []
        while self.reading is None and isinstance(job := queue.peek(), Write):
            taken = self.rows + sum(map(_places, jobs))
            if taken + _places(job) > max(self.limits.rows, 0 if jobs else _places(job)):
                break
            together = [*jobs, job]
            if jobs and not (
                all(map(self._short, together)) and sum(len(j.ids) for j in together) <= self.limits.chunk
            ):
                break
            queue.take()
            jobs.append(job)
        return jobs

    def _short(self, job: Write) -> bool:
        """True if the prompt can be read together with others."""
        return self.joins and not job.media and not job.echo and bool(job.options)

    def begin(self, jobs: list[Write]) -> None:
        """Begins to read prompts."""
        if self._guarded(jobs, lambda: self._begin(jobs)):
            self.reading = self.reading if self.reading is not None and self.reading.jobs else None

    def _begin(self, jobs: list[Write]) -> None:
        self.reading = Reading(self.model, jobs, self.name, self.prefixes, self.limits.chunk)
        self.metrics.add("prefix_tokens_total", self.reading.found, model=self.name)

    def step(self) -> bool:
        """A chunk of a prompt and a token of each text; false if there is nothing to do."""
        if self.reading is None and not self.groups:
            return False
        self._leave()
        if (reading := self.reading) is not None:
            self._guarded(reading.jobs, lambda: self._read(reading))
        for group in list(self.groups):
            run, rows = group
            if not self._guarded(list({row.job for row in rows}), lambda r=run, p=rows: self._write(r, p)):  # type: ignore[misc]
                self.groups.remove(group)
        self._leave()
        return True

    def _read(self, reading: Reading) -> None:
        if reading.step(self.limits.chunk):
            self._admit(reading)
            self.reading = None  # not before: `rows` counts each place all the while

    def _admit(self, reading: Reading) -> None:
        """The first tokens of texts whose prompts are read; those that go on join a group."""
        run = reading.run
        rows, tokens, index = list[Row](), list[int](), list[int]()
        for place, job in enumerate(reading.jobs):
            self.metrics.add("prompt_tokens_total", len(job.ids), model=self.name)
            if job.echo or not job.options:
                job.emit(job.first, Read(reading.tokens))
            if reading.scores is None:
                continue
            for number, text in enumerate(reading.texts[place]):
                row = Row(job, job.first + number, text)
                token = self._one(row, reading.scores[place : place + 1])
                if not text.ended and not job.cancelled:
                    rows.append(row)
                    tokens.append(token)
                    index.append(place)
            self.metrics.first(job.born, self.name)
        if not rows:
            return
        run.reorder(index)
        run.append(torch.tensor(tokens, device=run.device)[:, None])
        shared = next((group for group in self.groups if self.joins and group[0].state is not None), None)
        if shared is not None and run.state is not None:
            shared[0].join(run)
            shared[1].extend(rows)
        else:
            self.groups.append((run, rows))

    def _write(self, run: Rows, rows: list[Row]) -> None:
        scores = run.scores()  # (B, V)
        tokens = [self._one(row, scores[place : place + 1]) for place, row in enumerate(rows)]
        self.metrics.add("steps_total", 1, model=self.name)
        run.append(torch.tensor(tokens, device=run.device)[:, None])

    def _one(self, row: Row, scores: Tensor) -> int:
        """The next token of a text, whose piece is given; an error is of this text alone."""
        try:
            token, piece = row.text.take(scores)
        except ValueError as error:
            _fail([row.job], error)
            return 0
        row.give(piece)
        row.text.ended = piece.end is not None
        self.metrics.add("generated_tokens_total", 1, model=self.name)
        return token

    def _leave(self) -> None:
        """Takes out texts that have ended, or are late, or that nobody waits for."""
        if self.reading is not None and (gone := [j for j in self.reading.jobs if j.cancelled or j.late]):
            _fail([job for job in gone if not job.cancelled], TimeoutError())
            if len(self.reading.jobs) == 1:  # of several short ones the others are read in a moment
                self.reading = None
        for run, rows in self.groups:
            for row in rows:
                if row.job.late and not row.text.ended and not row.job.cancelled:
                    row.give(row.text.close("length"))
                    row.text.ended = True
            left = [i for i, row in enumerate(rows) if not row.text.ended and not row.job.cancelled]
            if left and len(left) < len(rows):
                run.leave(left)
            rows[:] = [rows[i] for i in left]
        self.groups = [group for group in self.groups if group[1]]

    def _guarded(self, jobs: list[Write], work: Callable[[], Any]) -> bool:
        """False if the work failed; then its jobs have been told."""
        try:
            work()
            return True
        except Exception as error:
            if self.reading is not None and set(self.reading.jobs) & set(jobs):
                self.reading = None
            _fail(jobs, error)
            return False

    def stop(self, error: Exception) -> None:
        """Ends all texts with an error."""
        jobs = {row.job for _, rows in self.groups for row in rows}
        _fail([*jobs, *(self.reading.jobs if self.reading is not None else ())], error)
        self.groups, self.reading = [], None


def _fail(jobs: list[Write], error: Exception) -> None:
    """Tells jobs that they have failed; nobody works on them any more."""
    for job in jobs:
        job.emit(job.first, Failed(error))
        job.cancelled = True


def _places(job: Write) -> int:
    """The places that the texts of a job take."""
    return max(1, len(job.options))


def _joins(model: Any) -> bool:
    """True if rows of the model's state can join others."""
    try:
        return bool(model.generates and model.start(1, 2).joins)
    except ValueError:  # a part that cannot decode step by step
        return False


def _rows(model: Any, jobs: list[Write]) -> Rows:
    """The prompts in a batch; a model whose parts cannot decode step by step reads all for each token."""
    room = min(ROOM, max((options.max_new_tokens for job in jobs for options in job.options), default=0))
    prompts, media = [job.ids for job in jobs], jobs[0].media
    try:
        return Rows(model, prompts, room, True, media)
    except ValueError:
        return Rows(model, prompts, room, False, media)
