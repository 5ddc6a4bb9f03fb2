"""One text that is being written: its options, its rules, its draws, and what of it is final. V vocabulary."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anyformer.generate.constraining import constraints
from anyformer.generate.decoding import Rows, unfinite
from anyformer.generate.options import Options
from anyformer.generate.prompts import end_ids
from anyformer.generate.rules import Rules
from anyformer.generate.sampling import Sampler
from anyformer.generate.tools import Call
from anyformer.generate.writing import Writer
from anyformer.hub.text.tokenizer import byte_letters

LEAST = -9999.0  # a log-probability of minus infinity, which JSON has no number for
LETTERS = {letter: byte for byte, letter in enumerate(byte_letters())}


@dataclass(frozen=True)
class Token:
    """A token of a text.

    Attributes:
        log: the logarithm of its probability at temperature 1, before all options; None for the first of a prompt.
        best: the likeliest tokens there, with theirs.
    """

    id: int
    log: float | None = None
    best: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What became final of a text, with the tokens since the last piece.

    Attributes:
        end: None while the text goes on; "stop", "length" or "tool_calls".
        calls: of functions, with the last piece.
    """

    text: str
    tokens: list[Token] = field(default_factory=list)
    end: str | None = None
    calls: tuple[Call, ...] = ()


class Text:
    """A text that is being written, token by token, from the scores of its row.

    Args:
        run: the batch that has its prompt. row: where.
        before: the last token of that prompt, or None where the text does not continue it.
        top: likeliest tokens to report at each token; None = no log-probabilities.

    Raises:
        ValueError: as `Sampler` and `Rules`.
    """

    def __init__(self, run: Rows, row: int, before: int | None, options: Options, top: int | None):
        model = run.model
        self.options, self.top, self.ends, self.count = options, top, end_ids(model), 0
        self.rules = Rules(model, self.ends, options.max_new_tokens)
        self.sampler = Sampler(
            options, run.begins[row : row + 1], model.vocab, run.device, constraints(model, options, 1)
        )
        self.written = list(run.begins[row])
        self.writer = Writer(model.tokenizer, before, options.stops)
        self.held: list[Token] = []  # tokens whose text is not final
        self.given, self.ended = 0, False  # tokens in pieces so far

    def take(self, scores: Tensor) -> tuple[int, Piece]:
        """The next token from the scores of the row, (1, V), and what is final with it.

        Raises:
            ValueError: if the scores are not finite.
        """
        token = int(self.sampler.choose(self.rules.apply(scores, [self.written], self.count)))
        if token < 0:
            raise ValueError(unfinite(self.count))
        self.count += 1
        if token in self.ends:
            return token, self.close("stop")
        self.written.append(token)
        self.held.append(logs(scores, [token], self.top)[0])
        text = self.writer.put(token)
        if self.writer.stopped:
            return token, self._given(text, "stop")
        if self.count == self.options.max_new_tokens:
            return token, self._given(text + self.writer.end(), "length")
        return token, self._given(text) if text else Piece("")

    def close(self, end: str) -> Piece:
        """The rest of the text, which ends here."""
        return self._given(self.writer.end(), "stop" if self.writer.stopped else end)

    def _given(self, text: str, end: str | None = None) -> Piece:
        tokens, self.held = self.held, []
        if self.writer.stopped:  # the tokens of a stop string are not part of the text
            tokens = tokens[: max(0, self.writer.tokens() - self.given)]
        self.given += len(tokens)
        return Piece(text, tokens, end)


def logs(scores: Tensor, tokens: list[int], top: int | None) -> list[Token]:
    """Tokens with their log-probabilities under scores (T, V), and the `top` likeliest at each; None = neither."""
    if top is None:
        return [Token(token) for token in tokens]
    every = scores.float().log_softmax(-1).clamp(min=LEAST)  # (T, V)
    index = torch.tensor(tokens, device=scores.device)[:, None]
    own = every.gather(1, index)[:, 0].tolist()
    values, ids = every.topk(min(top, every.shape[1]))
    best = [tuple(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    return [Token(token, log, b) for token, log, b in zip(tokens, own, best, strict=True)]


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes of one token's text; a token can be a part of a character."""
    letters = tokenizer.core.id_to_token(token)
    if letters is None:
        return b""
    if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", letters):
        return bytes([int(byte[1], 16)])
    added = tokenizer.core.get_added_tokens_decoder()
    if token not in added and "ByteLevel" in repr(tokenizer.core.decoder) and all(c in LETTERS for c in letters):
        return bytes(LETTERS[c] for c in letters)
    return letters.replace("▁", " ").encode()


def token_text(tokenizer: Any, token: int) -> str:
    r"""One token as text; bytes that are no whole characters are written "bytes:\xe6"."""
    data = token_bytes(tokenizer, token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
