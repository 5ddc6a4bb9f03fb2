"""Running text, and which medium a recipe reads: a decoder with a head of tokens continues bytes.

B rows of a batch, N pieces, T bytes of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core.recipe import Recipe
from anyformer.data import text as running
from anyformer.edge.medium import ODD, Medium, Part, Pictures, Sounds, Texts
from anyformer.hub.processors.images import ImageProcessor
from anyformer.hub.processors.sounds import SoundProcessor
from anyformer.hub.processors.waves import WaveProcessor
from anyformer.hub.text.tokenizer import Tokenizer

SCORED = 1 << 14  # bytes on which models of running text are compared on the way


class Running(Medium):
    """Running text as bytes, in pieces of `tokens` that follow one another: a piece, and the byte behind it.

    Args:
        tokens: bytes of a piece.
    """

    name, script, labelled = "pieces of text", Path(__file__).with_name("bytes.txt"), False

    def __init__(self, tokens: int):
        self.tokens = tokens
        self.looked = max(1, SCORED // tokens)
        self.tokenizer = Tokenizer.bytes_level()

    def rows(self, file: str | Path) -> Iterator[tuple[bytes, Any]]:
        yield running.read(file).encode(), None

    def kept(self, items: list[bytes]) -> np.ndarray:
        """The pieces, (N, T + 1): the last byte of one is the first of the next; what is left of the beginning is not
        read."""
        text = np.frombuffer(b"".join(items), np.uint8)
        count = max(0, len(text) - 1) // self.tokens
        starts = len(text) - 1 - self.tokens * np.arange(count, 0, -1)
        return text[starts[:, None] + np.arange(self.tokens + 1)]

    def learned(self, part: Part, vocabs: Sequence[int | None], folder: Path) -> None:
        """Nothing: bytes are their own ids."""

    @property
    def words(self) -> str:
        return f"{self.tokens} bytes at once"

    def sizes(self) -> dict[str, int]:
        return {"embed.vocab": self.tokenizer.vocab_size, "head.vocab": self.tokenizer.vocab_size}

    def facts(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def batch(self, part: Part, vocab: int | None, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids`, (B, T)."""
        return {"input_ids": torch.from_numpy(part.items[list(rows), :-1]).long()}

    def files(self, vocab: int | None) -> dict[str, bytes]:
        return {}

    def attach(self, model: Any, vocab: int | None) -> None:
        model.tokenizer = self.tokenizer

    def checks(self, part: Part, vocab: int | None) -> list[dict[str, Tensor]]:
        """Pieces of 1, 3, 17, 33 and 63 bytes, three at once."""
        ids = self.batch(part, vocab, range(min(3, len(part.items))))["input_ids"]
        return [{"input_ids": ids[:, :size]} for size in ODD if size <= self.tokens]


def reading(base: Recipe[Any], tokens: int, side: int | None = None, seconds: int | None = None) -> Medium:
    """The medium that a recipe's front-end reads.

    Args:
        tokens: of the longest text, or bytes of a piece of running text. side: of pictures. seconds: of sounds.

    Raises:
        ValueError: for a front-end of another medium, with its inputs.
    """
    there = dict(base.walk())
    if base.part.generates and there.get("embed.vocab") is not None and there.get("head.vocab") is not None:
        return Running(tokens)
    if there.get("embed.vocab") is not None:
        return Texts(tokens)
    main = getattr(getattr(there.get("embed"), "part", None), "main", None)
    if main in ImageProcessor.takes:
        return Pictures(side)
    if main in (WaveProcessor.takes[0], SoundProcessor.takes[0]):
        return Sounds(seconds)
    raise ValueError(
        f"a design reads texts, pictures or sounds, and {base.part.__name__} reads {main or 'several inputs'}"
    )
