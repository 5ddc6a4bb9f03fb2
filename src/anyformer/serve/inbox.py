"""The answers of the engine's thread, in the loop that serves requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from anyformer.serve.engine import Engine
from anyformer.serve.jobs import Event, Failed, Job, Made, Read, Refused, Write
from anyformer.serve.texts import Piece


class Inbox:
    """What happens to the jobs of one request. Leaving the context, in whatever way, cancels what is left of them."""

    def __init__(self, engine: Engine):
        self.engine, self.loop = engine, asyncio.get_running_loop()
        self.queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.jobs: list[Job] = []

    def emit(self, number: int, event: Event) -> None:
        """Called by the engine's thread."""
        with suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self.queue.put_nowait, (number, event))

    def submit(self, name: str, jobs: Sequence[Job]) -> None:
        """Raises Refused if there is no room."""
        self.engine.submit(name, jobs)
        self.jobs = list(jobs)

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *error: object) -> None:
        for job in self.jobs:
            job.cancelled = True

    async def pieces(self) -> AsyncIterator[tuple[int, Piece, bool]]:
        """The pieces of all texts, with the number of the text: of its prompt, if the third is true."""
        writes = {job.first: job for job in self.jobs if isinstance(job, Write)}
        left = sum(max(1, len(job.options)) for job in writes.values())
        while left:
            number, event = await self.queue.get()
            if isinstance(event, Failed):
                raise refusal(event.error)
            if isinstance(event, Read):
                job = writes[number]
                for i in range(max(1, len(job.options))):
                    yield number + i, Piece("", event.tokens, None if job.options else "length"), True
                left -= 0 if job.options else 1
            elif isinstance(event, Piece):
                left -= event.end is not None
                yield number, event, False

    async def made(self) -> Any:
        """The result of one call."""
        _, event = await self.queue.get()
        if isinstance(event, Failed):
            raise refusal(event.error)
        assert isinstance(event, Made)
        return event.value


def refusal(error: Exception) -> Exception:
    """An error of the engine as an answer; what is no mistake of the user's stays as it is."""
    if isinstance(error, TimeoutError):
        return Refused(503, "timeout", "the server did not get to this request in time; try again later", 5)
    return Refused(400, "invalid_request", str(error)) if isinstance(error, ValueError) else error
