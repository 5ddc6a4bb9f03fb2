"""The limits of a server: each field of a request is finite and capped."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """What one server, and one request, may use.

    Attributes:
        rows: texts that a model writes at once.
        waiting: texts that wait for a place; more are refused with 429.
        requests: open requests, their answers included; more are refused with 429.
        body: bytes of a request.
        seconds: of a text from its request on; a text that is being written ends there ("length").
        new_tokens: of a text.
        prompt_tokens: of a prompt, for models without a context.
        samples: texts of one prompt (`n`).
        prompts: of one request.
        chunk: tokens of new prompts that are read between two tokens of the others.
        drain: seconds that running answers have after SIGTERM.
        body_seconds: for the body of a request to arrive.
        prefix: bytes of the states of beginnings of prompts that are kept; 0 = none.
    """

    rows: int = 8
    waiting: int = 256
    requests: int = 256
    body: int = 8_000_000
    seconds: float = 600.0
    new_tokens: int = 4096
    prompt_tokens: int = 32_768
    samples: int = 8
    prompts: int = 128
    chunk: int = 256
    drain: float = 30.0
    body_seconds: float = 30.0
    prefix: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = field.name == "prefix" and value == 0
            if isinstance(value, bool) or not (0 < value < float("inf") or least):
                raise ValueError(f"{field.name} must be a number above 0; got {value!r}")
