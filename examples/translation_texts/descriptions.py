"""Descriptions of Debian's packages in two languages, as titles and paragraphs, for translation.

Volunteers translate the descriptions into many languages. `descriptions` lets apt fetch the lists into a folder of the
cache (apt checks the archive's signatures; the lists of the system do not change). The texts are their authors' and
translators'.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from anyformer.data.sources import cache

from .parallel import Pair

MEGABYTES = 20  # of apt's download for one language and English
_TEXT = re.compile(r"^Description-(?!md5:)\w+: (.*(?:\n .*)*)", re.MULTILINE)
_NAMES = re.compile(r"^(Package|Description-md5): (\S+)", re.MULTILINE)


def descriptions(target: str = "de", share: float = 0.1) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and held-out pairs: titles and paragraphs, English and `target`.

    A tenth of the packages (`share`) is held out by the hash of the first part of its name: `gcc-12` and `gcc-12-doc`
    are on one side, so that held-out pairs are not variants of training pairs. Pairs on both sides, word for word, are
    only trained on. Left out are lists (their lines are no sentences), descriptions with different numbers of
    paragraphs, and untranslated texts.

    Args:
        target: as Debian names the language: de, fr, it, es, ru, ja, ….

    Raises:
        OSError: with advice, without apt or if it cannot fetch. ValueError: for an invalid name of a language.
    """
    english, other = (dict(_descriptions(path)) for path in _lists(target))
    learn: dict[str, str] = {}
    held: dict[str, str] = {}
    for digest, (name, text) in english.items():
        if digest not in other:
            continue
        family = name.split("-")[0].encode()
        side = held if int.from_bytes(hashlib.sha256(family).digest()[:4]) < share * 2**32 else learn
        ours, theirs = paragraphs(text), paragraphs(other[digest][1])
        if len(ours) != len(theirs):
            continue
        for a, b in zip(ours, theirs, strict=True):
            if a and b and a != b:
                side.setdefault(a, b)
    return list(learn.items()), [pair for pair in held.items() if pair[0] not in learn]


def paragraphs(text: str) -> list[str]:
    """The title and the paragraphs of a description, white space joined; "" for one with a list in it.

    The form is that of Debian's policy, section 5.6.13: each line after the title begins with a space, a line of one
    full stop separates paragraphs, and lines that begin with two spaces are verbatim.
    """
    parts: list[list[str]] = [[]]
    title, *lines = text.split("\n")
    for line in lines:
        if line.strip() == ".":
            parts.append([])
        else:
            parts[-1].append(line)
    texts = ["" if any(line.startswith("  ") for line in part) else " ".join(" ".join(part).split()) for part in parts]
    return [" ".join(title.split()), *texts]


def _descriptions(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """(digest of the English description, (package, text)) of each stanza of a list."""
    for stanza in path.read_text(encoding="utf-8").split("\n\n"):
        names, text = dict(_NAMES.findall(stanza)), _TEXT.search(stanza)
        if text and len(names) == 2:
            yield names["Description-md5"], (names["Package"], text[1])


def _lists(target: str) -> tuple[Path, Path]:
    """The files with the descriptions in English and in `target`; fetched if they are not in the cache."""
    home = cache() / "debian-descriptions"
    home.mkdir(parents=True, exist_ok=True)
    files = home / f"{target}.en", home / f"{target}.{target}"
    with FileLock(home / ".lock"):
        if not all(path.exists() for path in files):
            _fetch(home, target, files)
    return files


def _fetch(home: Path, target: str, files: tuple[Path, Path]) -> None:
    """Lets apt fetch the lists into a temporary folder; each complete file is moved into the cache."""
    if not re.fullmatch(r"[a-z]{2,3}(_[A-Z]{2})?", target):
        raise ValueError(f"a language is named as Debian does: de, fr, pt_BR, …; got {target!r}")
    if shutil.which("apt-get") is None:
        raise OSError(
            "the descriptions come from Debian's archive by apt, and there is no apt-get here. What to do: copy "
            f"Translation-en and Translation-{target}, unpacked, from a mirror's dists/stable/main/i18n to "
            f"{files[0]} and {files[1]}"
        )
    print(f"fetching descriptions of Debian's packages with apt [{MEGABYTES} MB]", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=home) as work:
        for folder in ("lists/partial", "cache/archives/partial"):
            Path(work, folder).mkdir(parents=True)
        options = {
            "Dir::State::Lists": f"{work}/lists", "Dir::Cache": f"{work}/cache",
            "Acquire::Languages": f"en,{target}", "Acquire::GzipIndexes": "false",
        }  # fmt: skip
        command = ["apt-get", "update", "-q", *(f"-o{key}={value}" for key, value in options.items())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for language, file in zip(("en", target), files, strict=True):
            lists = sorted(Path(work).glob(f"lists/*_Translation-{language}"), key=lambda p: p.stat().st_size)
            if not lists:
                reason = (done.stderr.strip().splitlines() or ["it found none"])[-1]
                raise OSError(f"apt could not fetch the descriptions in {language!r}: {reason}")
            os.rename(lists[-1], file)  # the largest: that of the release, not of its updates
