"""Functions in conversations: the client's, whose calls are part of the answer, and the server's own, which it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from anyformer.generate.calling import perform, turns
from anyformer.generate.tools import Call, Reader, Tool, grammar, tools_of
from anyformer.serve import asking
from anyformer.serve.card import Served
from anyformer.serve.inbox import Inbox
from anyformer.serve.jobs import Job
from anyformer.serve.protocol import Chat, Chosen, FunctionTool
from anyformer.serve.texts import Piece, Token

MOST_CALLS = 8  # that the server runs for one answer


class Toolbox:
    """The tools of one request.

    Args:
        included: the server's own tools.

    Attributes:
        told: the tools that the prompt describes. grammar: of the answer; None = it has no calls.

    Raises:
        Refused, ValueError: for tools that make no sense, are not here, or do not go with other fields.
    """

    def __init__(self, one: Served, body: Chat, included: Sequence[Tool]):
        self.one, self.body, self.own = one, body, list[Tool]()
        values = list[Any]()
        for tool in body.tools or ():
            if isinstance(tool, FunctionTool):
                values.append(tool.model_dump(exclude_none=True))
            elif (own := next((one for one in included if one.name == tool.type), None)) is not None:
                self.own.append(own)
            else:
                start = f"--tools {tool.type}{'=INDEX' if tool.type == 'search' else ''}"
                raise asking.bad(f"this server has no {tool.type}; start it with {start}", "tools")
        every, choice = tools_of([*values, *self.own]), body.tool_choice or "auto"
        self.told = [] if choice == "none" else every
        if isinstance(choice, Chosen):
            every = [tool for tool in every if tool.name == choice.function.name]
            if not every:
                raise asking.bad(f"tool_choice: {choice.function.name} is not among the tools", "tool_choice")
            choice = "required"
        if body.tool_choice not in (None, "none", "auto") and not every:
            raise asking.bad("tool_choice needs tools", "tool_choice")
        if self.told and body.schema_asked() is not None:
            raise asking.bad("an answer follows tools or a response_format: leave one of them out", "response_format")
        if self.own and (body.n or 1) > 1:
            raise asking.bad("n is 1 with tools that the server runs", "n")
        several = body.parallel_tool_calls is not False and not self.own
        self.grammar = grammar(one.model.tokenizer, every, choice, several) if self.told else None

    async def pieces(self, inbox: Inbox) -> AsyncIterator[tuple[int, Piece, bool]]:
        """The pieces of all texts, as of `Inbox.pieces`: their texts without calls, and calls with the last piece.

        Calls of the server's own tools are run, and the text goes on behind their results.
        """
        first, left = inbox.jobs[0], MOST_CALLS
        said = list[Any]()
        while True:
            readers, made, text = dict[int, Reader](), list[Call](), ""
            held = dict[int, list[Token]]()
            async for number, piece, prompt in inbox.pieces():
                if prompt or not (piece.text or piece.tokens or piece.end):
                    yield number, piece, prompt
                    continue
                reader = readers.setdefault(number, Reader(self.one.model.tokenizer, self.grammar is not None))
                shown, calls = reader.put(piece.text), list[Call]()
                if piece.end is not None:
                    rest, calls = reader.end()
                    shown += rest
                text += shown
                tokens = held.pop(number, []) + piece.tokens
                made = [call for call in calls if any(call.name == tool.name for tool in self.own)]
                if made:
                    yield number, Piece(shown, tokens), False
                elif shown or piece.end is not None:
                    yield number, Piece(shown, tokens, "tool_calls" if calls else piece.end, tuple(calls)), False
                else:
                    held[number] = tokens
            if not made:
                return
            seconds = first.deadline - time.monotonic()
            made = [await asyncio.to_thread(perform, call, self.own, seconds) for call in made[:left]]
            left, said = left - len(made), said + turns(text, made)
            await self._again(inbox, first, said, left)

    async def _again(self, inbox: Inbox, first: Job, said: list[Any], left: int) -> None:
        """Asks for the text behind results; without calls left, one without calls."""
        self.grammar = grammar(self.one.model.tokenizer, self.told, "auto", False) if left > 0 else None
        row = await asyncio.to_thread(asking.chat_prompt, self.one, self.body.messages, self.told, said)
        jobs = asking.jobs(self.one, [row], self.body, inbox.engine.limits, first.client, inbox.emit, self.grammar)
        for job in jobs:
            job.deadline, job.owner = first.deadline, first.owner
        inbox.submit(self.one.name, jobs)
