"""The encoder of an index: its tokens, its limit, and vectors of length 1. N texts, D width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from anyformer.generate.decoding import evaluating
from anyformer.generate.embedding import embed, limit_of
from anyformer.generate.prompts import tokenizer_of
from anyformer.hub.pooling import meaning
from anyformer.hub.text.reading import reading

MOST = 512  # tokens of a passage, whatever the encoder could read: an answer quotes passages
LEAST = 16  # tokens that an encoder must read at once
PROBE = "1 index, 7 files"


class Encoder:
    """A model that gives vectors to passages and questions, as its own files say.

    Args:
        model: of texts, with a tokenizer. name: of the user, for messages and for the index.
        precision: of the vectors of passages: fp32, or bf16, which is quicker where the processor computes it.

    Attributes:
        limit: the most tokens of a passage, special ones included.
        passage, question: the names of the prompts that its files have for each; None = their default.

    Raises:
        ValueError: for a model without a tokenizer, or that reads fewer than 16 tokens.
    """

    def __init__(self, model: Any, name: str, precision: Literal["fp32", "bf16"] = "fp32"):
        self.model, self.name, self.precision = model, name, precision
        self.how = meaning((model.origin or {}).get("pooling", {}))
        self.tokenizer = tokenizer_of(model, "texts")
        self.limit = min(limit_of(model, self.how) or MOST, MOST)
        if self.limit < LEAST:
            raise ValueError(f"{name} reads {self.limit} tokens; an index needs an encoder of at least {LEAST}")
        known = self.how.prompts
        self.passage = next((n for n in ("document", "passage") if n in known), None)
        self.question = "query" if "query" in known else None

    def read(self, text: str) -> str:
        """A passage as the tokenizer gets it."""
        made = self.how.before(self.passage) + text
        return made.lower() if self.how.lower else made

    def counts(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each passage, special ones and its prompt included."""
        return [len(reading(self.tokenizer, self.read(text)).ids) for text in texts]

    def unknown(self, text: str) -> int:
        """The number of tokens of a text that stand for words which the tokenizer does not know."""
        token = self.tokenizer.role_id("unk_token")
        return 0 if token is None else reading(self.tokenizer, self.read(text)).ids.count(token)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The places of the tokens in a text, special ones left out."""
        lower = self.how.lower and len(text.lower()) == len(text)
        encoded = self.tokenizer.core.encode(text.lower() if lower else text, add_special_tokens=False)
        return [tuple(pair) for pair in encoded.offsets]

    def vectors(self, texts: Sequence[str], batch: int = 16) -> np.ndarray:
        """The vectors of passages, (N, D), float32, of length 1."""
        half = torch.autocast(next(self.model.parameters()).device.type, torch.bfloat16, self.precision == "bf16")
        with half:
            return self._made(texts, self.passage, batch)

    def asked(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of questions, (N, D), float32, of length 1."""
        return self._made(texts, self.question, 32)

    def probe(self) -> np.ndarray:
        """The vector of a fixed text, by which an index knows its encoder again, (D,)."""
        return self._made([PROBE], self.passage, 1)[0]

    def _made(self, texts: Sequence[str], prompt: str | None, batch: int) -> np.ndarray:
        with evaluating(self.model):
            made = embed(self.model, list(texts), batch=batch, normalize=True, prompt=prompt)
        vectors = made.float().cpu().numpy()
        wrong = np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-3  # NaN is caught below
        if wrong.any() or not np.isfinite(vectors).all():
            raise ValueError(
                f"{self.name} gives vectors without a length (NaN or 0), for {texts[int(wrong.argmax())]!r:.60}"
            )
        return vectors
