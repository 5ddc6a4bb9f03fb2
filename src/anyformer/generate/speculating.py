"""Speculative decoding: tokens are guessed by look-up or by a draft, then verified at once.

```
text so far … the cat sat on … the cat ─ guess: sat on … ─┐
                                                          ├─ one pass over the last token and the guess
draw at each place; go on while the draw is the guess  <──┘
```
Every token is drawn from the model's own scores behind the tokens before it, by the row's own draws: the text is that
of decoding token by token, greedy or drawn (Leviathan et al., 2023, arXiv:2211.17192, whose rule for a guess without
alternatives this is; prompt look-up: Saxena, 2023).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from anyformer.generate.decoding import Decoding, evaluating, unfinite
from anyformer.generate.drafting import Draft, drafted
from anyformer.generate.options import Options

LONGEST, SHORTEST = 3, 2  # tokens that must have come before in the same order
GUESSED = 8  # tokens at most


class Speculation(Decoding):
    """One row that is continued, several tokens a pass where guesses are right; else as `Decoding`.

    The state returns behind the last token that was right; one that cannot (a recurrent state returns only to a mark)
    returns before the guess, and what was right is read again with the next one.

    Attributes:
        seen: the text so far, as that which guesses sees it: of a look-up the tokens of a source included.
        passes: passes of the model.
    """

    def __init__(
        self, model: Any, prompts: list[list[int]], options: Options, media: Mapping[str, Tensor] | None = None
    ):
        super().__init__(model, prompts, options, media)
        assert len(self.begins) == 1
        self.passes = 0
        self.seen: Lookup | Draft
        if options.speculate != "lookup":
            self.seen = drafted(model, options.speculate, prompts, options.max_new_tokens, media or {})
            return
        self.seen = Lookup()
        for ids in (self.source.get("input_ids"), self.ids):
            self.seen.add([] if ids is None else ids[0].tolist())

    @torch.inference_mode()
    def step(self) -> list[tuple[int, int]]:
        """The next tokens of the row: (row, token), at least one unless the text ends here."""
        self.passes += 1
        guess = [] if self.new is None else self._guess(self.options.max_new_tokens - self.count - 1)
        if not guess:
            drawn = super().step()
            self.seen.add(token for _, token in drawn)
            return drawn
        assert self.state is not None and self.new is not None
        row, unread, before = self.rows[0], self.new, self.state.length
        self.state.mark()
        scores = self._read(guess)[:, unread.shape[1] - 1 :]  # (1, N + 1, V)
        tokens: list[int] = []
        for place in range(len(guess) + 1):
            token = int(self.sampler.choose(self.ruled(scores[:, place])))
            if token < 0:
                raise ValueError(unfinite(self.count))
            self.count += 1
            tokens.append(token)
            self.written = [[*self.written[0], token]]
            if token in self.ends or self.count == self.options.max_new_tokens:
                self.rows = []
            if not self.rows or place == len(guess) or token != guess[place]:
                break
        if self.rows:
            self._return(before, before + unread.shape[1] + len(tokens) - 1, unread, tokens)
        self.seen.add(tokens)
        return [(row, token) for token in tokens if token not in self.ends]

    def _guess(self, room: int) -> list[int]:
        """Tokens that may come next, at most `room`, chosen as the text is, by draws that leave its own alone."""
        if isinstance(self.seen, Lookup):
            guess = self.seen.guess(min(GUESSED, room))
            return list(itertools.takewhile(lambda token: token not in self.model.placeholders, guess))  # no new medium
        ahead = self.sampler.fork()
        return self.seen.guess(room, lambda scores, i: max(0, int(ahead.choose(self.ruled(scores, self.count + i)))))

    def _read(self, guess: list[int]) -> Tensor:
        """Scores behind the unread tokens and the guess, all of which are in the state then."""
        assert self.new is not None
        ids = torch.cat((self.new, torch.tensor([guess], device=self.device)), 1)
        with evaluating(self.model):
            return self.model(**{f"{self.model.target}input_ids": ids}, state=self.state).logits

    def _return(self, before: int, right: int, unread: Tensor, tokens: list[int]) -> None:
        """The state without the tokens behind `right`; `before` is its length before the guess."""
        assert self.state is not None
        self.new = torch.tensor([tokens[-1:]], device=self.device)
        if right == self.state.length:
            return
        try:
            self.state.trim(right)
        except ValueError:
            self.state.trim(before)
            self.new = torch.cat((unread, torch.tensor([tokens], device=self.device)), 1)


class Lookup:
    """What followed the same tokens before; of the longest match that which came last."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.behind: dict[tuple[int, ...], int] = {}  # the place behind the last such tokens

    def add(self, tokens: Iterable[int]) -> None:
        """Appends tokens of the text."""
        for token in tokens:
            for size in range(SHORTEST, LONGEST + 1):
                if len(self.tokens) >= size:
                    self.behind[tuple(self.tokens[-size:])] = len(self.tokens)
            self.tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """The next `count` tokens; none without a match. A match that reaches the end goes on with its own copy."""
        for size in range(LONGEST, SHORTEST - 1, -1):
            place = self.behind.get(tuple(self.tokens[-size:]))
            if place is not None:
                period = self.tokens[place:]
                return [period[i % len(period)] for i in range(count)]
        return []
