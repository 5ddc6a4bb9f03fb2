"""Words and sentences of texts, for searching by words and for checking what a sentence says."""

from __future__ import annotations

import re
from collections.abc import Iterator

WORD = re.compile(r"\w+(?:[.,]\d+)*")
# the commonest words of questions: they are in every passage, and cost time
COMMON = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "been", "but", "by", "can", "could", "did", "do", "does", "for",
    "from", "had", "has", "have", "how", "i", "if", "in", "into", "is", "it", "its", "me", "my", "no", "not", "of",
    "on", "or", "our", "should", "so", "such", "than", "that", "the", "their", "them", "then", "there", "these",
    "they", "this", "those", "to", "us", "was", "we", "were", "what", "when", "where", "which", "who", "whom",
    "whose", "why", "will", "with", "would", "you", "your",
))  # fmt: skip
ENDS = ("ingly", "edly", "ings", "ing", "ies", "ied", "ed", "es", "ly", "s", "e")
ABBREVIATIONS = frozenset((
    "al", "approx", "art", "cf", "dr", "e.g", "eg", "etc", "fig", "i.e", "ie", "inc", "jr", "mr", "mrs", "ms", "no",
    "nr", "p", "pp", "prof", "sec", "sr", "st", "vol", "vs",
))  # fmt: skip
BREAK = re.compile(r"[.!?。！？]+[\"')\]”’*_]*(?=\s|$)|\n[ \t]*(?=\n)|\n(?=[ \t]*(?:(?:[-*+•]|\d+[.)]|#+)[ \t]|\|))")


def words(text: str) -> list[str]:
    """The words of a text, in small letters; numbers with their decimals."""
    return [found[0].lower() for found in WORD.finditer(text)]


def stem(word: str) -> str:
    """A word without its commonest English endings; at least three letters stay."""
    if word[-1:].isdigit():
        return word
    for end in ENDS:
        if word.endswith(end) and len(word) - len(end) >= 3:
            return word[: -len(end)]
    return word


def content(text: str) -> set[str]:
    """The stems of a text's words that mean something; of a text without such, all."""
    all_words = words(text)
    return {stem(word) for word in all_words if word not in COMMON} or set(all_words)


def numbers(text: str) -> set[str]:
    """The numbers of a text, as digits."""
    return {word.replace(",", "") for word in words(text) if word[0].isdigit()}


def query(text: str) -> str:
    """A question as FTS5 reads it: any of its words, each in quotes; empty without words."""
    every = list(dict.fromkeys(re.findall(r"\w+", text.lower())))
    telling = [word for word in every if word not in COMMON] or every
    return " OR ".join(f'"{word}"' for word in telling[:64])


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """(begin, end) of the sentences of a text; items of lists, rows of tables and paragraphs end one."""
    begin = 0
    for found in BREAK.finditer(text):
        before = text[max(0, found.start() - 12) : found.start()].split()
        if found[0].startswith(".") and before and before[-1].lower().lstrip("(\"'") in ABBREVIATIONS:
            continue
        yield from _trimmed(text, begin, found.end())
        begin = found.end()
    yield from _trimmed(text, begin, len(text))


def _trimmed(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    piece = text[begin:end]
    if re.search(r"\w", piece):
        yield begin + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))
