"""Gold questions without a judge: a definition and its word, a summary and its package, a question and its answer.

Each set is a folder of files, one an item, and (question, file) pairs; the question is no part of its file.

    wordnet    a definition -> the words that it defines (Debian's wordnet-base: 117,659)
    packages   the summary of a Debian package -> its long description, without its name (apt's lists)
    faq        a heading of the Debian FAQ -> the text under it (debian-faq)
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from anyformer.data.debian import fetch
from anyformer.data.sources import cache
from anyformer.know.markup import html

SEED = 0
Pairs = list[tuple[str, str]]  # (question, text of its file)


def wordnet(count: int) -> Pairs:
    """Definitions, and their words."""
    home = fetch("wordnet-base", r"usr/share/wordnet/data[.](noun|verb|adj|adv)", 4, "WordNet's licence, free")
    made: Pairs = []
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (home / f"usr/share/wordnet/data.{kind}").read_text(encoding="utf-8").split("\n"):
            fields, _, gloss = line.partition(" | ")
            parts = fields.split(" ")
            if line.startswith("  ") or len(parts) < 6:
                continue
            words = [parts[4 + 2 * i].replace("_", " ").partition("(")[0] for i in range(int(parts[3], 16))]
            definition = gloss.partition('"')[0].strip().rstrip(";").strip()
            if len(definition.split()) >= 4:
                made.append((definition, ", ".join(words)))
    return _drawn(made, count)


def packages(count: int) -> Pairs:
    """Summaries of packages, and their descriptions."""
    made: Pairs = []
    for stanza in _descriptions().split("\n\n"):
        found = re.search(r"^Description-en: (.*)\n((?: .*\n?)+)", stanza, re.M)
        if found is None:
            continue
        body = "\n".join("" if line == " ." else line[1:] for line in found[2].rstrip("\n").split("\n"))
        if len(body) > 150 and found[1].lower() not in body.lower():
            made.append((found[1], body))
    return _drawn(made, count)


def _descriptions() -> str:
    """Debian's descriptions in English: apt's own lists, fetched once into a folder of the cache (16 MB)."""
    lists = cache() / "apt-en"
    if not list(lists.glob("*main_i18n_Translation-en")):
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        options = [f"Dir::State::Lists={lists}", "Acquire::Languages=en", "Acquire::GzipIndexes=false"]
        subprocess.run(
            ["apt-get", "-qq", *(word for one in options for word in ("-o", one)), "update"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    files = sorted(lists.glob("*main_i18n_Translation-en"))
    return "\n\n".join(file.read_text(encoding="utf-8") for file in files)


def faq(count: int) -> Pairs:
    """Headings of the FAQ, and the text under each."""
    home = fetch("debian-faq", r"usr/share/doc/debian/FAQ/[a-z-]+[.]en[.]html", 1, "GPL-2", "en")
    made: Pairs = []
    for file in sorted((home / "usr/share/doc/debian/FAQ").glob("*.en.html")):
        document, heading, body = html(file.read_text(encoding="utf-8")), "", list[str]()
        for block in document.blocks:
            text = " ".join(document.text[block.begin : block.end].split())
            if not block.heading:
                body.append(text)
                continue
            made += [(heading, "\n\n".join(body))] if heading and body else []
            heading, body = re.sub(r"^[\d.]+\s*|^Chapter \d+\.\s*", "", text), []
        made += [(heading, "\n\n".join(body))] if heading and body else []
    asked = [pair for pair in made if pair[0].endswith("?") or len(pair[0].split()) > 3]
    return _drawn(asked, count)


def _drawn(pairs: Pairs, count: int) -> Pairs:
    """Some pairs, no question and no text twice."""
    random.Random(SEED).shuffle(pairs)
    texts, questions, kept = set[str](), set[str](), Pairs()
    for question, text in pairs:
        if text not in texts and question not in questions and len(kept) < count:
            kept.append((question, text))
        texts.add(text)
        questions.add(question)
    return kept


def folder(pairs: Pairs, place: Path) -> list[tuple[str, str]]:
    """Writes the files, 1,000 in a folder, and returns (question, path)."""
    made = []
    for number, (question, text) in enumerate(pairs):
        path = f"{number // 1000:02d}/{number:05d}.txt"
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text, encoding="utf-8")
        made.append((question, path))
    return made


SETS: dict[str, tuple[Callable[[int], Pairs], int]] = {
    "wordnet": (wordnet, 10_000), "packages": (packages, 10_000), "faq": (faq, 120),
}  # fmt: skip

# invented facts, so that no model knows them: (sentence, question, the fact, another fact)
PLACES = ("Ardovia", "Belcasto", "Corvendale", "Drumhaven", "Estoril Bay", "Farnholm", "Grelmark", "Hollenbury",
          "Istrova", "Jorvale", "Kelmoria", "Lundafors")  # fmt: skip
FACTS = (
    ("The lighthouse of {} was built in {}.", "When was the lighthouse of {} built?", ("1783", "1821", "1846", "1902")),
    ("The market of {} is held on {}.", "On which day is the market of {} held?",
     ("Monday", "Tuesday", "Thursday", "Saturday")),
    ("The mayor of {} is {}.", "Who is the mayor of {}?",
     ("Anna Wexley", "Boris Tandel", "Clara Osmond", "David Rennick")),
)  # fmt: skip


def facts() -> Iterator[tuple[str, str, str, str, str]]:
    """(file, question, its sentence, the sentence with another fact, the fact)."""
    draw = random.Random(SEED)
    for place in PLACES:
        for i, (sentence, question, values) in enumerate(FACTS):
            fact, other = draw.sample(values, 2)
            yield (
                f"{place.replace(' ', '-')}-{i}.txt",
                question.format(place),
                sentence.format(place, fact),
                sentence.format(place, other),
                fact,
            )
