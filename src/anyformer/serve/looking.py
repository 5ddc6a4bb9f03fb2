"""Views of a model for the page: its wiring, where it looked when it wrote a token, and why it wrote it."""

from __future__ import annotations

import asyncio
import base64
import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from anyformer.explain.reading import Reading
from anyformer.explain.report import report
from anyformer.explain.rows import Looked, attention_row
from anyformer.explain.wiring import draw
from anyformer.serve import asking
from anyformer.serve.asking import bad
from anyformer.serve.card import Served
from anyformer.serve.handling import ERRORS, called, models_of
from anyformer.serve.jobs import Refused
from anyformer.serve.protocol import Attend, Explain

router = APIRouter()


@router.get("/v1/models/{name}/wiring.svg", responses=ERRORS, response_class=Response)
async def wiring(request: Request, name: str) -> Response:
    """A drawing of a model: its blocks, their residual streams, and the masks."""
    one = models_of(request).get(name)
    if one is None:
        raise Refused(404, "model_not_found", "there is no such model here; GET /v1/models lists them", param="model")
    drawn: dict[str, bytes] = request.app.state.drawn
    if name not in drawn:
        drawn[name] = await called(request, one, lambda: _drawn(one))
    return Response(drawn[name], media_type="image/svg+xml")


def _drawn(one: Served) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return draw(one.model.recipe, Path(folder) / "wiring.svg", one.name).read_bytes()
        except ImportError:
            raise Refused(503, "not_installed", "drawings need `pip install 'anyformer[plot]'`") from None


@router.post("/attention", responses=ERRORS)
async def attention(request: Request, body: Attend) -> JSONResponse:
    """The attention of every head to the text when the model wrote a token of an answer.

    `weights` is base64: for each layer, head and key one byte b; the weight is (b / 255)^2.
    """
    one, ids, answer = await _asked(request, body, "attention")

    def work() -> Looked:
        return attention_row(_copy(request, one), ids, answer, body.token)

    return JSONResponse(_shown(await called(request, one, work)))


@router.post("/explain", responses=ERRORS, response_class=HTMLResponse)
async def explained(request: Request, body: Explain) -> HTMLResponse:
    """The report of `anyformer explain` about a token of an answer: one file that opens without network. The header
    `x-token` has the token's number and the count of the answer's tokens, "3/12"."""
    one, ids, answer = await _asked(request, body, "explain")
    if not -len(answer) <= body.token < len(answer):
        raise bad(f"there is no token {body.token} in an answer of {len(answer)}", "token")
    token = body.token % len(answer)

    def work() -> str:
        model = _copy(request, one)
        before = answer[:token] if not model.reads_source else [model.begin_id, *answer[:token]]
        inputs = {f"{model.target}input_ids": before if model.reads_source else [*ids, *before]}
        inputs |= {"input_ids": ids} if model.reads_source else {}
        device = next(model.parameters()).device
        with torch.inference_mode(False), torch.enable_grad():
            read = {name: torch.tensor([row], device=device) for name, row in inputs.items()}
            reading = Reading(read, "text", model.tokenizer.decode([*ids, *answer[:token]]))
            return report(model, reading, answer[token], body.method, name=one.name).html()

    return HTMLResponse(await called(request, one, work), headers={"x-token": f"{token}/{len(answer)}"})


async def _asked(request: Request, body: Attend, verb: str) -> tuple[Served, list[int], list[int]]:
    """The model, and the ids that it continued and wrote.

    Raises:
        Refused: for a model that does something else, no prompt or two, pictures, a text that is too long.
    """
    one = asking.find(models_of(request), body.model, verb)
    if (body.prompt is None) == (body.messages is None):
        raise bad("give prompt or messages, one of them", "prompt")
    if body.messages is not None:
        if "chat" not in one.verbs:
            raise bad(f"{one.name} has no chat template", "messages")
        ids, media = await asyncio.to_thread(asking.chat_prompt, one, body.messages)
        if media:
            raise bad("the attention of texts about pictures is drawn by `anyformer draw`", "messages")
    else:
        ids = await asyncio.to_thread(one.model.tokenizer.encode, body.prompt)
    answer = await asyncio.to_thread(one.model.tokenizer.encode, body.answer, False)
    if not ids:
        raise bad("the prompt is empty", "prompt")
    if len(ids) + len(answer) > (one.model.context or len(ids) + len(answer)):
        raise bad(f"the text is longer than the context of {one.name}, {one.model.context}", "answer")
    return one, ids, answer


def _copy(request: Request, one: Served) -> Any:
    """The model for the thread of calls, while another one writes texts with the same weights."""
    copies: dict[str, Any] = request.app.state.copies
    if one.name not in copies:
        copies[one.name] = apart(one.model)
    return copies[one.name]


def apart(model: Any) -> Any:
    """A model of the same weights whose modules are its own: what is recorded there is of its own passes alone."""
    same = [*model.parameters(), *model.buffers(), model.tokenizer, model.processor, model.ledger, model.recipe]
    return copy.deepcopy(model, {id(one): one for one in same})


def _shown(looked: Looked) -> dict[str, Any]:
    parts = [(row.weights.clamp(0, 1).sqrt() * 255).round().byte().numpy().tobytes() for row in looked.rows]
    layers = [{"layer": row.layer, "cross": row.cross, "heads": len(row.weights), "keys": row.weights.shape[1]}
              for row in looked.rows]  # fmt: skip
    return {
        "tokens": looked.tokens, "source": looked.source, "first": looked.first, "token": looked.token,
        "query": looked.query, "layers": layers, "weights": base64.b64encode(b"".join(parts)).decode(),
    }  # fmt: skip
