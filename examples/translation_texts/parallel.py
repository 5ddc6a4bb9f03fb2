"""Parallel text in two languages: the Debian Administrator's Handbook, block by block, for translation.

The Debian package `debian-handbook` holds the book in 26 languages as HTML of one structure. `handbook` lets apt fetch
it (from the user's mirror, with checked signatures), keeps the pages of the requested languages in the cache, and pairs
the blocks of each page. The data is the book's: GPL-2+ or CC-BY-SA-3.0.
"""

from __future__ import annotations

import hashlib
import html.parser
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anyformer.data import debian
from anyformer.data.labels import IGNORE, shift_right
from anyformer.data.sources import cache

PACKAGE, MEGABYTES, LICENCE = "debian-handbook", 35, "GPL-2+ or CC-BY-SA-3.0"
PAGES = "usr/share/doc/debian-handbook/html"

Pair = tuple[str, str]  # (source, target)


def handbook(source: str = "en-US", target: str = "de-DE") -> list[Pair]:
    """All blocks (paragraphs and titles) of the book in two languages, in the order of the book.

    Left out are pages with different numbers of blocks, blocks that are the same in both languages (not translated, or
    a command), and repetitions.

    Args:
        source, target: names of the package's folders: en-US, de-DE, fr-FR, it-IT, ja-JP, ….

    Raises:
        OSError: with advice, without apt or if it cannot fetch. ValueError: for a missing language.
    """
    folders = _pages(source, target)
    pairs: dict[str, str] = {}
    for page in sorted(folders[0].glob("*.html")):
        other = folders[1] / page.name
        sides = [blocks(p.read_text(encoding="utf-8")) for p in (page, other) if p.exists()]
        if len(sides) == 2 and len(sides[0]) == len(sides[1]):
            for ours, theirs in zip(*sides, strict=True):
                if ours != theirs and ours and theirs:
                    pairs.setdefault(ours, theirs)
    return list(pairs.items())


def split(pairs: list[Pair], share: float = 0.1) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and held-out pairs: `share` of all, chosen by the hash of the source, so that a pair stays on
    its side when others change."""

    def held(pair: Pair) -> bool:
        return int.from_bytes(hashlib.sha256(pair[0].encode()).digest()[:4]) < share * 2**32

    return [p for p in pairs if not held(p)], [p for p in pairs if held(p)]


def sentences(pairs: list[Pair]) -> list[Pair]:
    """The pairs cut into sentences if both sides have equally many; the others unchanged."""
    out: list[Pair] = []
    for pair in pairs:
        ours, theirs = (_END.split(text) for text in pair)
        out += zip(ours, theirs, strict=True) if len(ours) == len(theirs) else [pair]
    return out


class Batches:
    """Batches of pairs by number, for `train.fit`: pairs of similar length together, another order in each round.

    Args:
        pairs: token ids of sources and targets, the token that ends a text included.
        tokens: the most positions of a batch: rows x (longest source + longest target).
        begin_id: of the model. seed: of the order.
    """

    def __init__(self, pairs: list[tuple[list[int], list[int]]], tokens: int, begin_id: int, seed: int = 0):
        self.pairs, self.begin_id, self.seed = pairs, begin_id, seed
        order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][1]), len(pairs[i][0]), i))
        self.batches: list[list[int]] = [[]]
        longest = (0, 0)
        for i in order:
            longest = (max(longest[0], len(pairs[i][0])), max(longest[1], len(pairs[i][1])))
            if self.batches[-1] and (len(self.batches[-1]) + 1) * sum(longest) > tokens:
                self.batches.append([])
                longest = (len(pairs[i][0]), len(pairs[i][1]))
            self.batches[-1].append(i)

    def __len__(self) -> int:
        """The number of batches in one round."""
        return len(self.batches)

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Batch `number`, counted through all rounds: input_ids, attention_mask, decoder_input_ids, labels."""
        turn, place = divmod(number, len(self.batches))
        order = np.random.default_rng((self.seed, turn)).permutation(len(self.batches))
        rows = [self.pairs[i] for i in self.batches[order[place]]]
        ids, labels = (pad_sequence([torch.tensor(r[k]) for r in rows], True, IGNORE) for k in (0, 1))  # (B, S), (B, T)
        keep = ids != IGNORE
        batch = {"input_ids": ids.masked_fill(~keep, 0), "attention_mask": keep, "labels": labels}
        return {**batch, "decoder_input_ids": shift_right(labels, self.begin_id)}


