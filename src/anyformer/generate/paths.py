"""Reading the paths of a CTC head: the likeliest path, or the likeliest text of all paths, with a language model.

```
a a - a b b -   ──joined, without blanks──>   a a b
```
T frames, V symbols.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer.generate.decoding import evaluating
from anyformer.parts.sound.heads import CTC

NEVER = -math.inf
FAINT = 1e-6  # a symbol with a smaller probability in a frame begins no text of a beam search


def ctc_head(model: Any) -> CTC | None:
    """The head that reads symbols from frames, if the model's scores are those."""
    heads = getattr(model, "heads", None)
    first = next(iter(heads.values()), None) if heads is not None and len(heads) else None
    return first if isinstance(first, CTC) else None


@dataclass(frozen=True)
class Symbol:
    """A symbol of a path, and its first and last frame."""

    id: int
    first: int
    last: int


def best_path(log: Tensor, blank: int) -> list[Symbol]:
    """The symbols of the likeliest path: the best of each frame, joined. log (T, V)."""
    read: list[Symbol] = []
    before = blank
    for frame, best in enumerate(log.argmax(-1).tolist()):
        if best != blank and best != before:
            read.append(Symbol(best, frame, frame))
        elif best != blank:
            read[-1] = Symbol(best, read[-1].first, frame)
        before = best
    return read


def greedy(logits: Tensor, keep: Tensor | None, blank: int) -> list[list[int]]:
    """The symbols of the likeliest path of each row; frames of padding are left out. (B, T, V), (B, T)."""
    rows = [row if keep is None else row[keep[i]] for i, row in enumerate(logits)]
    return [[symbol.id for symbol in best_path(row, blank)] for row in rows]


Scorer = Callable[[Sequence[tuple[int, ...]]], list[float]]  # symbols of texts -> log p of each, so far


@dataclass
class Beam:
    """A text in a beam search.

    Attributes:
        blank, symbol: log p of its paths that end in a blank, or in its last symbol.
        known: log p by the language model and the bonus for each word, of its whole words.
    """

    blank: float = NEVER
    symbol: float = NEVER
    known: float = 0.0

    @property
    def score(self) -> float:
        """Of all paths, and the language model."""
        return float(_plus(self.blank, self.symbol)) + self.known


def beam_search(
    log: Tensor, blank: int, beams: int = 16, scorer: Scorer | None = None, ends: int | None = None
) -> tuple[list[int], float]:
    """The likeliest text over all of its paths, and its score (Graves and Jaitly, 2014; Hannun et al., 2014;
    arXiv:1408.2873).

    Args:
        log: (T, V), log p of each symbol in each frame.
        beams: texts that are kept after each frame. With enough of them the search is exact.
        scorer: added to the score of a text where a word ends, and at the end.
        ends: the symbol that ends a word, with a scorer.
    """
    if beams < 1:
        raise ValueError(f"beams is the number of texts that are kept, at least 1; got {beams}")
    held: dict[tuple[int, ...], Beam] = {(): Beam(blank=0.0)}
    for frame in log.tolist():
        held = _step(held, frame, blank)
        _know(held, scorer, ends)
        best = sorted(held.items(), key=lambda item: item[1].score, reverse=True)[:beams]
        held = dict(best)
    if scorer is not None:
        open_texts = [text for text in held if text and text[-1] != ends]
        for text, value in zip(open_texts, scorer(open_texts) if open_texts else [], strict=True):
            held[text].known = value
    text, beam = max(held.items(), key=lambda item: item[1].score)
    return list(text), beam.score


def _step(held: dict[tuple[int, ...], Beam], frame: list[float], blank: int) -> dict[tuple[int, ...], Beam]:
    """The texts after one more frame."""
    after: dict[tuple[int, ...], Beam] = {}

    def at(text: tuple[int, ...], like: Beam) -> Beam:
        return after.setdefault(text, Beam(known=like.known))

    likely = [(v, p) for v, p in enumerate(frame) if p > math.log(FAINT) and v != blank]
    for text, beam in held.items():
        stays, both = at(text, beam), _plus(beam.blank, beam.symbol)
        stays.blank = _plus(stays.blank, both + frame[blank])
        if text:
            stays.symbol = _plus(stays.symbol, beam.symbol + frame[text[-1]])
        for v, p in likely:
            longer = at((*text, v), beam)
            longer.symbol = _plus(longer.symbol, (beam.blank if text and v == text[-1] else both) + p)
    return after


def _know(held: dict[tuple[int, ...], Beam], scorer: Scorer | None, ends: int | None) -> None:
    """Scores the texts in which a word has just ended."""
    if scorer is None:
        return
    ended = [text for text in held if text and text[-1] == ends]
    for text, value in zip(ended, scorer(ended) if ended else [], strict=True):
        held[text].known = value


def _plus(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b == NEVER else a + math.log1p(math.exp(b - a))


class TextScorer:
    """log p of texts by a language model, weight log p + bonus for each word; each text is read once.

    Args:
        model: a decoder of text with its tokenizer. spelling: of the symbols: ids to a text.
        weight: of log p, in nats. bonus: for each word, against short texts.
    """

    def __init__(self, model: Any, spelling: Callable[[Sequence[int]], str], weight: float = 0.5, bonus: float = 1.0):
        if not getattr(model, "generates", False) or model.reads_source or model.tokenizer is None:
            raise ValueError("lm is a language model with its tokenizer, such as gpt or llama: it says the next token")
        if not weight >= 0:
            raise ValueError(f"lm_weight must be at least 0; got {weight}")
        self.model, self.spelling, self.weight, self.bonus = model, spelling, weight, bonus
        self.known: dict[str, float] = {"": 0.0}

    def __call__(self, texts: Sequence[tuple[int, ...]]) -> list[float]:
        """The scores of some texts."""
        spelt = [self.spelling(text).strip() for text in texts]
        if new := [text for text in dict.fromkeys(spelt) if text not in self.known]:
            self._read(new)
        return [self.weight * self.known[text] + self.bonus * len(text.split()) for text in spelt]

    @torch.no_grad()
    def _read(self, texts: list[str]) -> None:
        """Reads texts: the sum of log p of their tokens after the begin token, or after the first one without it."""
        t, begin = self.model.tokenizer, self.model.tokenizer.bos_id
        rows = [[*([] if begin is None else [begin]), *t.encode(text, special=False)] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [row[0]] * (width - len(row)) for row in rows])
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        log = logits.float().log_softmax(-1).cpu()[:, :-1].gather(2, ids[:, 1:, None])[..., 0]  # (texts, width - 1)
        for text, row, values in zip(texts, rows, log, strict=True):
            self.known[text] = float(values[: len(row) - 1].sum())
