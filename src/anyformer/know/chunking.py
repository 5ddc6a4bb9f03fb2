"""Passages of a document: along headings and paragraphs, each at most as long as its encoder reads, none cut.

```
blocks ── too long? at sentences, else at words ──> pieces ── fill up under one heading ──> passages ── counted again
```
What the encoder reads of a passage is its innermost headings and its text. Every character of the document that is not
white space is in exactly one passage; `Passages.lost` counts what is not, and it must be 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anyformer.know.document import Block, Document
from anyformer.know.encoder import Encoder

WINDOW = 20_000  # characters that are tokenised at once
WIDE = 24  # characters of a passage for each token of the limit: a word of any length is one unknown token to some
SENTENCE = re.compile(r"[.!?。！？][\"')\]”’]*\s+|\n")


@dataclass(frozen=True)
class Passage:
    """text[begin:end] of a document, under its headings.

    Attributes:
        head: the headings that the encoder reads in front of it.
        tokens: that the encoder reads, special ones included.
    """

    begin: int
    end: int
    trail: tuple[str, ...]
    head: str
    tokens: int

    def read(self, text: str) -> str:
        """The text that the encoder reads."""
        return self.head + text[self.begin : self.end]


@dataclass(frozen=True)
class Passages:
    """The passages of a document.

    Attributes:
        lost: tokens that no vector has read: beyond the encoder's limit, or outside of all passages.
    """

    rows: list[Passage]
    lost: int


def passages(document: Document, encoder: Encoder) -> Passages:
    """The passages of a document."""
    text, rows = document.text, list[Passage]()
    heads = dict[tuple[str, ...], tuple[str, int]]()
    for trail, run in _runs(document.blocks):
        if trail not in heads:
            heads[trail] = _head(trail, encoder)
        head, room = heads[trail]
        for begin, end in _filled(text, run, room, encoder):
            rows += _fitting(text, begin, end, trail, head, encoder)
    at, outside = 0, ""
    for row in rows:
        outside, at = outside + text[at : row.begin], row.end
    outside = "".join((outside + text[at:]).split())
    over = sum(max(0, row.tokens - encoder.limit) for row in rows)
    return Passages(rows, over + (len(encoder.offsets(outside)) if outside else 0))


def _runs(blocks: Sequence[Block]) -> Iterator[tuple[tuple[str, ...], list[Block]]]:
    """Neighbours under the same headings; a heading without text goes with what follows it."""
    run = list[Block]()
    for block in blocks:
        if run and block.trail != run[-1].trail and not all(b.heading for b in run):
            yield run[-1].trail, run
            run = []
        run.append(block)
    if run:
        yield run[-1].trail, run


def _head(trail: tuple[str, ...], encoder: Encoder) -> tuple[str, int]:
    """The innermost headings that take at most a quarter of the limit, and the tokens that are left for text."""
    around = encoder.counts([""])[0]
    head = ""
    for title in reversed(trail):
        longer = f"{title}\n{head}"
        if encoder.counts([longer])[0] - around > encoder.limit // 4:
            break
        head = longer
    return head, encoder.limit - encoder.counts([head])[0]


def _filled(text: str, run: Sequence[Block], room: int, encoder: Encoder) -> Iterator[tuple[int, int]]:
    """Spans of whole blocks, as many as there is room for; a block that is longer alone is cut at sentences."""
    begin, end, used = -1, -1, 0
    for block in run:
        for first, last, count in _pieces(text, block, room, encoder):
            if begin >= 0 and (used + count > room or last - begin > WIDE * room):
                yield begin, end
                begin, used = -1, 0
            begin, end, used = (first if begin < 0 else begin), last, used + count
    if begin >= 0:
        yield begin, end


def _pieces(text: str, block: Block, room: int, encoder: Encoder) -> Iterator[tuple[int, int, int]]:
    """(begin, end, tokens) of pieces of a block that have room alone."""
    at = block.begin
    while at < block.end:
        stop = min(block.end, at + min(WINDOW, WIDE * room))
        if stop < block.end and not text[stop].isspace():  # not inside a word, if it has an end in sight
            space = max(text.rfind(" ", at, stop), text.rfind("\n", at, stop))
            stop = space if space > at else stop
        places = encoder.offsets(text[at:stop])
        first = 0
        while len(places) - first > room:
            cut = _cut(text, at, places, first, room)
            yield at + (places[first][0] if first else 0), at + places[cut][0], cut - first
            first = cut
        if not places and not text[at:stop].strip():
            at = stop
            continue
        yield at + (places[first][0] if first else 0), stop, len(places) - first
        at = stop


def _cut(text: str, at: int, places: Sequence[tuple[int, int]], first: int, room: int) -> int:
    """The token before which to cut: at the last end of a sentence in the second half, else between words, else at the
    last token that fits. A token always begins where the one before it is over."""
    last = first + room
    best = 0
    for cut in range(last, first + room // 2, -1):
        here, before = at + places[cut][0], at + places[cut - 1][1]
        if places[cut][0] <= places[cut - 1][0]:  # bytes of one character
            continue
        around = text[before - 1 : here + 1]
        if SENTENCE.search(around):
            return cut
        if not best or (not _gap(text, at, places, best) and _gap(text, at, places, cut)):
            best = cut
    while not best:
        last -= 1
        if last <= first + 1:  # one character has more tokens than fit
            return first + room
        best = last if places[last][0] > places[last - 1][0] else 0
    return best


def _gap(text: str, at: int, places: Sequence[tuple[int, int]], cut: int) -> bool:
    """True if there is white space before this token."""
    here = at + places[cut][0]
    return text[here - 1].isspace() or text[here].isspace()


def _fitting(text: str, begin: int, end: int, trail: tuple[str, ...], head: str, encoder: Encoder) -> Iterator[Passage]:
    """The passage, or two or more where its tokens together are more than those of its parts."""
    begin += len(text[begin:end]) - len(text[begin:end].lstrip())
    end -= len(text[begin:end]) - len(text[begin:end].rstrip())
    if begin >= end:
        return
    tokens = encoder.counts([head + text[begin:end]])[0]
    if tokens <= encoder.limit or end - begin < 2:
        yield Passage(begin, end, trail, head, tokens)
        return
    middle = (begin + end) // 2
    space = text.rfind(" ", begin + 1, middle)
    middle = space if space > begin else middle
    yield from _fitting(text, begin, middle, trail, head, encoder)
    yield from _fitting(text, middle, end, trail, head, encoder)
