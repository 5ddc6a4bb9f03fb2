"""Requests as work for the engine: prompts become token ids, pictures become inputs, everything is checked."""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anyformer.generate.options import Options
from anyformer.generate.prompts import Prompts, check_ids
from anyformer.generate.seeing import placeholder, with_media
from anyformer.generate.tools import Call, Tool, as_letters, prompt
from anyformer.serve.card import Served
from anyformer.serve.jobs import Emit, Refused, Write
from anyformer.serve.limits import Limits
from anyformer.serve.protocol import Chat, Completion, ImagePart, Message, TextPart, Writing

FEW = 16  # new tokens of a completion that names no number, as in OpenAI's protocol
PICTURE = re.compile(r"data:image/[a-z0-9.+-]{1,32};base64,", re.ASCII)


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> Refused:
    """The refusal of a request that makes no sense."""
    return Refused(400, code, message, param=param)


def find(models: dict[str, Served], name: str | None, verb: str) -> Served:
    """The model of a request; without a name, the first that can do it.

    Raises:
        Refused: 404 for an unknown name, 400 for a model that does something else.
    """
    able = [one for one in models.values() if verb in one.verbs]
    if name is None and able:
        return able[0]
    if name is not None and name not in models:
        raise Refused(
            404, "model_not_found", f"there is no such model here; there is {', '.join(models)}", param="model"
        )
    if name is None or verb not in models[name].verbs:
        what = "none of these models" if name is None else f"{name}"
        hint = f"{', '.join(one.name for one in able)} can" if able else "no model here can"
        template = " (it has no chat template; /v1/completions continues a text)" if verb == "chat" else ""
        raise bad(f"{what} cannot answer {verb}{template}; {hint}", "model", "wrong_model")
    return models[name]


def chat_prompt(
    one: Served, messages: list[Message], tools: Sequence[Tool] = (), more: Sequence[dict[str, Any]] = ()
) -> tuple[list[int], dict[str, Any]]:
    """The token ids of a conversation and the inputs of its pictures.

    Args:
        more: messages behind them, in plain form.

    Raises:
        Refused, ValueError: for pictures that cannot be read or are not here, and from the template.
    """
    tokenizer, pictures, plain = one.model.tokenizer, list[bytes](), list[dict[str, Any]]()
    for message in messages:
        if message.content is None and not message.tool_calls:
            raise bad("a message without content is an answer with tool_calls", "messages")
        text = message.content or ""
        parts = text if isinstance(text, list) else [TextPart(type="text", text=text)]
        role = "system" if message.role == "developer" else message.role
        seen = [picture(part) for part in parts if isinstance(part, ImagePart)]
        if seen and "images" not in one.verbs:
            raise bad(f"{one.name} sees no pictures", "messages", "wrong_model")
        pictures += seen
        calls = {"tool_calls": calls_of(message)} if message.tool_calls else {}
        named = {"tool_call_id": message.tool_call_id} if message.tool_call_id else {}
        plain.append({"role": role, "content": _content(one.model, parts, bool(seen)), **calls, **named})
    if pictures and tools:
        raise bad("tools go without pictures", "tools")
    ids = prompt(tokenizer, [*plain, *more], tools)
    check_ids(one.model, ids)
    rows, media = with_media(one.model, [ids], pictures or None)
    return rows[0], media


def calls_of(message: Message) -> list[dict[str, Any]]:
    """The calls of a message, as templates read them.

    Raises:
        Refused: for arguments that are no JSON object.
    """
    made = []
    for call in message.tool_calls or ():
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise bad("the arguments of a call must be the text of a JSON object", "messages")
        made.append(replace(Call(call.function.name, arguments), id=call.id).spec())
    return made


