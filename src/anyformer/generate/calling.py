"""The loop of a model that calls functions: an answer, its calls, their results, the next answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from anyformer.generate.tools import Call, Reader, Tool, grammar, prompt

LONGEST = 20_000  # characters of a result
Write = Callable[[list[int], str | None], Iterator[str]]  # the ids of a prompt and a grammar -> the pieces of a text


def converse(
    model: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool],
    choice: str,
    write: Write,
    max_calls: int,
    max_seconds: float,
    on_call: Callable[[Call], None] | None,
) -> Iterator[str]:
    """The pieces of the model's answers; calls between them are no text.

    With the choice "required" the first answer is a call. After `max_calls` calls, or `max_seconds`, the model answers
    without tools.
    """
    said: list[Mapping[str, Any]] = list(messages)
    end, left = time.monotonic() + max_seconds, max_calls
    while True:
        able = left > 0 and time.monotonic() < end
        first = choice if left == max_calls else "auto"
        form = grammar(model.tokenizer, tools, first, several=False) if able else None
        reader = Reader(model.tokenizer, able)
        text = ""
        for piece in write(prompt(model.tokenizer, said, tools), form):
            if shown := reader.put(piece):
                text += shown
                yield shown
        rest, calls = reader.end()
        if rest:
            yield rest
        if not calls:
            return
        made = [perform(call, tools, max(0.0, end - time.monotonic())) for call in calls[:left]]
        left -= len(made)
        said += turns(text, made)
        for call in made if on_call is not None else ():
            on_call(call)  # type: ignore[misc]


def turns(text: str, calls: Sequence[Call]) -> list[dict[str, Any]]:
    """The messages of an answer with calls, and of their results."""
    answer = {"role": "assistant", "content": text, "tool_calls": [call.spec() for call in calls]}
    results = [{"role": "tool", "tool_call_id": c.id, "name": c.name, "content": c.result or ""} for c in calls]
    return [answer, *results]


def perform(call: Call, tools: Sequence[Tool], seconds: float) -> Call:
    """The call with its result: a text, JSON of anything else, or "error: …" for the model to read.

    A function that takes longer than `seconds` is left alone, and its result is lost.
    """
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None or tool.run is None:
        return replace(call, result=f"error: there is no function {call.name}")
    made: list[str] = []
    run = tool.run

    def work() -> None:
        try:
            value = run(**call.arguments)
            made.append(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        except Exception as error:
            made.append(f"error: {error or type(error).__name__}")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    result = made[0] if made else "error: the function took too long"
    return replace(call, result=result[:LONGEST])