class Dictionary:
    """Translation word by word, as a baseline: the likeliest word of IBM's model 1 (Brown et al., 1993), learned by
    `rounds` of expectation and maximisation; an unknown word is copied."""

    def __init__(self, pairs: list[Pair], rounds: int = 5):
        texts = [(ours.split(), theirs.split()) for ours, theirs in pairs]
        likely: dict[str, dict[str, float]] = {}
        for ours, theirs in texts:
            for word in ours:
                likely.setdefault(word, {}).update(dict.fromkeys(theirs, 1.0))
        for _ in range(rounds):
            counts: dict[str, dict[str, float]] = {word: dict.fromkeys(row, 0.0) for word, row in likely.items()}
            for ours, theirs in texts:
                for target in theirs:
                    total = sum(likely[word][target] for word in ours)
                    for word in ours:
                        counts[word][target] += likely[word][target] / total
            for word, row in counts.items():
                total = sum(row.values())
                likely[word] = {target: count / total for target, count in row.items()}
        self.best = {word: max(row, key=row.__getitem__) for word, row in likely.items()}

    def __call__(self, text: str) -> str:
        """The translation of a text, word by word."""
        return " ".join(self.best.get(word, word) for word in text.split())


_END = re.compile(r"(?<=[.!?:;])\s+(?=[A-ZÄÖÜ])")


def blocks(page: str) -> list[str]:
    """The text of every paragraph and title of a page of the book, white space joined, nested ones separately."""
    reader = _Blocks()
    reader.feed(page)
    return [" ".join("".join(text).split()) for text in reader.found]


class _Blocks(html.parser.HTMLParser):
    """A parser that adds text to the innermost open block: an element of class `para` or of a class with `title`."""

    empty = frozenset({"br", "hr", "img", "input", "link", "meta"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self.open: list[tuple[str, list[str] | None]] = []  # elements, each with its block if it is one

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.empty:
            return
        kind = dict(attrs).get("class") or ""
        block: list[str] | None = [] if kind == "para" or "title" in kind else None
        if block is not None:
            self.found.append(block)
        self.open.append((tag, block))

    def handle_endtag(self, tag: str) -> None:
        while tag not in self.empty and self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        inner = next((block for _, block in reversed(self.open) if block is not None), None)
        if inner is not None:
            inner.append(data)


def _pages(*languages: str) -> list[Path]:
    """The folders with the pages in these languages; missing ones are fetched."""
    home = cache() / PACKAGE
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        if missing := [name for name in languages if not (home / name).is_dir()]:
            _fetch(home, missing)
    return [home / name for name in languages]


def _fetch(home: Path, languages: list[str]) -> None:
    """Lets apt download the package, and unpacks the pages in these languages; each whole or not at all."""
    todo = (
        f"on Debian or Ubuntu run `apt-get download {PACKAGE}`, unpack it with `dpkg-deb -x`, and copy "
        f"/{PAGES}/LANGUAGE for {', '.join(languages)} into {home}"
    )
    with tempfile.TemporaryDirectory(dir=home) as work:
        package = debian.download(PACKAGE, f"{MEGABYTES} MB, {LICENCE}", Path(work), todo)
        there = set()
        for name, page in debian.members(package, rf"{PAGES}/([\w-]+)/([\w.-]+\.html)"):
            (Path(work) / name[1]).mkdir(exist_ok=True)
            (Path(work) / name[1] / name[2]).write_bytes(page)
            there.add(name[1])
        for language in languages:
            if language not in there:
                raise ValueError(f"{PACKAGE} has no language {language!r}; it has {', '.join(sorted(there))}")
            os.rename(Path(work) / language, home / language)
