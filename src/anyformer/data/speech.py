"""Spoken sentences with their words, from Debian packages, and their word error rate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anyformer.data import debian

FOLDER = "usr/share/pocketsphinx/test/data"
LINE = re.compile(r"<s>(.*)</s>\s*\(([\w-]+)\)")
GAME = "usr/share/games/fillets-ng"
SPOKEN = re.compile(r'dialogId\("([^"]+)".*\)\s*dialogStr\("([^"\\]+)"\)')
ACTED = {"cs": 39, "nl": 33}  # language: megabytes


@dataclass(frozen=True)
class Clip:
    """A recording and the words in it."""

    path: Path
    text: str


def clips() -> list[Clip]:
    """Five sentences of "Sense and Sensibility", read for LibriVox, in small letters without marks: 16,000 Hz, public
    domain; fetched on first use.

    Raises:
        OSError: with advice, without apt or if it cannot fetch.
    """
    wanted = rf"{FOLDER}/librivox/.*(wav|transcription)"
    folder = debian.fetch("pocketsphinx-testdata", wanted, 2, "public domain (the recordings)") / FOLDER / "librivox"
    lines = LINE.findall((folder / "transcription").read_text())
    return [Clip(folder / f"{name}.wav", text.strip()) for text, name in lines]


def lines(language: str) -> list[Clip]:
    """The lines of the game Fish Fillets as actors speak and its files write them, in order of level and name: Czech
    (cs) or Dutch (nl), 22,050 Hz and more, GPL-2; fetched on first use (about 110 MB). The level is a part of the path,
    `sound/LEVEL/cs/NAME.ogg`.

    Raises:
        ValueError: for another language.
        OSError: with advice, without apt or if it cannot fetch.
    """
    if language not in ACTED:
        raise ValueError(f"the game is spoken in {', '.join(ACTED)}; got {language!r}")
    written = debian.fetch("fillets-ng-data", f"{GAME}/script/.*dialogs_[a-z]+[.]lua", 71, "GPL-2") / GAME / "script"
    package = f"fillets-ng-data-{language}"
    spoken = debian.fetch(package, f"{GAME}/sound/.*[.]ogg", ACTED[language], "GPL-2") / GAME / "sound"
    found: dict[Path, Clip] = {}
    for table in written.rglob(f"*dialogs_{language}.lua"):
        level = spoken / table.parent.relative_to(written)
        for name, text in SPOKEN.findall(table.read_text("utf-8")):
            found.update((path, Clip(path, text)) for path in level.rglob(f"{name}.ogg"))
    return [found[path] for path in sorted(found)]


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
