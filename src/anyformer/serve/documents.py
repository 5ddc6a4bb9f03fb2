"""Answers out of the documents of the server, each sentence with the passage that it cites."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from anyformer.know.answering import Answer, Asked, looked_up
from anyformer.know.citing import Statement, shown
from anyformer.know.tool import NAME, Search
from anyformer.serve import asking
from anyformer.serve.card import Served
from anyformer.serve.handling import ERRORS, called, client_of, engine_of, models_of, owner_of, unless_gone, whole
from anyformer.serve.inbox import Inbox
from anyformer.serve.protocol import Ask, Chat

router = APIRouter()


@router.post("/ask", responses=ERRORS)
async def ask(request: Request, body: Ask) -> JSONResponse:
    """The answer to a question out of the index of the server (`--tools search=INDEX`), its sentences and sources.

    `passage` of a sentence is the passage that it cites, in three parts; the second one is the quoted text.
    """
    tool = next((tool for tool in request.app.state.tools if isinstance(tool, Search)), None)
    if tool is None or tool.searcher is None:
        raise asking.bad(f"this server has no documents; start it with --tools {NAME}=INDEX")
    one = None if body.model is None else asking.find(models_of(request), body.model, "chat")
    model = None if one is None else one.model
    asked = await asyncio.to_thread(looked_up, tool.searcher, body.question, model, body.k, body.max_tokens)
    if one is None or not asked.messages:
        return JSONResponse(_shown(await asyncio.to_thread(asked.answer, tool.searcher)))
    text, searcher = await _text(request, one, body, asked), tool.searcher
    return JSONResponse(_shown(await called(request, one, lambda: asked.answer(searcher, text))))


async def _text(request: Request, one: Served, body: Ask, asked: Asked) -> str:
    """The text that the model writes about the passages, among those of other requests."""
    options = body.model_dump(include={"model", "max_tokens", "temperature", "seed"})
    said = Chat.model_validate({"messages": asked.messages, **options})
    row = await asyncio.to_thread(asking.chat_prompt, one, said.messages)
    inbox = Inbox(engine_of(request))
    jobs = asking.jobs(one, [row], said, inbox.engine.limits, client_of(request), inbox.emit)
    for job in jobs:
        job.owner = owner_of(request)
    inbox.submit(one.name, jobs)
    with inbox:
        return (await unless_gone(request, whole(inbox.pieces(), [""])))[0].text


def _shown(answer: Answer) -> dict[str, Any]:
    return {
        "found": answer.found,
        "statements": [_stated(one) for one in answer.statements],
        "passages": [shown(hit.row.place()) for hit in answer.search.hits],
        "notes": answer.notes,
    }


def _stated(one: Statement) -> dict[str, Any]:
    span = one.span
    source = {} if span is None else {"number": one.number, "place": span.place, "passage": span.parts}
    return {"text": one.text, **source}
