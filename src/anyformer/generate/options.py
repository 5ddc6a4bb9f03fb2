"""The options of `generate`, `stream` and `chat`, checked before anything is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GUESSES = ("lookup", "layers")
CACHES = (True, False, "int8")
NUMBERS = {  # option: what its numbers are, and the test; None is another word for "off"
    "top_p": ("above 0 and at most 1, or None", lambda p: 0 < p <= 1),
    "typical_p": ("above 0 and at most 1, or None", lambda p: 0 < p <= 1),
    "min_p": ("between 0 and 1, or None", lambda p: 0 <= p <= 1),
    "repetition_penalty": ("above 0 (1 changes nothing), or None", lambda r: r > 0),
    "presence_penalty": ("(0 changes nothing), or None", lambda r: True),
    "frequency_penalty": ("(0 changes nothing), or None", lambda r: True),
}
# what a beam search does not read, beside a temperature above 0
DRAWN = (*NUMBERS, "top_k", "seed", "logit_bias", "speculate", "schema", "regex", "grammar")


@dataclass(frozen=True)
class Options:
    """The options of one generation; their meaning is that of `generate`.

    A senseless value is refused by name. None is "off"; 0 is never taken for None.
    """

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    stop: str | Sequence[str]
    seed: int | Sequence[int] | None
    cache: bool | str
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    speculate: Any = None  # a way by name, or a draft
    schema: Mapping[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    typical_p: float | None = None
    begins: tuple[str, ...] = ()  # the text with which each row begins, which is not shown

    def __post_init__(self) -> None:
        _whole("max_new_tokens", self.max_new_tokens, 0)
        _number("temperature", self.temperature, "0 (greedy) or more", lambda t: t >= 0)
        if self.top_k is not None:
            _whole("top_k", self.top_k, 1, "; top_k=None switches it off" if self.top_k == 0 else "")
        for name, (what, good) in NUMBERS.items():
            if (value := getattr(self, name)) is not None:
                _number(name, value, what, good)
        for token, bias in (self.logit_bias or {}).items():
            _whole("a token of logit_bias", token, 0)
            _number(f"logit_bias of token {token}", bias, "added to its score", lambda b: True)
        for text in self.stops:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop must be a text or several, each of at least one character; got {self.stop!r}")
        for seed in self.seed if isinstance(self.seed, Sequence) else [self.seed]:
            if seed is not None:
                _whole("seed", seed, 0)
        if self.cache not in CACHES:
            raise ValueError(f"cache must be True, False or 'int8'; got {self.cache!r:.80}")
        if isinstance(self.speculate, str) and self.speculate not in GUESSES:
            raise ValueError(f"speculate must be {', '.join(map(repr, GUESSES))} or None; got {self.speculate!r:.80}")
        if self.speculate is not None and not self.cache:
            raise ValueError("speculate saves passes over a cache: it needs one")
        self._check_grammar()
        self._check_beams()

    def _check_grammar(self) -> None:
        heals = True if self.begins else None
        if sum(value is not None for value in (self.schema, self.regex, self.grammar, heals)) > 1:
            raise ValueError("give schema, regex, grammar or heal, one of them")
        for name, what in (("regex", "regular expression"), ("grammar", "Lark grammar")):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"{name} must be a {what}; got {value!r:.80}")
        if self.schema is not None:
            try:
                good = isinstance(self.schema, Mapping) and bool(json.dumps(self.schema, allow_nan=False))
            except (TypeError, ValueError, RecursionError):
                good = False
            if not good:
                raise ValueError(f"schema must be a JSON schema, a dict of plain values; got {self.schema!r:.80}")

    def _check_beams(self) -> None:
        _whole("num_beams", self.num_beams, 1)
        _number("length_penalty", self.length_penalty, "such as 1 (the mean over the tokens)", lambda p: True)
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping must be True, False or 'never'; got {self.early_stopping!r}")
        if self.num_beams == 1 and (self.length_penalty != 1 or self.early_stopping):
            raise ValueError("length_penalty and early_stopping are for a beam search: set num_beams to 2 or more")
        if self.num_beams == 1:
            return
        asked = {"temperature": self.temperature or None, "heal": True if self.begins else None}
        asked |= {name: getattr(self, name) for name in DRAWN}
        if drawing := [f"{name}={value!r}" for name, value in asked.items() if value is not None]:
            raise ValueError(
                f"a beam search takes the likeliest text and does not sample: with num_beams={self.num_beams} "
                f"leave out {', '.join(drawing)}"
            )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def seeds(self, rows: int) -> list[int | None]:
        """One seed for each row. A single number is the seed of every row: no row depends on its index."""
        if not isinstance(self.seed, Sequence):
            return [self.seed] * rows
        if len(self.seed) != rows:
            raise ValueError(f"seed must be one number, or one for each of the {rows} prompts; got {len(self.seed)}")
        return list(self.seed)


def guesser(speculate: str | None, draft: Any) -> Any:
    """The `speculate` of `Options`: who guesses, a draft or a way by name."""
    if speculate is not None and draft is not None:
        raise ValueError(f"a draft guesses, and so does speculate={speculate!r}: give one of them")
    return speculate if draft is None else draft


def _whole(name: str, value: Any, least: int, hint: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more; got {value!r}{hint}")


def _number(name: str, value: Any, what: str, good: Any) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not real or not good(value):
        raise ValueError(f"{name} must be a number {what}; got {value!r}")
