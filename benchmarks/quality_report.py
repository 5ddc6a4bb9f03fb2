"""The quality sections of docs/attention.md, from benchmarks/results/quality/."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import machine, report
from benchmarks.attention_report import HEADER, PATH
from benchmarks.quality_claims import CLAIMS, Evidence
from benchmarks.quality_models import BYTES, CONTEXT, DEPTH, DIM, GROUPS, HEADS, wanted
from benchmarks.quality_probes import LONG, NAMES, RATES, STEPS, TASKS
from benchmarks.quality_results import NEAR, SEEDS, Found, results
from benchmarks.quality_text import BATCH, HELD_OUT, HIDDEN, LENGTHS, LR
from benchmarks.quality_text import STEPS as UPDATES
from benchmarks.report import Section, row

All = dict[tuple[str, str], list[Found]]
TITLES = {
    "mixers": "First 800 steps: mixers",
    "positions": "First 800 steps: positions",
    "norms": "First 800 steps: norms and wiring",
    "feed-forward": "First 800 steps: feed-forward",
    "encoders": "First 800 steps: mixers of an encoder",
}


def write() -> None:
    """All quality sections, and the guide."""
    from benchmarks import choose

    every = results()
    facts = machine.recorded(run for runs in every.values() for run in runs)
    sections = [text(group, every) for group in GROUPS if any(key[0] == group for key in every)]
    if any(key[0].startswith("probe: ") for key in every):
        sections.append(probes(every))
    sections.append(claims(every))
    for section in sections:
        print(section.markdown(facts))
    report.write(PATH, sections, facts, HEADER)
    print(f"written: {PATH.relative_to(PATH.parent.parent)}")
    choose.write()


def text(group: str, every: All) -> Section:
    """Bits a byte of the rows of a group, at the trained length and beyond."""
    rows = GROUPS[group]
    first = next(iter(rows))
    base = every.get((group, first), [])
    lengths = [f"{n} x" for n in LENGTHS[1:]]
    table = [row("", "bits a byte", "against the first", *lengths, "seeds", "parameters")]
    for name in rows:
        runs = every.get((group, name), [])
        if not runs:
            table.append(row(name, "not run yet", *[""] * (len(lengths) + 3)))
            continue
        away = f"{_mean(runs, '1') - _mean(base, '1'):+.3f}" if base and name != first else ""
        further = [_figure([r["bits"][str(n)] for r in runs]) for n in LENGTHS[1:]]
        size = f"{runs[0]['parameters']:,}"
        table.append(row(name, _figure([r["bits"]["1"] for r in runs]), away, *further, str(len(runs)), size))
        for way in rows[name].scalings:
            scaled = [_figure([r["scaled"][way][str(n)] for r in runs]) for n in LENGTHS[1:]]
            table.append(row(f"{name}, {way} scaling, not trained with", "", "", *scaled, str(len(runs)), ""))
    return Section(TITLES[group], describe(group), table)


def describe(group: str) -> str:
    """How it was done."""
    encoder = next(iter(GROUPS[group].values())).encoder
    task = (
        f"What counts are the {HIDDEN:.0%} of the bytes that were hidden."
        if encoder
        else "At a longer text the same bytes are evaluated, with more before them, without more training."
    )
    alone = (
        ""
        if all(v.entry is None for v in GROUPS[group].values())
        else " Rows that know no places by themselves stand behind a convolution over a few bytes "
        "(ConvPositions), and so does full attention beside them."
    )
    return (
        f"{wanted(encoder):,} parameters within 2 % (the feed-forward is fitted), {DEPTH} layers, {DIM} wide, {HEADS} "
        f"heads, {BYTES} bytes as tokens; {UPDATES} steps of {BATCH} x {CONTEXT} bytes of pydoc, AdamW at {LR:g} with "
        f"a cosine; the last {HELD_OUT:,} bytes that were held out. {task} `(a-b)`: lowest and highest of the seeds; "
        f"rows within {NEAR} of the first one, and of claims that the noise hides, have {len(SEEDS)}. This is "
        "speed of learning in the first minutes, not quality: the models are small, see little text and share one "
        "learning rate, and a part that looks nearby by design is ahead of one that has to learn it. A larger budget "
        f"can turn the order.{alone}"
    )


def _mean(runs: list[Found], times: str) -> float:
    return statistics.mean(r["bits"][times] for r in runs)


def _figure(values: list[Any]) -> str:
    """A mean, with the range where there are several."""
    if None in values:
        return "cannot"
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"


def probes(every: All) -> Section:
    """The share of right answers."""
    table = [row("", *TASKS)]
    for name in NAMES:
        cells = []
        for task in TASKS:
            runs = every.get((f"probe: {task}", name), [])
            cells.append(_probe(runs) if runs else "not run yet")
        table.append(row(name, *cells))
    text = (
        f"Right answers, of a model of two layers trained for up to {STEPS:,} steps (in brackets: when 99.5 % were "
        f"right), with the better of the learning rates {RATES[0]:g} and {RATES[1]:g}; after the arrow, "
        f"of the same model on longer examples ({', '.join(LONG.values())}). What the tasks are: "
        "benchmarks/quality_probes.py."
    )
    return Section("Probes", text, table)


def _probe(runs: list[Found]) -> str:
    right, longer = (statistics.mean(r[key] for r in runs) for key in ("right", "longer"))
    steps = f" ({max(r['steps'] for r in runs):,})" if max(r["steps"] for r in runs) < STEPS else ""
    return f"{right:.0%}{steps} → {longer:.0%}"


def claims(every: All) -> Section:
    """Claims of textbooks, and the measurements here."""
    table, evidence = [row("the claim", "measured here", "seeds", "")], Evidence(every)
    for claim in CLAIMS:
        asked = Evidence(every)
        verdict = claim.check(asked)
        seeds = min((len(every[key]) for key in asked.asked), default=0)
        cells = ("not run yet", "", "") if verdict is None else (verdict[0], str(seeds), _seen(verdict[1], seeds))
        table.append(row(claim.text, *cells))
    spreads = ", ".join(f"{evidence.spread(group):.3f} ({group})" for group in GROUPS)
    text = (
        f"Claims of papers and textbooks, and whether these small models show them after {UPDATES} steps at one "
        "learning rate. 'Not seen' is no evidence against a claim, which is about larger models and longer training. "
        "`bits`: a "
        f"byte of held-out text at the trained length of {CONTEXT}, lower is better. Seeds of the same row lie "
        f"{spreads} bits from their mean (standard deviations). A difference of less than two standard errors is "
        'within the noise, and "as good as" means not worse by more than that.'
    )
    return Section("Textbook claims in the first 800 steps", text, table)


def _seen(holds: bool | None, seeds: int) -> str:
    """The verdict; a row with one seed has none."""
    if seeds < 2:
        return "one seed, no verdict"
    return "within the noise" if holds is None else "seen" if holds else "not seen"
