"""docs/benchmarks.md: a section for each benchmark, written by the command that measured it; its short form: README."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

HEADER = """# Benchmarks on a CPU

Written by `make bench` (`python -m benchmarks`, which takes names of sections); do not edit. Every section is one run
on one machine, in which the contestants take turns; a ratio compares figures of the same round, which evens out slow
drift of the machine. It does not even out other programs that want the same cores: measure on a machine that is quiet.

A figure belongs to the processor and the instruction set that its section names, and says nothing about GPUs. Sections
that name no instruction set were measured before it was recorded.
"""
SHORT = "| on a CPU | anyformer | peer | | peer / ours (quartiles) | |"  # above the claims of a section
README = "| measured on a CPU | anyformer | peer | peer's time or memory / ours (quartiles) | |"
HEADLINES = (  # the comparisons that the README shows: what, with whom
    ("training step, anyformer GPT", "transformers GPT-2"),
    ("training step, anyformer LLaMA", "transformers LLaMA"),
    ("SmolLM2-135M float32, decoding", "transformers, float32"),
    ("load, GGUF", "transformers, GGUF"),
    ("load and first forward, directory", "transformers, directory"),
)
FEWEST = 4  # rounds below which quartiles mean nothing
BEGIN, END = "<!-- benchmarks: written by `make bench` -->", "<!-- end -->"


@dataclass(frozen=True)
class Claim:
    """One comparison: what, with whom, both figures with their units, by how much the peer takes more, in how many
    rounds."""

    what: str
    peer: str
    ours: str
    theirs: str
    ratio: tuple[float, float, float]  # peer / ours of seconds or bytes: median, lower and upper quartile
    rounds: int

    def row(self) -> str:
        """A line under `SHORT`."""
        return row(self.what, self.ours, self.theirs, self.peer, times(self.ratio), verdict(self.ratio, self.rounds))


@dataclass
class Section:
    """One benchmark's part of the report. `timed`: do its figures depend on what else the machine does?"""

    title: str
    text: str
    table: list[str]
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timed: bool = True

    def markdown(self, machine: str) -> str:
        """The section as it stands in the file."""
        lines = [f"## {self.title}", "", self.text, "", *_ruled(self.table), ""]
        if self.claims:
            lines += [*_ruled([SHORT, *(claim.row() for claim in self.claims)]), ""]
        lines += [f"- Note: {n}" for n in self.notes] + ([""] if self.notes else [])
        return "\n".join([*lines, f"Measured on: {machine}", ""])


def _ruled(table: list[str]) -> list[str]:
    """A table with the line that Markdown wants below its head."""
    return [table[0], "|" + "---|" * (table[0].count("|") - 1), *table[1:]]


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def percent(share: float) -> str:
    """0.5 as "50 %"."""
    return f"{100 * share:.0f} %"


def times(r: tuple[float, float, float], digits: int = 2) -> str:
    """A median with its quartiles."""
    return f"{r[0]:.{digits}f} ({r[1]:.{digits}f}-{r[2]:.{digits}f})"


def verdict(r: tuple[float, float, float], rounds: int) -> str:
    """The verdict on a ratio, peer / ours. With 1 within the quartiles, neither is ahead."""
    if rounds < FEWEST:
        return f"{rounds} round{'s' * (rounds > 1)}, no verdict"
    if r[1] <= 1.0 <= r[2]:
        return "no difference beyond the noise"
    return "ahead" if r[0] > 1 else "behind"


def write(path: Path, sections: list[Section], machine: str, header: str = HEADER) -> None:
    """Replaces the sections that were measured now and keeps the others."""
    old = path.read_text() if path.exists() else ""
    kept = {part.splitlines()[0]: part for part in re.split(r"(?m)^## ", old)[1:]}
    for section in sections:
        kept[section.title] = section.markdown(machine).removeprefix("## ")
    path.parent.mkdir(exist_ok=True)
    replace(path, header + "".join(f"\n## {part.strip()}\n" for part in kept.values()))


def summarise(readme: Path, report: Path) -> bool:
    """Writes the headline comparisons of the report into the README, between its marks, with quartiles and verdict.
    False: it has no marks."""
    lines: dict[tuple[str, str], str] = {}
    inside = False
    for line in report.read_text().splitlines():
        inside = line == SHORT or (inside and line.startswith("|"))
        if inside and line != SHORT and not line.startswith("|---"):
            what, ours, theirs, peer, ratio, judged = (cell.strip() for cell in line.strip("|").split("|"))
            lines[what, peer] = row(what, ours, f"{theirs}, {peer}", ratio, judged)
    rows = [lines[key] for key in HEADLINES if key in lines]
    return fill(readme, BEGIN, END, "\n".join(_ruled([README, *rows])) if rows else "")


def fill(path: Path, begin: str, end: str, middle: str) -> bool:
    """Puts a text between two marks. False: they are not there, and nothing is written."""
    before, first, rest = path.read_text().partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        return False
    replace(path, f"{before}{begin}\n{middle}\n{end}{after}")
    return True


def replace(path: Path, text: str) -> None:
    """Writes aside and renames: an interrupted run leaves the old file."""
    aside = path.with_suffix(".new")
    aside.write_text(text)
    os.replace(aside, path)
