"""docs/attention.md, its plots, and the tables that "choose an attention" reads: all from benchmarks/results/."""

from __future__ import annotations

import itertools
from typing import Any

from benchmarks import choose, machine, report
from benchmarks.attention_decode import DEPTH, STEPS
from benchmarks.attention_mixers import BOUNDS, DECODING, DIM, ENTRIES, FAMILIES, HEADS
from benchmarks.attention_peers import PEERS
from benchmarks.attention_results import (
    BYTES,
    CHECKED,
    CONTEXTS,
    FROM,
    LENGTHS,
    ROUNDS,
    SECONDS,
    exponent,
    medians,
    results,
)  # fmt: skip
from benchmarks.contest import ROOT, ratio
from benchmarks.report import Section, row

Found = dict[str, Any]
PATH = ROOT / "docs" / "attention.md"
HEADER = """# Every attention, measured on a CPU

Written by `make bench-attention` (`python -m benchmarks.attention [cost] [decode]`) and `make bench-quality`
(`python -m benchmarks.quality`); do not edit. In short:
[what attention costs, and what learns fastest](choose-an-attention.md).

A figure belongs to the processor and the instruction set that its section names, and says nothing about GPUs. Sections
that name no instruction set were measured before it was recorded.
"""
QUIET = 0.2


def write() -> None:
    """All sections for which there are results, and the guide."""
    cost, decode = results("attention-cost"), results("attention-decode")
    sections: list[Section] = []
    if cost:
        sections += [
            times("Time, forward and backward", "both", cost),
            times("Time, forward", "forward", cost),
            memory(cost),
            beside(cost),
        ]
        plot(cost, "both", "seconds, forward and backward", "attention-time.png")
        plot(cost, "both_bytes", "bytes at the peak, forward and backward", "attention-memory.png")
    if decode:
        sections.append(decoding(decode))
    facts = machine.recorded([*cost.values(), *decode.values()])
    for section in sections:
        print(section.markdown(facts))
    report.write(PATH, sections, facts, HEADER)
    print(f"written: {PATH.relative_to(ROOT)}")
    choose.write()


def times(title: str, way: str, cost: dict[str, Found]) -> Section:
    """Milliseconds by length, and the exponent."""
    table = [row("ms at a length of", *(f"{n:,}" for n in LENGTHS), "exponent", "expected", "")]
    for name, entry in mine(cost).items():
        values = medians(cost[name], way)
        cells = [f"{1000 * values[n]:,.1f}" if n in values else "—" for n in LENGTHS]
        table.append(row(name, *cells, *grown(values, entry.time)))
    text = (
        f"One layer: {DIM} numbers wide, {HEADS} heads of {DIM // HEADS}, one text, float32, its projections included. "
        'Causal, except rows "both ways" and bidirectional mixers. '
        f"Median of up to {ROUNDS} turns. The exponent is fitted over lengths from {FROM:,} on, at least the three "
        "longest: time grows as length to that power. Aim: below "
        f"{BOUNDS['linear'][1]} for mixers of linear cost, from {BOUNDS['quadratic'][0]} to "
        f"{BOUNDS['quadratic'][1]} for what is quadratic (the projections are linear, so it stays below 2)."
    )
    text += (
        " Memory that was used once is kept for the next pass, for everybody: by itself glibc fetches each tensor of "
        "more than 32 MB from the system anew, which at 32,768 tokens can take as long as the work. A program of yours "
        "runs like this with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 in its environment. A memory of "
        "2,048 items is searched before it is full, so up to twice that length its time grows faster than the text; "
        "the Fourier transform is short enough to feel where its numbers leave the cache."
    )
    picture = "\n\n![time by length](attention-time.png)" if way == "both" else ""
    return Section(title, text + picture, table, notes=notes(cost) if way == "both" else [])


