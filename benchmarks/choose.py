"""docs/choose-an-attention.md: costs in short, and the speed of learning, with figures from benchmarks/results/."""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.attention_mixers import ENTRIES
from benchmarks.attention_results import CONTEXTS, LENGTHS, exponent, medians, results
from benchmarks.contest import ROOT
from benchmarks.quality_claims import Evidence, Lacking
from benchmarks.quality_results import results as quality_results
from benchmarks.report import replace

PATH = ROOT / "docs" / "choose-an-attention.md"
HEADER = """# Attention: its costs on a CPU, and what learns fastest in 800 steps

Written by `make bench-attention` and `make bench-quality` from their results; do not edit. The tables, and how they
were made: [every attention, measured](attention.md).

Time and memory are those of one layer (8 heads of 64, one text at a time), forward and backward, on the processor named
there. They choose between mixers by cost. **Nothing here chooses by quality**: the bits further down are of models of
0.5 M parameters after 800 steps, at one learning rate for all. They compare the speed of learning in the first minutes,
and a larger budget can turn their order.
"""
FULL, LONG = "full, sdpa", 16384
CHEAP = (
    "window 256",
    "local, chunks of 128",
    "Transformer-XL, 256 + 256",
    "compressive, 256 + 256 + 64 of 4",
    "kNN memory of 2,048",
    "linear, elu",
    "FAVOR+",
    "Mamba",
    "Mamba-2",
    "delta",
    "gated delta",
    "convolution 4",
)
BOTH = (
    "window 128 + 128, both ways",
    "window 128 + 128 and 16 global, both ways",
    "BigBird's blocks of 64, both ways",
    "LSH, 4 rounds, both ways",
    "ProbSparse, both ways",
    "auto-correlation, both ways",
    "linear, elu, both ways",
    "Linformer, rank 256",
    "Nystrom, 64 landmarks",
    "Fourier",
)
EARLY = (
    "window 64",
    "linear, elu",
    "FAVOR+",
    "Mamba",
    "Mamba-2",
    "delta",
    "gated delta",
    "convolution 16",
    "GQA, 2 of 4 heads",
    "MQA, 1 of 4 heads",
    "window 64, last layer full",
    "gated delta, last layer full",
)


class Tables:
    """All results, asked in short."""

    def __init__(self) -> None:
        self.cost, self.decode = results("attention-cost"), results("attention-decode")
        self.quality = Evidence(quality_results())

    def seconds(self, name: str, length: int) -> float | None:
        """Of a forward and a backward pass; None where it was not measured."""
        return medians(self.cost[name], "both").get(length) if name in self.cost else None

    def bits(self, group: str, name: str, times: int = 1) -> float | None:
        """A byte of held-out text; None where the row was not run, or cannot."""
        try:
            value = self.quality.bits(group, name, times)
        except Lacking:
            return None
        return None if math.isinf(value) else value

    def seeds(self, group: str, name: str) -> str:
        """How many seeds a figure is the mean of."""
        count = len(self.quality.found.get((group, name), []))
        return f"{count} seed{'s' * (count != 1)}"


def write() -> None:
    """The guide, of the parts for which there are results."""
    tables = Tables()
    parts: dict[str, Callable[[Tables], list[str]]] = {
        "How long are the texts?": lengths,
        "Does it write? What decoding holds": decoding,
        "What learns fastest in 800 steps": early,
        "An encoder": encoder,
        "Positions after 800 steps": positions,
        "Probes: what two layers learned": abilities,
    }
    text = HEADER
    for title, part in parts.items():
        if lines := part(tables):
            text += f"\n## {title}\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"
    replace(PATH, text)
    print(f"written: {PATH.relative_to(ROOT)}")


def crossing(t: Tables, name: str, full: str = FULL) -> int | None:
    """The shortest measured length from which on a mixer is faster than full attention, whatever the length."""
    faster = None
    for length in reversed(LENGTHS):
        mine, theirs = t.seconds(name, length), t.seconds(full, length)
        if mine is None or theirs is None:
            continue
        if mine >= theirs:
            break
        faster = length
    return faster


