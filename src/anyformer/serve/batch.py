"""Continuous batching for one model: texts join and leave at any token.

```
waiting ── prompt, a chunk at a time ──┬── one batch of all texts       ── a token of each ──> pieces
                                       └── or a batch for each request  ── in turns
```
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anyformer.generate.decoding import Rows
from anyformer.serve.jobs import Failed, Read, Write
from anyformer.serve.limits import Limits
from anyformer.serve.metrics import Metrics
from anyformer.serve.texts import Piece, Text, Token, logs

ROOM = 256  # new tokens for which memory is reserved at once; it grows when they are used


class Row:
    """A place in a batch: a text, the job that it belongs to, and its number there."""

    def __init__(self, job: Write, number: int, text: Text):
        self.job, self.number, self.text = job, number, text

    def give(self, piece: Piece) -> None:
        if piece.text or piece.tokens or piece.end:
            self.job.emit(self.number, piece)


class Reading:
    """A prompt that is being read."""

    def __init__(self, model: Any, job: Write):
        self.job = job
        self.tokens: list[Token] = [Token(job.ids[0])] if job.echo else []
        self.run = _rows(model, job)
        # every rule and option is checked before anything is computed
        before = None if model.reads_source else job.ids[-1]
        self.texts = [Text(self.run, before, options, job.top) for options in job.options]
        self.scores: Tensor | None = None  # (1, V) when all is read

    def step(self, chunk: int) -> bool:
        """Reads the next tokens; true if all are read."""
        if self.run.unread > (0 if self.job.echo else chunk):
            at = 0 if self.run.state is None else self.run.state.length
            scores = self.run.read(chunk)[0]  # (T, V)
            if self.job.echo:
                self.tokens += logs(scores, self.job.ids[at + 1 : at + 1 + len(scores)], self.job.top)
            return False
        if self.job.options:
            self.scores = self.run.scores()
        return True


class Batch:
    """The texts of one model that are being written.

    Args:
        exact: a batch for each request: its texts are bit for bit those that it gets alone.
    """

    def __init__(self, model: Any, limits: Limits, exact: bool, metrics: Metrics, name: str):
        self.model, self.limits, self.exact, self.metrics, self.name = model, limits, exact, metrics, name
        self.reading: Reading | None = None
        self.groups: list[tuple[Rows, list[Row]]] = []

    @property
    def rows(self) -> int:
        """The number of places taken."""
        waiting = 0 if self.reading is None else max(1, len(self.reading.texts))
        return waiting + sum(len(rows) for _, rows in self.groups)

    def bytes(self) -> int:
        """Memory of the states."""
        return sum(run.state.bytes() for run, _ in self.groups if run.state is not None)

    def fits(self, job: Write) -> bool:
        """True if the job can begin now."""
        return self.reading is None and self.rows + max(1, len(job.options)) <= max(self.limits.rows, len(job.options))

    def begin(self, job: Write) -> None:
        """Begins to read the prompt of a job."""
        self._guarded([job], lambda: setattr(self, "reading", Reading(self.model, job)))

    def step(self) -> bool:
        """A chunk of a prompt and a token of each text; false if there is nothing to do."""
        if self.reading is None and not self.groups:
            return False
        self._leave()
        if (reading := self.reading) is not None:
            self._guarded([reading.job], lambda: self._read(reading))
        for group in list(self.groups):
            run, rows = group
            if not self._guarded(list({row.job for row in rows}), lambda r=run, p=rows: self._write(r, p)):  # type: ignore[misc]
                self.groups.remove(group)
        self._leave()
        return True

    def _read(self, reading: Reading) -> None:
        if not reading.step(self.limits.chunk):
            return
        self.reading, job, run = None, reading.job, reading.run
        self.metrics.add("prompt_tokens_total", len(job.ids), model=self.name)
        if job.echo or not job.options:
            job.emit(job.first, Read(reading.tokens))
        if reading.scores is None:
            return
        rows, tokens = [], []
        for number, text in enumerate(reading.texts):
            row = Row(job, job.first + number, text)
            token, piece = text.take(reading.scores)
            row.give(piece)
            self.metrics.add("generated_tokens_total", 1, model=self.name)
            if piece.end is None:
                rows.append(row)
                tokens.append(token)
        self.metrics.first(job.born, self.name)
        if not rows:
            return
        if len(rows) > 1:
            run.reorder([0] * len(rows))
        run.append(torch.tensor(tokens, device=run.device)[:, None])
        joins = not self.exact and run.state is not None and run.state.joins
        if joins and self.groups:
            self.groups[0][0].join(run)
            self.groups[0][1].extend(rows)
        else:
            self.groups.append((run, rows))

    def _write(self, run: Rows, rows: list[Row]) -> None:
        scores, tokens = run.scores(), []  # (B, V)
        for place, row in enumerate(rows):
            try:
                token, piece = row.text.take(scores[place : place + 1])
            except ValueError as error:  # of one text; the others go on
                self._fail([row.job], error)
                token, piece = 0, Piece("")
            tokens.append(token)
            row.give(piece)
            row.text.ended = piece.end is not None
        self.metrics.add("generated_tokens_total", len(tokens), model=self.name)
        self.metrics.add("steps_total", 1, model=self.name)
        run.append(torch.tensor(tokens, device=run.device)[:, None])

    def _leave(self) -> None:
        """Takes out texts that have ended, or are late, or that nobody waits for."""
        if self.reading is not None and (self.reading.job.cancelled or self.reading.job.late):
            self._late(self.reading.job)
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

    def _late(self, job: Write) -> None:
        job.emit(job.first, Failed(TimeoutError()))

    def _guarded(self, jobs: list[Write], work: Callable[[], Any]) -> bool:
        """False if the work failed; then its jobs have been told."""
        try:
            work()
            return True
        except Exception as error:
            if self.reading is not None and self.reading.job in jobs:
                self.reading = None
            self._fail(jobs, error)
            return False

    def _fail(self, jobs: list[Write], error: Exception) -> None:
        for job in jobs:
            job.emit(job.first, Failed(error))
            job.cancelled = True

    def stop(self, error: Exception) -> None:
        """Ends all texts with an error."""
        jobs = {row.job for _, rows in self.groups for row in rows}
        jobs |= set() if self.reading is None else {self.reading.job}
        for job in jobs:
            job.emit(job.first, Failed(error))
        self.groups, self.reading = [], None


def _rows(model: Any, job: Write) -> Rows:
    """The prompt in a batch of its own; a model whose parts cannot decode step by step reads all for each token."""
    room = min(ROOM, max((options.max_new_tokens for options in job.options), default=0))
    try:
        return Rows(model, [job.ids], room, True, job.media)
    except ValueError:
        return Rows(model, [job.ids], room, False, job.media)