def memory(cost: dict[str, Found]) -> Section:
    """Megabytes by length, and the exponent."""
    table = [
        row("MB at a length of", *(f"{n:,}" for n in LENGTHS), "exponent", "expected", "", "forward, MB", "exponent")
    ]
    for name, entry in mine(cost).items():
        values, forward = medians(cost[name], "both_bytes"), medians(cost[name], "forward_bytes")
        cells = [f"{values[n] / 1e6:,.1f}" if n in values else "—" for n in LENGTHS]
        longest = max(forward)
        alone = f"{forward[longest] / 1e6:,.0f} at {longest:,}", grown(forward, entry.memory)[0]
        table.append(row(name, *cells, *grown(values, entry.memory), *alone))
    text = (
        "The highest resident memory of a forward and a backward pass, less what was there before it: parameters, "
        "their gradients and the input are not counted, all that a pass makes is (attention_worker.py says how)."
        "\n\n![memory by length](attention-memory.png)"
    )
    return Section("Peak memory, forward and backward", text, table)


def beside(cost: dict[str, Found]) -> Section:
    """How many times as long, and how much memory, a peer takes."""
    shown = [n for n in LENGTHS if n >= 1024]
    table = [row("ours", "peer", "pass", *(f"{n:,}" for n in shown), "memory", "numbers differ by", "")]
    for name, peer in PEERS.items():
        if peer.ours not in cost or not cost.get(name, {}).get("points"):
            continue
        for way, title in (("forward", "forward"), ("both", "both")):
            us, them = (cost[k]["points"] for k in (peer.ours, name))
            shared = [n for n in shown if way in us.get(str(n), {}) and way in them.get(str(n), {})]
            r = {n: turns_ratio(them[str(n)][way], us[str(n)][way]) for n in shared}
            cells = [f"{r[n][0]:.2f}" if n in r else "—" for n in shown]
            last = str(max(shared)) if shared else ""
            used = f"{them[last][f'{way}_bytes'] / max(1, us[last][f'{way}_bytes']):.2f}" if last else "—"
            error = f"{cost[name]['error']:.0e}" if way == "forward" else ""
            table.append(row(peer.ours, name, title, *cells, used, error, verdict(r)))
    text = (
        "Time of the peer divided by ours, with the same weights, each in a process of its own, in turns; the "
        "memory is compared at the longest length that both did. Numbers differ by: the largest difference of the "
        f"outputs at {CHECKED:,} tokens, as a share of the largest output. Aim: ahead at every length. Level: 1 is "
        "within the quartiles of the turns. `—`: beyond "
        f"{SECONDS:.0f} s or {BYTES >> 30} GiB, for one of the two. No package with the same mathematics was found for "
        f"{', '.join(n for n in mine(cost) if not any(p.ours == n for p in PEERS.values()))}."
    )
    return Section("Beside peers", text, table)


def turns_ratio(peer: list[float], ours: list[float]) -> tuple[float, float, float]:
    """Peer / ours of the turns that both took."""
    count = min(len(peer), len(ours))
    return ratio(peer[:count], ours[:count])


def verdict(r: dict[int, tuple[float, float, float]]) -> str:
    """Ahead at every length, or where not. Level: 1 is within the quartiles of the turns."""
    behind = [f"{n:,}" for n, (_, _, high) in r.items() if high < 1]
    level = [f"{n:,}" for n, (_, low, high) in r.items() if low <= 1 <= high]
    parts = [f"behind at {', '.join(behind)}"] * bool(behind) + [f"level at {', '.join(level)}"] * bool(level)
    return "; ".join(parts) or ("ahead at every length" if r else "not measured")


def decoding(decode: dict[str, Found]) -> Section:
    """Tokens a second and bytes."""
    heads = [f"{c:,}" for c in CONTEXTS]
    table = [row("after a context of", *(f"{h}: tokens/s" for h in heads), *(f"{h}: state, MB" for h in heads))]
    for name in DECODING:
        if name in decode:
            at = [decode[name]["points"][str(c)] for c in CONTEXTS]
            rates, sizes = [f"{p['rate']:,.0f}" for p in at], [f"{p['bytes'] / 1e6:,.2f}" for p in at]
            table.append(row(name, *rates, *sizes))
    text = (
        f"A decoder of {DEPTH} layers with an MLP of {4 * DIM}, one text, float32; the median of {STEPS} tokens after "
        "the context. State: `state.bytes()`, with the space reserved for more tokens.\n\n"
        "![tokens a second by context](attention-decoding.png)"
    )
    plot_decoding(decode)
    return Section("Decoding", text, table)


