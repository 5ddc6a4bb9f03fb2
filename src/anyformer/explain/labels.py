"""Tokens as short labels that can be read on an axis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SPACE, NEWLINE, TAB = "␣", "⏎", "⇥"
LONGEST = 14  # characters of one label


def labels(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """One label for each token: spaces, line ends and tabs are visible, special tokens unchanged.

    Without a tokenizer the ids themselves.
    """
    ids = [int(i) for i in ids]
    return [str(i) for i in ids] if tokenizer is None else [label(tokenizer, i) for i in ids]


def label(tokenizer: Any, token: int) -> str:
    """The label of one token: `Ġcat` and `▁cat` are `␣cat`, `##ing` stays, half a character is its piece."""
    piece = tokenizer.core.id_to_token(token)
    if piece is None:  # the model's table has more rows than the tokenizer has tokens
        return str(token)
    text = tokenizer.decode([token], skip_special=False)
    if piece.startswith("##") or "\ufffd" in text or not text:
        text = piece
    elif piece.startswith("▁") and not text.startswith(" "):  # decoders drop the space at the start of a text
        text = f" {text}"
    text = text.replace(" ", SPACE).replace("\n", NEWLINE).replace("\t", TAB)
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
