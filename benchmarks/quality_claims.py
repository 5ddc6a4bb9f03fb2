"""Textbook claims as functions of what was measured. A claim that lacks a run is not judged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.quality_results import Found

SPREAD = 0.05  # bits a byte: the deviation of seeds, as long as no row of a group has several
Said = tuple[str, bool | None]  # what was measured, and whether the claim held; None = the noise is larger


class Lacking(Exception):
    """A run that a claim needs has not been done."""


class Evidence:
    """What was found, by name; and of which rows (group and name) somebody asked."""

    def __init__(self, runs: dict[tuple[str, str], list[Found]]):
        self.found = runs
        self.asked: set[tuple[str, str]] = set()

    def bits(self, group: str, name: str, times: int = 1, way: str = "") -> float:
        """The mean bits a byte at `times` the trained length; infinite where the model cannot."""
        runs = self._runs(group, name)
        values = [(r["scaled"][way] if way else r["bits"])[str(times)] for r in runs]
        return math.inf if None in values else statistics.mean(values)

    def right(self, task: str, name: str, key: str = "right") -> float:
        """The mean share of right answers of a probe."""
        return statistics.mean(r[key] for r in self._runs(f"probe: {task}", name))

    def spread(self, group: str) -> float:
        """How far seeds of the same row of a group lie from their mean: the pooled standard deviation, in bits."""
        several = [runs for key, runs in self.found.items() if key[0] == group and len(runs) > 1]
        rows = [[r["bits"]["1"] for r in runs] for runs in several]
        free = sum(len(values) - 1 for values in rows)
        return math.sqrt(sum(statistics.variance(v) * (len(v) - 1) for v in rows) / free) if free else SPREAD

    def noise(self, group: str, one: str, other: str) -> float:
        """Two standard errors of the difference between two rows."""
        return 2 * self.spread(group) * math.sqrt(sum(1 / len(self._runs(group, name)) for name in (one, other)))

    def _runs(self, group: str, name: str) -> list[Found]:
        if (group, name) not in self.found:
            raise Lacking(name)
        self.asked.add((group, name))
        return self.found[group, name]


@dataclass(frozen=True)
class Claim:
    """A sentence, and what decides it."""

    text: str
    judge: Callable[[Evidence], Said]

    def check(self, evidence: Evidence) -> Said | None:
        """None while a run is lacking."""
        try:
            return self.judge(evidence)
        except Lacking:
            return None


def below(group: str, better: str, worse: str) -> Callable[[Evidence], Said]:
    """The first has fewer bits a byte than the second."""

    def judge(e: Evidence) -> Said:
        a, b, noise = e.bits(group, better), e.bits(group, worse), e.noise(group, better, worse)
        return f"{better}: {a:.3f} bits, {worse}: {b:.3f}", None if abs(a - b) <= noise else a < b

    return judge


def near(group: str, one: str, base: str, most: float = 0.0) -> Callable[[Evidence], Said]:
    """The first is at most `most`, or what noise may be, worse than the second."""

    def judge(e: Evidence) -> Said:
        a, b, noise = e.bits(group, one), e.bits(group, base), e.noise(group, one, base)
        return f"{one}: {a:.3f} bits, {base}: {b:.3f}", a <= b + max(most, noise)

    return judge


def stretches(name: str, holds: bool, group: str = "positions") -> Callable[[Evidence], Said]:
    """At 8 times the trained length it is no worse by 0.05 bits, or it is."""

    def judge(e: Evidence) -> Said:
        one, eight = e.bits(group, name), e.bits(group, name, 8)
        there = "cannot" if math.isinf(eight) else f"{eight:.3f}"
        return f"{one:.3f} bits at 1 x, {there} at 8 x", (eight <= one + 0.05) == holds

    return judge


def repaired(way: str) -> Callable[[Evidence], Said]:
    """A rotary scaling is better at 4 times the length than none."""

    def judge(e: Evidence) -> Said:
        plain, scaled = e.bits("positions", "rotary", 4), e.bits("positions", "rotary", 4, way)
        measured = f"at 4 x: {scaled:.3f} bits with it, {plain:.3f} without"
        return measured, scaled < plain - 0.01  # of the same models: seeds do not matter

    return judge


def solves(task: str, able: str, unable: str) -> Callable[[Evidence], Said]:
    """One learns the task (95 %), the other one does not."""

    def judge(e: Evidence) -> Said:
        a, b = e.right(task, able), e.right(task, unable)
        return f"{able}: {a:.0%} right, {unable}: {b:.0%}", a >= 0.95 > b

    return judge


def beats_both(hybrid: str, a: str, b: str) -> Callable[[Evidence], Said]:
    """A mixture is better than either of its parts alone."""

    def judge(e: Evidence) -> Said:
        x, y, z = (e.bits("mixers", n) for n in (hybrid, a, b))
        rival = a if y < z else b
        measured = f"{hybrid}: {x:.3f} bits, {a}: {y:.3f}, {b}: {z:.3f}"
        return measured, None if abs(x - min(y, z)) <= e.noise("mixers", hybrid, rival) else x < min(y, z)

    return judge


def best(e: Evidence) -> Said:
    """No pure mixer has fewer bits than full attention."""
    full = e.bits("mixers", "full")
    others = {n: e.bits("mixers", n) for g, n in e.found if g == "mixers" and n != "full" and "last layer" not in n}
    if not others:
        raise Lacking("mixers")
    winner = min(others, key=lambda n: others[n])
    measured = f"full: {full:.3f} bits; the best other, {winner}: {others[winner]:.3f}"
    return measured, full <= others[winner] + e.noise("mixers", "full", winner)


def undecided(runs: dict[tuple[str, str], list[Found]]) -> set[tuple[str, str]]:
    """The rows of claims that the noise hides."""
    rows: set[tuple[str, str]] = set()
    for claim in CLAIMS:
        evidence = Evidence(runs)
        verdict = claim.check(evidence)
        if verdict is not None and verdict[1] is None:
            rows |= evidence.asked
    return rows


CLAIMS = (
    Claim("At equal parameters and tokens, nothing mixes better than full attention.", best),
    Claim("Grouped key/value heads cost almost nothing (2 of 4).", near("mixers", "GQA, 2 of 4 heads", "full")),
    Claim("One key/value head costs a little.", below("mixers", "full", "MQA, 1 of 4 heads")),
    Claim("Latent attention keeps a third of the numbers and loses nothing.",
          near("mixers", "latent (MLA), rank 64", "full")),
    Claim("A window costs quality.", below("mixers", "full", "window 64")),
    Claim("A window and a full layer are as good as full ones.", near("mixers", "window 64, last layer full", "full")),
    Claim("Linear attention is worse than softmax attention.",
          below("mixers", "full, convolution first", "linear, elu")),
    Claim("Hashing loses little (within 0.05).", near("mixers", "LSH, 2 rounds", "full, convolution first", 0.05)),
    Claim("Forgetting gates make positions unnecessary.", near("mixers", "forgetting gates", "full")),
    Claim("Segments with memory are as good as attention over the whole text.",
          near("mixers", "segments of 128, XL memory", "full")),
    Claim("A compressed memory adds to it.",
          below("mixers", "segments of 128, compressive memory", "segments of 128, XL memory")),
    Claim("Looking up the nearest keys adds to it.",
          below("mixers", "segments of 128, nearest 32", "segments of 128, XL memory")),
    Claim("FAVOR+, which imitates softmax, is better than elu features.", below("mixers", "FAVOR+", "linear, elu")),
    Claim("Mamba is as good as attention.", near("mixers", "Mamba", "full")),
    Claim("Mamba-2 is as good as Mamba.", near("mixers", "Mamba-2", "Mamba")),
    Claim("The delta rule is better than plain linear attention.", below("mixers", "delta", "linear, elu")),
    Claim("Forgetting helps the delta rule.", below("mixers", "gated delta", "delta")),
    Claim("A recurrent layer and an attention layer are better together than either alone.",
          beats_both("gated delta, last layer full", "gated delta", "full")),
    Claim("A decoder needs no positions: the causal mask is enough.", near("positions", "none", "rotary")),
    Claim("Rotary positions are better than sinusoidal ones.", below("positions", "rotary", "sinusoidal")),
    Claim("Learned positions end at the trained length.", stretches("learned", False)),
    Claim("Rotary positions do not reach beyond the trained length.", stretches("rotary", False)),
    Claim("T5's relative bias reaches beyond it.", stretches("T5 relative", True)),
    Claim("ALiBi reaches beyond it.", stretches("ALiBi", True)),
    Claim("ALiBi is as good as rotary positions at the trained length.", near("positions", "ALiBi", "rotary")),
    Claim("Transformer-XL's relative positions reach beyond it.", stretches("Transformer-XL relative", True)),
    Claim("Linear scaling lets rotary reach further, without training.", repaired("linear")),
    Claim("So does NTK-aware scaling.", repaired("dynamic")),
    Claim("So does YaRN.", repaired("yarn")),
    Claim("A recurrence runs on beyond the trained length.", stretches("gated delta", True, "mixers")),
    Claim("RMSNorm is as good as LayerNorm.", near("norms", "RMSNorm, pre", "LayerNorm, pre")),
    Claim("Norms before the branch train better than after it.", below("norms", "LayerNorm, pre", "LayerNorm, post")),
    Claim("DeepNorm repairs norms after the branch.", below("norms", "LayerNorm, DeepNorm", "LayerNorm, post")),
    Claim("Parallel branches cost little.", near("norms", "RMSNorm, parallel", "RMSNorm, pre")),
    Claim("SwiGLU is better than GELU at equal parameters.", below("feed-forward", "SwiGLU", "GELU")),
    Claim("Squared ReLU is better than ReLU.", below("feed-forward", "squared ReLU", "ReLU")),
    Claim("In an encoder, Linformer is as good as full attention.", near("encoders", "Linformer, rank 32", "full")),
    Claim("Nystrom attention is as good.", near("encoders", "Nystrom, 64 landmarks", "full")),
    Claim("A Fourier transform mixes nearly as well (within 5 % of the bits).",
          near("encoders", "Fourier", "full", 0.1)),
    Claim("Attention recalls, linear attention does not.", solves("recall", "full", "linear, elu")),
    Claim("The delta rule recalls what linear attention mixes up.", solves("recall", "delta", "linear, elu")),
    Claim("Attention copies, a state of fixed size does not.", solves("copying", "full", "Mamba-2")),
    Claim("A window of 64 in two layers does not reach a needle.", solves("needle", "full", "window 64")),
    Claim("Two layers of attention learn induction.", solves("induction", "full", "convolution 16")),
    Claim("What brings the token before to each token makes induction easy.",
          solves("induction", "full, convolution first", "full")),
    Claim("Attention does not learn parity, a recurrence does.", solves("parity", "gated delta", "full")),
)  # fmt: skip