def mine(cost: dict[str, Found]) -> dict[str, Any]:
    """The mixers of ours that were measured."""
    return {name: entry for name, entry in ENTRIES.items() if name in cost}


def grown(values: dict[int, float], stated: str) -> tuple[str, str, str]:
    """The exponent, the expected growth, and whether it holds."""
    fitted, (low, high) = exponent(values), BOUNDS[stated]
    if fitted is None:
        return "—", stated, "fewer than three lengths"
    return f"{fitted:.2f}", stated, "held" if low <= fitted <= high else "less" if fitted < low else "missed"


def notes(cost: dict[str, Found]) -> list[str]:
    """Where a mixer stopped, and whether the machine was quiet."""
    ends: dict[str, list[str]] = {}
    for name in mine(cost):
        if cost[name]["stopped"]:
            ends.setdefault(cost[name]["stopped"], []).append(name)
    lines = [f"no longer text, {why}: {'; '.join(names)}." for why, names in ends.items()]
    lines += [
        f"{name} {cost[name]['stopped']}." for name in PEERS if "not measured" in cost.get(name, {}).get("stopped", "")
    ]
    loud = [name for name in mine(cost) if cost[name]["busy"] > QUIET]
    return lines + ([f"other programs kept cores busy: trust no figure of {', '.join(loud)}."] if loud else [])


def _axes(panels: int, title: str, across: str) -> list[Any]:
    """Panels beside each other, two a row, with logarithmic axes that all share."""
    from matplotlib.figure import Figure

    rows, columns = -(-panels // 2), min(panels, 2)
    figure = Figure(figsize=(6.5 * columns, 5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.supylabel(title)
    figure.supxlabel(across)
    for axes in grid.flat:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return list(grid.flat)


def _line(axes: Any, values: dict[int, float], number: int, label: str) -> None:
    """A line that differs from its neighbours; number -1: grey, to compare with."""
    colour, style = ("0.6", "o--") if number < 0 else (f"C{number % 10}", ("o-", "s:")[number // 10 % 2])
    axes.plot(list(values), list(values.values()), style, color=colour, label=label, lw=1.4, ms=3)


def plot(cost: dict[str, Found], way: str, title: str, name: str) -> None:
    """A line for each mixer; a panel for each family, with full attention in all of them."""
    panels, known = _axes(len(FAMILIES), title, "length, tokens"), list(mine(cost))
    first = next(iter(FAMILIES.values()))
    begins = [*(known.index(begin) for begin in FAMILIES.values() if begin in known), len(known)]
    for axes, family, (start, end) in zip(panels, FAMILIES, itertools.pairwise(begins), strict=False):
        axes.set_title(family, fontsize=10)
        if known[start] != first:
            _line(axes, medians(cost[first], way), -1, first)
        for i, mixer in enumerate(known[start:end]):
            _line(axes, medians(cost[mixer], way), i, mixer)
        axes.legend(fontsize=6, frameon=False, loc="upper left", ncols=2)
    panels[0].figure.savefig(PATH.parent / name, dpi=90)


def plot_decoding(decode: dict[str, Found]) -> None:
    """Tokens a second by context."""
    (axes,) = _axes(1, "tokens a second", "context, tokens")
    for i, mixer in enumerate(m for m in DECODING if m in decode):
        _line(axes, {c: decode[mixer]["points"][str(c)]["rate"] for c in CONTEXTS}, i, mixer)
    axes.figure.set_size_inches(10, 5.5)
    axes.figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    axes.figure.savefig(PATH.parent / "attention-decoding.png", dpi=90)
