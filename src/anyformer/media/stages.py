"""Stages: the vocabularies of a cascade from text to codes of sound. B sounds, T frames, Q books, L ids.

| stage    | reads              | writes                    |
|----------|--------------------|---------------------------|
| semantic | text               | semantic codes            |
| coarse   | text, semantic     | the first books, in turns |
| fine     | coarse             | the other books, in turns |

Each segment begins with a mark of its own; the codes of all segments and books of a stage have ids of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anyformer.core.part import check_option
from anyformer.core.value import Value

SEGMENTS = {
    "semantic": ("text", "semantic"),
    "coarse": ("text", "semantic", "coarse"),
    "fine": ("coarse", "fine"),
}


@dataclass(frozen=True)
class Layout(Value):
    """The ids of a stage: a mark for each of its segments, then the codes of each.

    Attributes:
        stage: semantic, coarse or fine.
        text: ids of the text. semantic: codes. codes: of a book. coarse, fine: books.
    """

    stage: str
    text: int
    semantic: int
    codes: int
    coarse: int
    fine: int

    def __post_init__(self) -> None:
        check_option("Layout", "stage", self.stage, tuple(SEGMENTS))
        if low := next((n for n in ("text", "semantic", "codes", "coarse", "fine") if getattr(self, n) < 1), None):
            raise ValueError(f"Layout: {low} is at least 1, got {getattr(self, low)}")

    @property
    def segments(self) -> tuple[str, ...]:
        """The names of its segments in their order; the last one is what it writes."""
        return SEGMENTS[self.stage]

    @property
    def vocab(self) -> int:
        """The number of ids."""
        return self.first("")

    def books(self, segment: str) -> int:
        """The codes of a frame in a segment."""
        return {"coarse": self.coarse, "fine": self.fine}.get(segment, 1)

    def each(self, segment: str) -> int:
        """The codes of a book, the tokens of the text."""
        return {"text": self.text, "semantic": self.semantic}.get(segment, self.codes)

    def mark(self, segment: str) -> int:
        """The id that begins a segment."""
        return self.segments.index(segment)

    def first(self, segment: str) -> int:
        """The id of the first code of a segment; behind the last one: the number of ids."""
        at = len(self.segments)
        for name in self.segments:
            if name == segment:
                return at
            at += self.books(name) * self.each(name)
        return at

    def ids(self, segment: str, codes: Tensor) -> Tensor:
        """Codes (B, T, Q), or (B, T) of one book, as ids of a segment without its mark, (B, T Q), frame by frame.

        Raises:
            ValueError: for another number of books, or a code outside of one.
        """
        codes = codes[..., None] if codes.ndim == 2 else codes
        books, each = self.books(segment), self.each(segment)
        if codes.ndim != 3 or codes.shape[2] != books:
            raise ValueError(f"{segment}: codes must be (batch, frames, {books}), got {tuple(codes.shape)}")
        bad = codes[(codes < 0) | (codes >= each)]
        if len(bad):
            raise ValueError(f"{segment}: code {int(bad[0])} is outside 0 to {each - 1}")
        return (codes + each * torch.arange(books, device=codes.device) + self.first(segment)).flatten(1)

    def codes_of(self, segment: str, ids: Tensor) -> Tensor:
        """The codes (B, T, Q) of the ids of a segment (B, T Q): the inverse of `ids`."""
        books, each = self.books(segment), self.each(segment)
        offset = each * torch.arange(books, device=ids.device) + self.first(segment)
        return ids.unflatten(1, (-1, books)) - offset

    def allowed(self, segment: str, place: int) -> tuple[int, int]:
        """The ids that can stand at a place of a segment: from, and up to but without."""
        first = self.first(segment) + place % self.books(segment) * self.each(segment)
        return first, first + self.each(segment)

    def row(self, given: dict[str, Tensor]) -> Tensor:
        """The ids of segments with their marks, one behind the other, (B, L). The text is (B, S) tokens.

        Raises:
            ValueError: for a segment that the stage does not read, or a missing one.
        """
        names = self.segments[: len(given)]
        if set(given) != set(names):
            raise ValueError(
                f"the stage {self.stage} has {', '.join(self.segments)}, in this order; got {sorted(given)}"
            )
        rows = len(next(iter(given.values())))
        parts = []
        for name in names:
            parts += [torch.full((rows, 1), self.mark(name)), self.ids(name, given[name].cpu())]
        return torch.cat(parts, 1)
