"""Citations made by code: which passage says what a sentence says, and where.

```
sentence ── against each sentence of each passage ── overlap, cosine, numbers ──> support ──> the best passage: [n]
                                                                                      └─ too little: unsupported
```
Support of a sentence by a span of a passage is the mean of two: the share of its telling words that the span has, and
the cosine of their vectors. Below half of the words, below `LEAST`, or with a figure that is not in the passage, a
sentence is unsupported. One of fewer than four telling words ("In 1873.") says something only as an answer: it is read
behind the question, and all its own words must be in the span.

Passages that support a sentence as well as the best one are weighed by their relevance to it (`know.relevance`): the
most relevant one is cited. Without a difference, the number that the model wrote stays, if it is one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from anyformer.know import words
from anyformer.know.encoder import Encoder
from anyformer.know.relevance import Relevance
from anyformer.know.searching import Hit
from anyformer.know.store import Row

LEAST = 0.55  # of support
HALF = 0.5  # of the words
BETTER = 0.05  # of support, by which another passage must be the better one
LIKELIER = 0.1  # nats of relevance that are no difference
SHORT = 4  # telling words from which a sentence speaks for itself
LONGEST = 400  # characters of a quoted span
MARK = re.compile(
    r"[\[【(]\s*(?:(?:source|passage|see|ref)s?\.?\s*)?\d{1,4}(?:\s*[,;–-]\s*\d{1,4})*\s*[\]】)](?:\([^)\s]*\))?", re.I
)
SPAN = re.compile(r"[\[【]\s*(?:\w+\s*)?(\d{1,4})\s*[\]】]")
LINK = re.compile(r"\[([^\]\n]*)\]\([^)\n]*\)")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


Weigh = Callable[[int], float] | None  # the relevance of a passage, by its number


@dataclass(frozen=True)
class Span:
    """A sentence of a passage, or some."""

    row: Row
    begin: int
    end: int

    @property
    def text(self) -> str:
        """The quoted text, in one line, without signs that steer a terminal."""
        whole = shown(" ".join(self.row.text[self.begin : self.end].split()))
        return whole if len(whole) <= LONGEST else f"{whole[:LONGEST]}…"

    @property
    def parts(self) -> tuple[str, str, str]:
        """The passage: what stands before the quoted text, that text, and what stands behind it."""
        text = self.row.text
        before, quoted, behind = (
            shown(part) for part in (text[: self.begin], text[self.begin : self.end], text[self.end :])
        )
        return before, quoted, behind

    @property
    def place(self) -> str:
        """File and lines."""
        return shown(self.row.place(self.begin, self.end))


@dataclass(frozen=True)
class Statement:
    """A sentence of an answer.

    Attributes:
        number: of the passage that supports it, from 1; None = unsupported.
        span: the sentence of that passage.
        overlap, cosine: with the span; of the best one, if unsupported.
        replaced: the number that the model had written, if another passage supports the sentence better.
        relevance: of the passage to the sentence, in nats; None where no other supports it as well.
    """

    text: str
    number: int | None
    span: Span | None
    overlap: float
    cosine: float
    replaced: int | None = None
    relevance: float | None = None

    @property
    def quote(self) -> str:
        """The text of the span; empty if unsupported."""
        return "" if self.span is None else self.span.text

    @property
    def place(self) -> str:
        """The place of the span; empty if unsupported."""
        return "" if self.span is None else self.span.place


def shown(text: str) -> str:
    """A text without control characters, which could write over what stands beside it."""
    return CONTROL.sub("", text)


def spans(row: Row) -> list[Span]:
    """The sentences of a passage; a heading is part of none."""
    return [Span(row, begin, end) for begin, end in words.sentences(row.text)]


def cite(
    question: str, text: str, hits: Sequence[Hit], encoder: Encoder, relevance: Relevance | None = None
) -> list[Statement]:
    """The sentences of an answer, with the numbers of the passages that support them; one that comes again is left out.

    Args:
        text: as a model wrote it; its marks such as [1], (2), [3](link) are taken out first.
        hits: the passages, in the order of their numbers.
        relevance: of the passages to the parts of this text; None = it decides nothing.
    """
    kept = dict[str, tuple[list[int], Weigh]]()
    for begin, end in words.sentences(text):
        part = text[begin:end]
        cleaned = " ".join(MARK.sub("", LINK.sub(r"\1", shown(part))).split())
        if re.search(r"\w", cleaned):
            weigh = None if relevance is None else partial(relevance.of, begin=begin, end=end)
            kept.setdefault(cleaned, ([int(n) for n in SPAN.findall(part)], weigh))
    if not kept:
        return []
    every = [(number, span) for number, hit in enumerate(hits, 1) for span in spans(hit.row)]
    read = [part if len(words.content(part)) >= SHORT else f"{question} {part}" for part in kept]
    said = encoder.vectors(read)  # (S, D)
    quoted = encoder.vectors([span.row.text[span.begin : span.end][:2000] for _, span in every])  # (Q, D)
    figures = [words.numbers(hit.row.text) for hit in hits]
    return [
        _supported(part, whole, *given, every, cosines, figures)
        for (part, given), whole, cosines in zip(kept.items(), read, said @ quoted.T, strict=True)
    ]


def _supported(
    text: str,
    read: str,
    proposed: Sequence[int],
    weigh: Weigh,
    every: Sequence[tuple[int, Span]],
    cosines: np.ndarray,
    figures: Sequence[set[str]],
) -> Statement:
    """The statement of one sentence; `read` is what is compared, `figures` the numbers in each passage, `weigh` the
    relevance of a passage."""
    telling, own = words.content(read), words.content(text) if read != text else set()
    best: dict[int, tuple[float, float, float, Span]] = {}
    good: dict[int, tuple[float, float, float, Span]] = {}
    for (number, span), cosine in zip(every, cosines.tolist(), strict=True):
        held = words.content(span.row.text[span.begin : span.end])
        overlap = len(telling & held) / max(len(telling), 1)
        found = ((overlap + cosine) / 2, overlap, cosine, span)
        if number not in best or found[0] > best[number][0]:
            best[number] = found
        able = found[0] >= LEAST and overlap >= HALF and own <= held and words.numbers(text) <= figures[number - 1]
        if able and (number not in good or found[0] > good[number][0]):
            good[number] = found
    if not good:
        _, overlap, cosine, _ = max(best.values(), key=lambda f: f[0])
        return Statement(text, None, None, overlap, cosine)
    most = max(found[0] for found in good.values())
    near = sorted((n for n in good if good[n][0] >= most - BETTER), key=lambda n: (n not in proposed, -good[n][0], n))
    number, weights = near[0], dict[int, float]()
    if weigh is not None and len(near) > 1:
        weights = {n: weigh(n) for n in near}
        number = next(n for n in near if weights[n] >= max(weights.values()) - LIKELIER)
    replaced = proposed[0] if proposed and number not in proposed else None
    _, overlap, cosine, span = good[number]
    return Statement(text, number, span, overlap, cosine, replaced, weights.get(number))