def _content(model: Any, parts: list[Any], seen: bool) -> Any:
    """The parts of a message as its template reads them: a text, or a list where it has pictures. A text that spells a
    special token stays a text: else whoever writes it could end the message and begin one of another role."""
    texts = ["" if isinstance(part, ImagePart) else as_letters(model.tokenizer, part.text) for part in parts]
    if not seen:
        return "\n".join(texts)
    template, both = model.tokenizer.template or "", list(zip(parts, texts, strict=True))
    if "'image'" in template or '"image"' in template:
        return [{"type": "image"} if isinstance(p, ImagePart) else {"type": "text", "text": t} for p, t in both]
    mark = placeholder(model)
    return "\n".join(mark if isinstance(part, ImagePart) else text for part, text in both)


def picture(part: ImagePart) -> bytes:
    """The bytes of a picture.

    Raises:
        Refused: for anything but base64 in the request itself: the server fetches nothing.
    """
    url = part.image_url.url
    head = PICTURE.match(url)
    if head is None:
        raise bad("pictures come in the request, as data:image/png;base64,…; no address is fetched", "messages")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise bad("the picture is no valid base64", "messages") from None


def completion_prompts(one: Served, body: Completion, limits: Limits) -> list[list[int]]:
    """The token ids of each prompt.

    Raises:
        Refused, ValueError: for too many, an empty one, or ids outside the vocabulary.
    """
    prompts = body.prompts()
    if len(prompts) > limits.prompts:
        raise bad(f"{len(prompts)} prompts in one request, at most {limits.prompts}", "prompt")
    if body.echo and one.model.reads_source:
        raise bad(f"{one.name} writes a new text about its prompt, so echo has no meaning", "echo")
    return [row for prompt in prompts for row in Prompts(one.model, [prompt]).rows]


def new_tokens(one: Served, ids: list[int], body: Writing, limits: Limits, few: int | None = None) -> int:
    """The most new tokens of a text: what was asked for, else all that there is room for.

    Raises:
        Refused: if the text would be longer than the context or the server's limit.
    """
    context = one.model.context or limits.prompt_tokens + limits.new_tokens
    room = context - (1 if one.model.reads_source else len(ids))
    asked = body.count()
    if len(ids) > context or room < (1 if asked is None else asked):
        text = f"the prompt has {len(ids)} tokens" + (f" and {asked} new ones are asked for" if asked else "")
        raise bad(f"{text}; the context of {one.name} is {context}", "messages", "context_length_exceeded")
    if asked is not None and asked > limits.new_tokens:
        raise bad(f"max_tokens is {asked}, at most {limits.new_tokens}", "max_tokens")
    return min(room, limits.new_tokens, few or room) if asked is None else asked


def jobs(
    one: Served,
    rows: list[tuple[list[int], dict[str, Any]]],
    body: Chat | Completion,
    limits: Limits,
    client: str,
    emit: Emit,
    grammar: str | None = None,
) -> list[Write]:
    """The work of one request, a job a prompt; with a grammar, texts that follow it.

    Raises:
        Refused, ValueError: naming the field, for values that make no sense.
    """
    if (body.n or 1) > limits.samples:
        raise bad(f"n is {body.n}, at most {limits.samples}", "n")
    if body.stream_options is not None and not body.stream:
        raise bad("stream_options are for stream: true", "stream_options")
    completion = isinstance(body, Completion)
    top = body.logprobs if isinstance(body, Completion) else body.top()
    if isinstance(body, Chat) and body.top_logprobs is not None and not body.logprobs:
        raise bad("top_logprobs are for logprobs: true", "top_logprobs")
    made = []
    for number, (ids, media) in enumerate(rows):
        count = new_tokens(one, ids, body, limits, FEW if completion else None)
        options: list[Options] = body.options(count) if count else []
        options = [replace(each, grammar=grammar) for each in options] if grammar is not None else options
        made.append(
            Write(
                client, time.monotonic() + limits.seconds, emit, ids=ids, media=media, options=options, top=top,
                echo=isinstance(body, Completion) and bool(body.echo) and top is not None,
                first=number * (body.n or 1),
            )
        )  # fmt: skip
    return made
