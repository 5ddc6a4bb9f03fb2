"""The corpus of a language model: sources, their weights, the held-out part of each; as text, then as token ids."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anyformer.data import cache, packing
from anyformer.data.baseline import Bigram
from anyformer.data.mixing import Mixture, shares
from anyformer.data.order import Epochs, Rows
from anyformer.data.records import Source, find, fingerprint, texts
from anyformer.data.text import Windows, cut
from anyformer.hub.formats.guard import atomic_write

Order = Literal["random", "epochs", "packed"]
TOKENIZER_CHARACTERS = 50_000_000  # the most text for training a tokenizer: more would not change much
SAMPLE = 20_000  # characters of the check that a tokenizer loses none
GAP = b"\0"  # between two documents when bytes are counted; for a model it is the end token


@dataclass(frozen=True)
class Scan:
    """The sizes and the baseline of a source, from one pass over it.

    Attributes:
        key: of the text. `cut`: characters to train on, the rest is held out.
        documents: their number. `held_out_bytes`: in UTF-8, an end of a document counted as one.
        bigram: bits per held-out byte of a bigram.
    """

    key: str
    cut: int
    documents: int
    held_out_bytes: int
    bigram: float


@dataclass(frozen=True)
class Text:
    """One source of a corpus, scanned."""

    source: Source
    fields: dict[str, str]
    weight: float
    scan: Scan

    def part(self, held_out: bool) -> Iterator[tuple[int, str]]:
        """(document, piece of text) of the training part or the held-out part."""
        return ((d, t) for held, d, t in split(texts(self.source, self.fields), self.scan.cut) if held == held_out)


def split(pieces: cache.Texts, at: int) -> Iterator[tuple[bool, int, str]]:
    """(held out?, document, piece) of a text that is divided after `at` characters."""
    done = 0
    for document, text in pieces:
        first = min(max(at - done, 0), len(text))
        if first:
            yield False, document, text[:first]
        if first < len(text):
            yield True, document, text[first:]
        done += len(text)


def weights(data: str | Path | Mapping[str, float]) -> dict[str, float]:
    """Sources and weights from a user's text (a source, or `a.txt=0.7,b.jsonl=0.3`) or mapping."""
    if isinstance(data, Mapping):
        if not data:
            raise ValueError("data is empty; name at least one source")
        return {str(name): float(weight) for name, weight in data.items()}
    name = str(data)
    if re.fullmatch(r"[^=,]+=[\d.e+-]+(,[^=,]+=[\d.e+-]+)*", name) and not Path(name).expanduser().exists():
        pairs = [pair.split("=") for pair in name.split(",")]
        by_source = {source: float(weight) for source, weight in pairs}
        if len(by_source) < len(pairs):
            raise ValueError(f"data={name!r} names a source twice")
        return by_source
    return {name: 1.0}


def read(
    data: str | Path | Mapping[str, float], fields: Mapping[str, str] | None = None, folder: str | Path | None = None
) -> list[Text]:
    """The sources of a corpus, each scanned once; the scans are kept beside the token caches.

    Args:
        data: see `weights`. `fields`: our names -> columns, see `records`. `folder`: see `cache.place`.

    Raises:
        FileNotFoundError, ValueError: see `records`; and for invalid weights, or too little text.
    """
    wanted = weights(data)
    shares(tuple(wanted.values()))
    sources = [(find(name), weight) for name, weight in wanted.items()]
    return [Text(source, dict(fields or {}), w, _scanned(source, dict(fields or {}), folder)) for source, w in sources]


def _scanned(source: Source, fields: dict[str, str], folder: str | Path | None) -> Scan:
    """The scan of a source, from the cache or made now."""
    key = fingerprint(source, fields)
    file = cache.place(folder) / f"scan-{cache.FORMAT}-{key[:40]}.json"
    try:
        return Scan(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):  # missing or damaged
        scan = _scan(source, fields, key)
    with cache.writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(dataclasses.asdict(scan)).encode())
    return scan


