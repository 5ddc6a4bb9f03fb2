"""What the routes share: the models and the engine of a request, answers that wait, clients that go away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from anyformer.serve.answers import Choice
from anyformer.serve.card import Served
from anyformer.serve.engine import Engine
from anyformer.serve.inbox import Inbox
from anyformer.serve.jobs import Call, Refused
from anyformer.serve.texts import Piece

R = TypeVar("R")
Pieces = AsyncIterator[tuple[int, Piece, bool]]
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {}}}
    for status, text in {
        400: "a request that makes no sense", 401: "no key", 403: "another host or page", 404: "no such model",
        413: "too large", 422: "a field of a wrong type or beyond its limits", 429: "too many requests",
        503: "the server is busy or ends",
    }.items()
}  # fmt: skip


class Events(StreamingResponse):
    """A stream that cancels its work when it ends in whatever way, before its first event, too."""

    def __init__(self, inbox: Inbox, events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self.inbox = inbox

    async def __call__(self, *call: Any) -> None:
        with self.inbox:
            await super().__call__(*call)


def models_of(request: Request) -> dict[str, Served]:
    """The models of the server, by name."""
    return request.app.state.models


def engine_of(request: Request) -> Engine:
    """Its engine."""
    return request.app.state.engine


def client_of(request: Request) -> str:
    """Whose turn a request is, in the fair queue."""
    return "" if request.client is None else request.client.host


def owner_of(request: Request) -> str:
    """The sharer of what a request sent: its key, or without keys its address."""
    return getattr(request.state, "owner", "") or client_of(request)


async def whole(pieces: Pieces, heads: list[str]) -> list[Choice]:
    """The texts of a request, when all have ended; `heads` stand in front of them."""
    choices = [Choice(head) for head in heads]
    async for number, piece, prompt in pieces:
        choices[number].take(piece, prompt)
    return choices


async def called(request: Request, one: Served, work: Any) -> Any:
    """The result of a function that the engine calls."""
    inbox = Inbox(engine_of(request))
    limit = time.monotonic() + inbox.engine.limits.seconds
    inbox.submit(one.name, [Call(client_of(request), limit, inbox.emit, work=work)])
    with inbox:
        return await unless_gone(request, inbox.made())


async def unless_gone(request: Request, work: Awaitable[R]) -> R:
    """The result, unless the client goes away: then nobody waits, and the work is cancelled."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(400, "client_gone", "the client has gone")
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
