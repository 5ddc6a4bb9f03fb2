"""OpenAI's routes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from anyformer.generate.embedding import embed, limited
from anyformer.generate.transcribing import NOTED
from anyformer.serve import answers, asking
from anyformer.serve.asking import bad
from anyformer.serve.calling import Toolbox
from anyformer.serve.card import Served
from anyformer.serve.handling import (
    ERRORS,
    Events,
    Pieces,
    called,
    client_of,
    engine_of,
    models_of,
    owner_of,
    unless_gone,
    whole,
)  # fmt: skip
from anyformer.serve.hearing import MOST_SECONDS, heard, spoken
from anyformer.serve.inbox import Inbox
from anyformer.serve.jobs import Refused
from anyformer.serve.protocol import Chat, Completion, Embedding, Tokenize
from anyformer.serve.texts import Piece

router = APIRouter()


@router.get("/v1/models", responses=ERRORS)
async def models(request: Request) -> JSONResponse:
    """The models that are served, with their facts; and the tools that the server runs."""
    born, tools = request.app.state.born, [tool.name for tool in request.app.state.tools]
    data = [_listed(one, born) for one in models_of(request).values()]
    return JSONResponse({"object": "list", "data": data, "tools": tools})


@router.get("/v1/models/{name}", responses=ERRORS)
async def model(request: Request, name: str) -> JSONResponse:
    """One of them."""
    found = models_of(request).get(name)
    if found is None:
        raise Refused(404, "model_not_found", "there is no such model here; GET /v1/models lists them", param="model")
    return JSONResponse(_listed(found, request.app.state.born))


@router.post("/v1/chat/completions", responses=ERRORS)
async def chat(request: Request, body: Chat) -> Response:
    """The answer to a conversation."""
    one = asking.find(models_of(request), body.model, "chat")
    tools = await asyncio.to_thread(Toolbox, one, body, request.app.state.tools)
    row = await asyncio.to_thread(asking.chat_prompt, one, body.messages, tools.told)
    form = answers.Form(True, one.name, one.model.tokenizer, body.top())
    return await _written(request, one, body, [row], form, tools)


@router.post("/v1/completions", responses=ERRORS)
async def completions(request: Request, body: Completion) -> Response:
    """Continuations of texts or token ids."""
    one = asking.find(models_of(request), body.model, "completions")
    rows = await asyncio.to_thread(asking.completion_prompts, one, body, engine_of(request).limits)
    form = answers.Form(False, one.name, one.model.tokenizer, body.logprobs)
    return await _written(request, one, body, [(ids, {}) for ids in rows], form)


@router.post("/v1/embeddings", responses=ERRORS)
async def embeddings(request: Request, body: Embedding) -> Response:
    """A vector for each text. A text beyond the model's limit is cut, and `truncated` lists it."""
    one = asking.find(models_of(request), body.model, "embeddings")
    texts = [body.input] if isinstance(body.input, str) else body.input
    if body.dimensions not in (None, one.model.width):
        raise bad(f"dimensions: the vectors of {one.name} have {one.model.width}", "dimensions")
    lengths, limit = await asyncio.to_thread(limited, one.model, texts)
    vectors = await called(request, one, lambda: embed(one.model, texts).float().cpu().numpy())
    if body.encoding_format == "base64":
        shown: list[Any] = [base64.b64encode(v.astype("<f4").tobytes()).decode() for v in vectors]
    else:
        shown = vectors.astype(np.float64).tolist()
    count = sum(lengths if limit is None else (min(length, limit) for length in lengths))
    made: dict[str, Any] = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(shown)],
        "model": one.name,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
    if cut := [i for i, length in enumerate(lengths) if limit is not None and length > limit]:
        made |= {"truncated": cut, "warning": f"texts beyond {limit} tokens are cut there; split them"}
    return JSONResponse(made)


