"""A document: its text, where its paragraphs are and under which headings, and the line of every character."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass


class NotRead(ValueError):
    """The reason why a file is left out."""


@dataclass(frozen=True)
class Block:
    """A paragraph, a heading or a function: text[begin:end].

    Attributes:
        trail: the headings above it, the outermost first.
        heading: it is one itself.
    """

    begin: int
    end: int
    trail: tuple[str, ...] = ()
    heading: bool = False


@dataclass(frozen=True)
class Document:
    """The text of a file.

    Attributes:
        blocks: in order; what is outside of them is white space.
        marks: the offsets at which a line (a page) begins; numbers: its number in the file, from 1.
        unit: "line" or "page".
        note: what could not be read of it; empty = all was.
    """

    text: str
    blocks: tuple[Block, ...]
    marks: Sequence[int]
    numbers: Sequence[int]
    unit: str = "line"
    note: str = ""

    def places(self, begin: int, end: int) -> list[tuple[int, int]]:
        """(offset behind begin, line or page that begins there) in text[begin:end]."""
        first = max(0, bisect.bisect_right(self.marks, begin) - 1)
        last = bisect.bisect_left(self.marks, end)
        found = [(max(0, self.marks[i] - begin), self.numbers[i]) for i in range(first, max(last, first + 1))]
        return [one for i, one in enumerate(found) if not i or one[1] != found[i - 1][1]]
