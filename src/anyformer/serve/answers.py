"""Pieces of texts as OpenAI's objects: whole answers, and pieces of streams."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from anyformer import __version__
from anyformer.generate.tools import Call
from anyformer.serve.texts import Piece, Token, token_bytes, token_text


@dataclass
class Choice:
    """One text of an answer, as far as it is known."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    written: int = 0  # tokens, without those of the prompt
    end: str | None = None
    calls: tuple[Call, ...] = ()

    def take(self, piece: Piece, prompt: bool = False) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.written += 0 if prompt else len(piece.tokens)
        self.end = piece.end or self.end
        self.calls += piece.calls


class Form:
    """The form of one answer: of a chat, or of a completion.

    Args:
        chat: whose protocol. model: the name. tokenizer: of the model, for log-probabilities.
        top: the number of alternatives; None = no log-probabilities.
    """

    def __init__(self, chat: bool, model: str, tokenizer: Any, top: int | None):
        self.chat, self.model, self.tokenizer, self.top = chat, model, tokenizer, top
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.offsets: dict[int, int] = {}  # characters of each text so far

    def whole(self, choices: list[Choice], prompt_tokens: int) -> dict[str, Any]:
        """The answer in one object."""
        made = []
        for index, choice in enumerate(choices):
            told = self._logs(index, choice.tokens)
            content: dict[str, Any] = {"text": choice.text}
            if self.chat:
                calls = {"tool_calls": [call.spec(text=True) for call in choice.calls]} if choice.calls else {}
                text = (choice.text or None) if choice.calls else choice.text
                content = {"message": {"role": "assistant", "content": text, "refusal": None, **calls}}
            made.append({"index": index, **content, "logprobs": told, "finish_reason": choice.end})
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": made, "usage": usage(choices, prompt_tokens)}

    def opening(self, count: int, usage: bool) -> Iterable[str]:
        """The first events of a stream: the roles of a chat."""
        for index in range(count if self.chat else 0):
            yield self._event(index, {"role": "assistant", "content": ""}, None, None, usage)

    def piece(self, index: int, piece: Piece, usage: bool) -> str:
        """An event of a stream."""
        told = self._logs(index, piece.tokens) if piece.tokens else None
        if self.chat:
            delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
            if piece.calls:
                delta["tool_calls"] = [{"index": i, **call.spec(text=True)} for i, call in enumerate(piece.calls)]
            return self._event(index, delta, told, piece.end, usage)
        return self._event(index, piece.text, told, piece.end, usage)

    def closing(self, choices: list[Choice], prompt_tokens: int) -> str:
        """The last event: the numbers of tokens."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return event({**self._head(kind), "choices": [], "usage": usage(choices, prompt_tokens)})

    def _event(self, index: int, content: Any, told: Any, end: str | None, usage: bool) -> str:
        choice = {"index": index, "delta" if self.chat else "text": content, "logprobs": told, "finish_reason": end}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return event({**self._head(kind), "choices": [choice], **({"usage": None} if usage else {})})

    def _head(self, kind: str) -> dict[str, Any]:
        fingerprint = f"anyformer-{__version__}"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model,
                "system_fingerprint": fingerprint}  # fmt: skip

    def _logs(self, index: int, tokens: list[Token]) -> dict[str, Any] | None:
        if self.top is None:
            return None
        if self.chat:
            return {"content": [self._entry(token) for token in tokens], "refusal": None}
        texts = [token_text(self.tokenizer, token.id) for token in tokens]
        starts = []
        for text in texts:
            starts.append(self.offsets.get(index, 0))
            self.offsets[index] = starts[-1] + len(text)
        best = [None if token.log is None else self._best(token) for token in tokens]
        return {"tokens": texts, "token_logprobs": [token.log for token in tokens], "top_logprobs": best,
                "text_offset": starts}  # fmt: skip

    def _best(self, token: Token) -> dict[str, float | None]:
        """The likeliest tokens, and the token itself."""
        return {token_text(self.tokenizer, i): log for i, log in (*reversed(token.best), (token.id, token.log))}

    def _entry(self, token: Token) -> dict[str, Any]:
        others = [self._one(i, log) for i, log in token.best]
        return {**self._one(token.id, token.log), "top_logprobs": others}

    def _one(self, token: int, log: float | None) -> dict[str, Any]:
        data = token_bytes(self.tokenizer, token)
        return {"token": token_text(self.tokenizer, token), "logprob": log, "bytes": list(data)}


def usage(choices: list[Choice], prompt_tokens: int) -> dict[str, int]:
    """The numbers of tokens."""
    written = sum(choice.written for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }


def event(value: Any) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'), allow_nan=False)}\n\n"


def problem(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