def _scan(source: Source, fields: dict[str, str], key: str) -> Scan:
    """The scan of a source in two passes: its length, then the bits of its second part under a bigram of its first."""
    total, last = 0, -1
    for last, text in texts(source, fields):  # noqa: B007, the last number is wanted
        total += len(text)
    at, bigram = cut(total), Bigram()
    before: dict[bool, int] = {}  # the last document of either part
    for held_out, document, text in split(texts(source, fields), at):
        gap = GAP if before.get(held_out, document) != document else b""
        before[held_out] = document
        (bigram.predict if held_out else bigram.count)(gap + text.encode("utf-8", "surrogatepass"))
    if not bigram.predicted or not bigram.counted:
        raise ValueError(
            f"{source.name} has {total} characters: its training part or its held-out part would be empty; use a "
            "longer text"
        )
    return Scan(key, at, last + 1, bigram.predicted, bigram.bits / bigram.predicted)


def learn(data: list[Text]) -> Iterator[str]:
    """The text for training a tokenizer: the beginning of the training part of each source, in equal shares."""
    for text in data:
        yield from beginning((t for _, t in text.part(held_out=False)), TOKENIZER_CHARACTERS // len(data))


def beginning(pieces: Iterable[str], characters: int) -> Iterator[str]:
    """The first `characters` of a text."""
    for piece in pieces:
        yield piece[:characters]
        characters -= len(piece)
        if characters <= 0:
            return


def comes_back(tokenizer: Any, data: list[Text]) -> bool:
    """True if the beginning of each held-out part is unchanged by encoding and decoding."""
    for text in data:
        for piece in beginning((t for _, t in text.part(held_out=True)), SAMPLE):
            if tokenizer.decode(tokenizer.encode(piece, special=False), skip_special=False) != piece:
                return False
    return True


def bigram(data: list[Text]) -> float:
    """Bits per held-out byte of bigrams, one for each source."""
    scans = [text.scan for text in data]
    return sum(s.bigram * s.held_out_bytes for s in scans) / sum(s.held_out_bytes for s in scans)


@dataclass(frozen=True, eq=False)
class Part:
    """One source as token ids: `train`, and `held_out` with its bytes."""

    name: str
    weight: float
    train: cache.Tokens
    held_out: cache.Tokens
    held_out_bytes: int


@dataclass(frozen=True, eq=False)
class Corpus:
    """Sources as token ids, mapped from the cache."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, tokenizer: Any, data: list[Text], folder: str | Path | None = None) -> Corpus:
        """The corpus of these texts, tokenised now or before. Errors: see `cache.tokens`."""
        parts = []
        for text in data:
            train, held_out = (
                cache.tokens(partial(text.part, held), f"{text.scan.key} {text.scan.cut} {held}", tokenizer, folder)
                for held in (False, True)
            )
            parts.append(Part(text.source.name, text.weight, train, held_out, text.scan.held_out_bytes))
        return cls(tuple(parts))

    @property
    def tokens(self) -> int:
        """Tokens to train on, in all sources."""
        return sum(len(part.train.ids) for part in self.parts)

    @property
    def held_out_bytes(self) -> int:
        """Held-out bytes, in all sources."""
        return sum(part.held_out_bytes for part in self.parts)

    def held_out(self) -> Iterator[np.ndarray]:
        """The held-out ids of each source, after the last training token."""
        return (np.concatenate((part.train.ids[-1:], part.held_out.ids)) for part in self.parts)

    def fingerprint(self) -> str:
        """A digest of ids and weights, by which a resumed run checks that its data is the same."""
        parts = [
            (p.train.fingerprint, p.held_out.fingerprint, shares(self._weights)[i]) for i, p in enumerate(self.parts)
        ]
        return hashlib.sha256(repr([(a, b, int(c)) for a, b, c in parts]).encode()).hexdigest()[:16]

    @property
    def _weights(self) -> tuple[float, ...]:
        return tuple(part.weight for part in self.parts)

    def rows(self, order: Order, context: int, seed: int) -> Rows:
        """Rows of `context` tokens, by number.

        Args:
            order: random: windows from random positions. epochs: each window once in an epoch. packed: whole documents,
                each once in an epoch, which do not see each other (`document_ids`).

        Raises:
            ValueError: naming the source that is too short.
        """
        made = tuple(_rows(part, order, context, seed) for part in self.parts)
        return made[0] if len(made) == 1 else Mixture(made, self._weights, seed)


def _rows(part: Part, order: Order, context: int, seed: int) -> Rows:
    ids = part.train.ids
    try:
        if order == "packed":
            return packing.Packed(ids, packing.plan(part.train.starts, len(ids), context), seed)
        return Epochs(ids, context, seed) if order == "epochs" else Windows(ids, 1, context, seed)
    except ValueError as error:
        raise ValueError(f"{part.name}: {error}") from None
