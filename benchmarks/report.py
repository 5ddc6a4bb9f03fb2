"""docs/benchmarks.md: a section for each benchmark, written by the command that measured it; its short form: README."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

HEADER = """# Benchmarks

Written by `make bench` (`python -m benchmarks`, which takes names of sections); do not edit. Every section is one run
on one machine, in which the contestants take turns; a ratio compares figures of the same round, which evens out slow
drift of the machine. It does not even out other programs that want the same cores: measure on a machine that is quiet.
"""
SHORT = "| | anyformer | peer | | takes, ours = 1 (quartiles) | |"  # above the claims of a section
README = "| | anyformer | what peers take, ours = 1 |"
BEGIN, END = "<!-- benchmarks: written by `make bench` -->", "<!-- end -->"


@dataclass(frozen=True)
class Claim:
    """One comparison: what, with whom, both figures with their units, and by how much the peer takes more."""

    what: str
    peer: str
    ours: str
    theirs: str
    ratio: tuple[float, float, float]  # peer / ours of seconds or bytes: median, lower and upper quartile

    def row(self) -> str:
        """A line under `SHORT`."""
        return row(self.what, self.ours, self.theirs, self.peer, times(self.ratio), verdict(self.ratio))


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


def verdict(r: tuple[float, float, float]) -> str:
    """What a ratio, peer / ours, says. With 1 within the quartiles, nobody is ahead."""
    if r[1] == r[2]:
        return "one round, no verdict"
    if r[1] <= 1.0 <= r[2]:
        return "no difference beyond the noise"
    return "ahead" if r[0] > 1 else "**behind**"


def write(path: Path, sections: list[Section], machine: str, header: str = HEADER) -> None:
    """Replaces the sections that were measured now and keeps the others."""
    old = path.read_text() if path.exists() else ""
    kept = {part.splitlines()[0]: part for part in re.split(r"(?m)^## ", old)[1:]}
    for section in sections:
        kept[section.title] = section.markdown(machine).removeprefix("## ")
    path.parent.mkdir(exist_ok=True)
    replace(path, header + "".join(f"\n## {part.strip()}\n" for part in kept.values()))


def summarise(readme: Path, report: Path) -> bool:
    """Writes the claims of all sections of the report into the README, between its marks, one line for each figure of
    ours. False: it has no marks."""
    found: dict[tuple[str, str], list[str]] = {}
    inside = False
    for line in report.read_text().splitlines():
        inside = line == SHORT or (inside and line.startswith("|"))
        if inside and line != SHORT and not line.startswith("|---"):
            what, ours, _, peer, ratio, _ = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault((what, ours), []).append(f"{peer} **{ratio.split()[0]}**")
    rows = [row(*key, "; ".join(peers)) for key, peers in found.items()]
    table = "\n".join(_ruled([README, *rows])) if rows else ""
    return fill(readme, BEGIN, END, table)


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
