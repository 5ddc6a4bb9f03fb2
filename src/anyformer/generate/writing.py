"""Streaming of tokens to text, up to a stop string."""

from __future__ import annotations

from typing import Any


class Writer:
    """The text of one row. The results of `put` and `end`, joined, are the text; returned text never changes later.

    Held back are incomplete characters, and text that could be the beginning of a stop string: a stop string is found
    across tokens, and no part of it is returned. Special tokens are not text, but a stop string can contain them.

    Args:
        before: the last token of the prompt that is continued, or None. Some tokenizers drop the space in front of a
            text, but this text continues another.
        stops: the text ends before the one of these that is complete first.
        begin: the text begins with it, and shows what comes behind.
    """

    def __init__(self, tokenizer: Any, before: int | None, stops: tuple[str, ...], begin: str = ""):
        self.tokenizer, self.stops, self.stopped = tokenizer, stops, False
        added = tokenizer.core.get_added_tokens_decoder()
        named = {i: token.content for i, token in added.items() if token.special}
        self._marks = {i: text for i, text in named.items() if any(text in stop for stop in stops)}
        self._hidden = [(0, len(begin))]  # their positions in the text, which does not show them
        self._stream = tokenizer.stream()
        if before is not None and (not self._known(before) or not self._stream.put(before)):
            self._stream = tokenizer.stream()  # no token is known to end a text
        self._held = ""  # could be the beginning of a stop string
        self._length = 0  # characters so far
        self._lengths: list[int] = []  # the same after each token
        self._stop = 0  # where the stop string begins

    def put(self, token: int) -> str:
        """The text that is final after the token; often empty. `stopped` is True if the text ends here."""
        mark = self._marks.get(token, "")
        if mark:
            self._hidden.append((self._length, self._length + len(mark)))
        text = self._take(mark or self._stream.put(token)) if self._known(token) else ""
        self._lengths.append(self._length)
        return text

    def end(self) -> str:
        """The text held back, after the last token."""
        if self.stopped:
            return ""
        text = self._take(self._stream.end())
        return text if self.stopped else text + self._shown(self._held, self._length)

    def tokens(self) -> int:
        """The number of tokens in the text; with a stop string, those that end before it begins."""
        if not self.stopped:
            return len(self._lengths)
        whole = max((n for n in self._lengths if n <= self._stop), default=0)
        return (
            self._lengths.index(whole) + 1 if whole else 0
        )  # later ones of this length hold half a character of the stop

    def _known(self, token: int) -> bool:
        """True if the token has a text; a model can have more rows than its tokenizer has tokens."""
        return self.tokenizer.core.id_to_token(token) is not None

    def _take(self, piece: str) -> str:
        self._length += len(piece)
        held = self._held + piece
        stops = [(at + len(stop), at) for stop in self.stops if (at := held.find(stop)) >= 0]
        if stops:
            _, at = min(stops)
            self.stopped, self._stop = True, self._length - len(held) + at
            return self._shown(held[:at], self._stop)
        cut = next((i for i in range(len(held)) if any(stop.startswith(held[i:]) for stop in self.stops)), len(held))
        self._held = held[cut:]
        return self._shown(held[:cut], self._length - len(self._held))

    def _shown(self, text: str, end: int) -> str:
        """A text that ends at position `end`, without the special tokens in it."""
        first = end - len(text)
        for begin, stop in reversed(self._hidden):
            if stop > first and begin < end:
                text = text[: max(begin - first, 0)] + text[stop - first :]
        return text
