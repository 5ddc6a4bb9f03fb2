"""Spoken sentences with their words, from the Debian package pocketsphinx-testdata, and their word error rate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anyformer.data import debian

FOLDER = "usr/share/pocketsphinx/test/data"
LINE = re.compile(r"<s>(.*)</s>\s*\(([\w-]+)\)")


@dataclass(frozen=True)
class Clip:
    """A recording and the words in it, in small letters without marks."""

    path: Path
    text: str


def clips() -> list[Clip]:
    """Five sentences of "Sense and Sensibility", read for LibriVox: 16,000 Hz, public domain; fetched on first use.

    Raises:
        OSError: with advice, without apt or if it cannot fetch.
    """
    wanted = rf"{FOLDER}/librivox/.*(wav|transcription)"
    folder = debian.fetch("pocketsphinx-testdata", wanted, 2, "public domain (the recordings)") / FOLDER / "librivox"
    lines = LINE.findall((folder / "transcription").read_text())
    return [Clip(folder / f"{name}.wav", text.strip()) for text, name in lines]


def words(text: str) -> list[str]:
    """The words of a text in small letters, without marks; titles are written out, as readers speak them."""
    plain = re.sub(r"[^\w' ]", " ", text.lower())
    return [{"mr": "mister", "mrs": "missus", "dr": "doctor"}.get(word, word) for word in plain.split()]


def word_errors(found: Sequence[str], expected: Sequence[str]) -> int:
    """The least number of words to insert, delete or replace that turns one list into the other."""
    before = list(range(len(expected) + 1))
    for i, word in enumerate(found, 1):
        row = [i]
        for j, other in enumerate(expected, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (word != other)))
        before = row
    return before[-1]
