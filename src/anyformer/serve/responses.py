"""/v1/responses: an answer as a list of items, a message and calls of functions, whole or as named events."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from anyformer.generate.tools import Call
from anyformer.serve import asking
from anyformer.serve.answers import Choice, event
from anyformer.serve.calling import Toolbox
from anyformer.serve.handling import (
    ERRORS,
    Events,
    Pieces,
    client_of,
    engine_of,
    models_of,
    owner_of,
    unless_gone,
    whole,
)
from anyformer.serve.inbox import Inbox
from anyformer.serve.items import Respond
from anyformer.serve.jobs import Refused

router = APIRouter()


@router.post("/v1/responses", responses=ERRORS)
async def responses(request: Request, body: Respond) -> Response:
    """The answer to a conversation, as items; nothing is stored."""
    asked = body.chat()
    one = asking.find(models_of(request), body.model, "chat")
    tools = await asyncio.to_thread(Toolbox, one, asked, request.app.state.tools)
    row = await asyncio.to_thread(asking.chat_prompt, one, asked.messages, tools.told)
    inbox, client = Inbox(engine_of(request)), client_of(request)
    jobs = asking.jobs(one, [row], asked, inbox.engine.limits, client, inbox.emit, tools.grammar)
    for job in jobs:
        job.owner = owner_of(request)
    inbox.submit(one.name, jobs)
    pieces, made = tools.pieces(inbox), Made(body, one.name, len(row[0]))
    if body.stream:
        return Events(inbox, _stream(pieces, made))
    with inbox:
        choice = (await unless_gone(request, whole(pieces, [""])))[0]
    return JSONResponse(made.whole(choice))


class Made:
    """The objects of one answer.

    Args:
        tokens: of the prompt.
    """

    def __init__(self, body: Respond, model: str, tokens: int):
        self.body, self.model, self.tokens = body, model, tokens
        self.id, self.message = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self.created, self.number = int(time.time()), 0

    def whole(self, choice: Choice) -> dict[str, Any]:
        """The answer when its text has ended."""
        status = "incomplete" if choice.end == "length" else "completed"
        output = [self.text(choice.text, status)] if choice.text or not choice.calls else []
        usage = {
            "input_tokens": self.tokens, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": choice.written, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.tokens + choice.written,
        }  # fmt: skip
        return self.head(status, [*output, *map(self.call, choice.calls)], usage)

    def head(self, status: str, output: list[Any], usage: Any = None) -> dict[str, Any]:
        """The answer in a state."""
        body = self.body
        asked = body.model_dump(exclude_none=True, by_alias=True, include={"tools", "tool_choice", "text"})
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens, "model": self.model,
            "output": output, "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None, "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": asked.get("text", {"format": {"type": "text"}}), "tool_choice": asked.get("tool_choice", "auto"),
            "tools": asked.get("tools", []), "top_p": 1.0 if body.top_p is None else body.top_p, "store": False,
            "truncation": "disabled", "usage": usage, "metadata": body.metadata or {},
        }  # fmt: skip

    def text(self, text: str | None, status: str) -> dict[str, Any]:
        """The message; None = its content has not begun."""
        content = [] if text is None else [self.part(text)]
        return {"type": "message", "id": self.message, "role": "assistant", "status": status, "content": content}

    @staticmethod
    def part(text: str) -> dict[str, Any]:
        """The content of the message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    @staticmethod
    def call(call: Call, status: str = "completed", arguments: str | None = None) -> dict[str, Any]:
        """The item of a call."""
        function = call.spec(text=True)["function"]
        given = function["arguments"] if arguments is None else arguments
        return {"type": "function_call", "id": f"fc_{call.id}", "call_id": call.id, "name": call.name,
                "arguments": given, "status": status}  # fmt: skip

    def event(self, kind: str, **fields: Any) -> str:
        """A named event."""
        self.number += 1
        return f"event: {kind}\n" + event({"type": kind, "sequence_number": self.number - 1, **fields})

    def calls(self, calls: tuple[Call, ...], first: int) -> Iterator[str]:
        """The events of calls, the first of which is output `first`."""
        for place, call in enumerate(calls, first):
            item = self.call(call)
            at = {"output_index": place, "item_id": item["id"]}
            yield self.event("response.output_item.added", output_index=place, item=self.call(call, "in_progress", ""))
            yield self.event("response.function_call_arguments.delta", **at, delta=item["arguments"])
            yield self.event("response.function_call_arguments.done", **at, name=call.name, arguments=item["arguments"])
            yield self.event("response.output_item.done", output_index=place, item=item)


async def _stream(pieces: Pieces, made: Made) -> AsyncIterator[str]:
    """The events of an answer; an error after its beginning is an event, too."""
    choice, begun = Choice(), False
    at = {"item_id": made.message, "output_index": 0, "content_index": 0}
    try:
        yield made.event("response.created", response=made.head("in_progress", []))
        yield made.event("response.in_progress", response=made.head("in_progress", []))
        async for _, piece, prompt in pieces:
            choice.take(piece, prompt)
            if not begun and (piece.text or (piece.end and not piece.calls)):
                begun = True
                item = made.text(None, "in_progress")
                yield made.event("response.output_item.added", output_index=0, item=item)
                yield made.event("response.content_part.added", **at, part=made.part(""))
            if piece.text:
                yield made.event("response.output_text.delta", **at, delta=piece.text, logprobs=[])
            elif not (piece.tokens or piece.end):
                yield ": waiting\n\n"
        last = made.whole(choice)
        if begun:
            yield made.event("response.output_text.done", **at, text=choice.text, logprobs=[])
            yield made.event("response.content_part.done", **at, part=made.part(choice.text))
            yield made.event("response.output_item.done", output_index=0, item=last["output"][0])
        for line in made.calls(choice.calls, int(begun)):
            yield line
        yield made.event(f"response.{last['status']}", response=last)
    except Refused as refused:
        yield made.event("error", code=refused.code, message=refused.message, param=refused.param)
    except Exception:
        yield made.event("error", code="internal_error", message="an error of the server", param=None)
