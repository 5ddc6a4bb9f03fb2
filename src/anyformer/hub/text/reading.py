"""One text as a model reads it: the same ids in training, in generation and for vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reading:
    """The ids of a text with the tokens around it; the last `closing` of them close every text."""

    ids: list[int]
    closing: int

    def cut(self, limit: int, closed: bool = True) -> list[int]:
        """At most `limit` ids: the end of the text is cut; its closing tokens stay if `closed`."""
        if len(self.ids) <= limit:
            return self.ids
        closing = min(self.closing, limit) if closed else 0
        return self.ids[: limit - closing] + self.ids[len(self.ids) - closing :]


def reading(tokenizer: Any, text: str, ends: bool = False) -> Reading:
    """A text as the tokenizer's own model reads it.

    If the tokenizer adds no special tokens but has roles for them, its [CLS] and [SEP] are added, or, if the text
    `ends` (a source or a target), its end token.

    Raises:
        ValueError: for anything but text that UTF-8 can encode.
    """
    try:
        encoded = tokenizer.core.encode(text)
    except TypeError:
        raise ValueError(f"text: expected a str that UTF-8 can write, got {text!r:.60}") from None
    ids, special, closing = list(encoded.ids), encoded.special_tokens_mask, 0
    if any(special):
        while closing < len(ids) and special[-1 - closing]:
            closing += 1
        return Reading(ids, closing)
    if ends and tokenizer.role_id("eos_token") is not None:
        return Reading([*ids, tokenizer.role_id("eos_token")] if ids else [], 1)
    cls, sep = tokenizer.role_id("cls_token"), tokenizer.role_id("sep_token")
    return Reading(ids, 0) if cls is None or sep is None or not ids else Reading([cls, *ids, sep], 1)


def of_words(tokenizer: Any, words: Sequence[str]) -> tuple[list[int], list[int | None]]:
    """A text of words, as a tagger reads it: the ids between [CLS] and [SEP], and the position of each word's first
    token; None for a word without tokens.

    Raises:
        ValueError: for a tokenizer without [CLS] and [SEP].
    """
    ids, positions = [_around(tokenizer, "cls_token")], []
    for word in words:
        new = tokenizer.encode(f" {word}" if len(ids) > 1 else word, special=False)
        positions.append(len(ids) if new else None)
        ids += new
    return [*ids, _around(tokenizer, "sep_token")], positions


def _around(tokenizer: Any, name: str) -> int:
    if (token := tokenizer.role_id(name)) is None:
        raise ValueError(f"to label words, the tokenizer needs a {name}, and this one has none")
    return token