def lengths(t: Tables) -> list[str]:
    """From where on what is cheap."""
    if FULL not in t.cost:
        return []
    lines = []
    starts = {name: crossing(t, name) for name in CHEAP if name in t.cost}
    never = [name for name, start in starts.items() if start is None]
    first = min((s for s in starts.values() if s), default=None)
    if first is not None and first > LENGTHS[0]:
        lines.append(f"Below {first:,} tokens no other mixer of a decoder was faster than full attention.")
    for name, start in sorted(starts.items(), key=lambda item: item[1] or 1 << 62):
        there, base = t.seconds(name, LONG), t.seconds(FULL, LONG)
        if start is not None and there and base:
            lines.append(
                f"`{name}` is faster from {start:,} tokens on; at {LONG:,} it takes {1000 * there:,.0f} ms, full "
                f"attention {1000 * base:,.0f} ms ({base / there:.1f} times as much)."
            )
    if never:
        lines.append(f"Not faster than full attention at any length measured here: {', '.join(never)}.")
    masked = [n for n, e in ENTRIES.items() if "mask" in n and e.time == "quadratic" and n in t.cost]
    grown = {n: exponent(medians(t.cost[n], "both")) for n in masked}
    grows = [f"{n} grows with exponent {x:.2f}" for n, x in grown.items() if x]
    if grows:
        lines.append(
            f"A mask alone saves nothing unless it is a window: {', '.join(grows)}. What is skipped must be local."
        )
    return lines


def decoding(t: Tables) -> list[str]:
    """Tokens a second and memory at the shortest and the longest context."""
    short, long = str(CONTEXTS[0]), str(CONTEXTS[-1])
    lines = []
    for name, result in t.decode.items():
        a, b = result["points"][short], result["points"][long]
        lines.append(
            f"`{name}`: {a['rate']:,.0f} tokens/s after {int(short):,} tokens, {b['rate']:,.0f} after {int(long):,}; "
            f"state {a['bytes'] / 1e6:,.2f} MB, then {b['bytes'] / 1e6:,.2f} MB."
        )
    return sorted(lines)


def early(t: Tables) -> list[str]:
    """Bits after few steps beside full attention's, with the number of seeds."""
    base = t.bits("mixers", "full")
    if base is None:
        return []
    lines = [
        f"Full attention: {base:.3f} bits a byte at equal parameters and equal text ({t.seeds('mixers', 'full')}). It "
        "has only begun to use its context, and a mixer that looks nearby by design is ahead of it. This says nothing "
        "about their order after longer training."
    ]
    if (behind := t.bits("mixers", "full, convolution first")) is not None:
        lines.append(
            f"`linear` and `FAVOR+` stand behind a convolution over 4 bytes; full attention there: {behind:.3f}."
        )
    for name in EARLY:
        value = t.bits("mixers", name)
        if value is not None:
            lines.append(f"`{name}`: {value - base:+.3f} bits so far ({t.seeds('mixers', name)}).")
    return lines


def encoder(t: Tables) -> list[str]:
    """What may see both ways."""
    lines, full = [], "full, sdpa, both ways"
    for name in BOTH:
        start, there, base = crossing(t, name, full), t.seconds(name, LONG), t.seconds(full, LONG)
        if there and base:
            since = (
                f"faster than full attention from {start:,} tokens on" if start else "never faster than full attention"
            )
            lines.append(f"`{name}`: {since}; {base / there:.1f} times as fast at {LONG:,}.")
    base = t.bits("encoders", "full")
    names = {name for group, name in t.quality.found if group == "encoders" and name != "full"}
    differences = {name: t.bits("encoders", name) for name in names}
    rows = [
        f"`{n}` {b - base:+.3f} ({t.seeds('encoders', n)})"
        for n, b in sorted(differences.items(), key=lambda item: item[1] or 9.0)
        if b and base
    ]
    beside = f"Bits a hidden byte after 800 steps, beside full attention's {base or 0:.3f}: {', '.join(rows)}."
    return lines + ([beside] if rows else [])


def positions(t: Tables) -> list[str]:
    """At the trained length, and at eight times it."""
    rows = [name for group, name in t.quality.found if group == "positions"]
    known = {name: (t.bits("positions", name), t.bits("positions", name, 8)) for name in rows}
    lines = []
    for name, (one, eight) in sorted(known.items(), key=lambda item: item[1][0] or 9.0):
        there = "cannot go beyond it" if eight is None else f"{eight:.3f} at 8 times that length, untrained"
        lines.append(f"`{name}`: {one:.3f} bits at the trained length, {there} ({t.seeds('positions', name)}).")
    return lines


def abilities(t: Tables) -> list[str]:
    """Which mixers learned which probe."""
    tasks: dict[str, list[str]] = {}
    for group, name in t.quality.found:
        if group.startswith("probe: "):
            task = group.removeprefix("probe: ")
            tasks.setdefault(task, [])
            if t.quality.right(task, name) >= 0.95:
                tasks[task].append(name)
    return [f"{task}: {', '.join(names) if names else 'none of them'} learned it." for task, names in tasks.items()]
