"""What the engine is asked for, and what it answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from anyformer.generate.options import Options
from anyformer.serve.texts import Piece, Token


class Refused(Exception):
    """A request that is not served now.

    Attributes:
        status: of HTTP. code: for programs. after: seconds to wait before the next try, or None.
    """

    def __init__(self, status: int, code: str, message: str, after: int | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.after, self.param = status, code, message, after, param


@dataclass(frozen=True)
class Read:
    """The tokens of a prompt with their log-probabilities, where they were asked for."""

    tokens: list[Token]


@dataclass(frozen=True)
class Failed:
    """The end of a job without a result."""

    error: Exception


@dataclass(frozen=True)
class Made:
    """The result of a call."""

    value: Any


Event = Piece | Read | Failed | Made
Emit = Callable[[int, Event], None]  # the number of the text in its request, and what happened


@dataclass(eq=False)
class Job:
    """The base of all work: who asks, until when, and where the answer goes.

    Attributes:
        client: for the fair queue. emit: is called in the engine's thread.
        first: the number of its first text in its request.
        owner: who alone may share its beginning of a prompt.
        cancelled: set when nobody waits for the answer any more.
    """

    client: str
    deadline: float
    emit: Emit
    first: int = 0
    born: float = field(default_factory=time.monotonic)
    owner: str = ""
    cancelled: bool = False

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline


@dataclass(eq=False)
class Write(Job):
    """Texts that continue one prompt.

    Attributes:
        ids: the prompt, checked. media: its inputs of pictures.
        options: of each text, of the same prompt; none = the prompt is read only.
        top: likeliest tokens to report at each token; None = no log-probabilities.
        echo: report those of the prompt, too.
    """

    ids: list[int] = field(default_factory=list)
    media: dict[str, Tensor] = field(default_factory=dict)
    options: list[Options] = field(default_factory=list)
    top: int | None = None
    echo: bool = False


@dataclass(eq=False)
class Call(Job):
    """A function that is called beside the texts: an embedding, a transcription."""

    work: Callable[[], Any] = lambda: None