@router.post("/v1/audio/transcriptions", responses=ERRORS)
async def transcriptions(
    request: Request,
    file: Annotated[UploadFile, File()],
    model: Annotated[str | None, Form(max_length=256)] = None,
    language: Annotated[str | None, Form(max_length=32)] = None,
    prompt: Annotated[str, Form(max_length=2000)] = "",
    response_format: Annotated[Literal["json", "text", "verbose_json"], Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=2, allow_inf_nan=False)] = 0.0,
    notes: Annotated[float, Form(ge=0, le=1, allow_inf_nan=False)] = NOTED,
) -> Response:
    """The words of a recording of at most ten minutes. `notes` is that of `transcribe`."""
    one = asking.find(models_of(request), model, "transcriptions")
    sound = await asyncio.to_thread(heard, await file.read())
    if sound.seconds > MOST_SECONDS:
        raise bad(f"the sound has {sound.seconds:.0f} seconds, at most {MOST_SECONDS}", "file")
    made = await called(request, one, lambda: spoken(one.model, sound, language, prompt, temperature, notes))
    if response_format == "text":
        return PlainTextResponse(made["text"] + "\n")
    return JSONResponse(made if response_format == "verbose_json" else {"text": made["text"]})


@router.post("/tokenize", responses=ERRORS)
async def tokenize(request: Request, body: Tokenize) -> JSONResponse:
    """The token ids of a text or of a conversation."""
    one = asking.find(models_of(request), body.model, "tokenize")
    if (body.prompt is None) == (body.messages is None):
        raise bad("give prompt or messages, one of them", "prompt")
    if body.messages is not None:
        if "chat" not in one.verbs:
            raise bad(f"{one.name} has no chat template", "messages")
        ids = (await asyncio.to_thread(asking.chat_prompt, one, body.messages))[0]
    else:
        ids = await asyncio.to_thread(one.model.tokenizer.encode, body.prompt, body.add_special_tokens)
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": one.model.context})


def _listed(one: Served, born: int) -> dict[str, Any]:
    head = {"id": one.name, "object": "model", "created": born, "owned_by": "anyformer"}
    return {**head, "verbs": list(one.verbs), "card": one.card}


async def _written(
    request: Request, one: Served, body: Chat | Completion, rows: list[tuple[list[int], Any]], form: answers.Form,
    tools: Toolbox | None = None,
) -> Response:  # fmt: skip
    """The texts of one request, whole or as a stream."""
    inbox = Inbox(engine_of(request))
    client, grammar = client_of(request), None if tools is None else tools.grammar
    jobs = asking.jobs(one, rows, body, inbox.engine.limits, client, inbox.emit, grammar)
    for job in jobs:
        job.owner = owner_of(request)
    tokens, count = sum(len(ids) for ids, _ in rows), len(rows) * (body.n or 1)
    heads = [""] * count
    if isinstance(body, Completion) and body.echo:
        heads = [_prompt(one, prompt) for prompt in body.prompts() for _ in range(body.n or 1)]
    inbox.submit(one.name, jobs)
    pieces = inbox.pieces() if tools is None else tools.pieces(inbox)
    if body.stream:
        told = body.stream_options is not None and bool(body.stream_options.include_usage)
        events = _stream(pieces, form, heads, tokens, told)
        return Events(inbox, events)
    with inbox:
        choices = await unless_gone(request, whole(pieces, heads))
    return JSONResponse(form.whole(choices, tokens))


def _prompt(one: Served, prompt: Any) -> str:
    """A prompt as text, for echo."""
    return prompt if isinstance(prompt, str) else one.model.tokenizer.decode(prompt, skip_special=False)


async def _stream(pieces: Pieces, form: answers.Form, heads: list[str], tokens: int, told: bool) -> AsyncIterator[str]:
    """The events of a stream; an error after its beginning is an event, too."""
    choices = [answers.Choice() for _ in heads]
    try:
        for line in form.opening(len(heads), told):
            yield line
        for index, head in enumerate(heads):
            if head:
                yield form.piece(index, Piece(head), told)
        async for number, piece, prompt in pieces:
            choices[number].take(piece, prompt)
            waits = not (piece.text or piece.tokens or piece.end)
            yield ": waiting\n\n" if waits else form.piece(number, piece, told)
        if told:
            yield form.closing(choices, tokens)
    except Refused as refused:
        yield answers.event(answers.problem(refused.status, refused.message, refused.code, refused.param))
    except Exception:
        yield answers.event(answers.problem(500, "an error of the server", "internal_error"))
    yield "data: [DONE]\n\n"
