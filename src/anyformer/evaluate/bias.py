"""Bias of a model: associations of words (WEAT), and pairs of sentences that differ in one term.

WEAT (Caliskan et al., 2017; arXiv:1608.07187), of word sets X, Y (targets) and A, B (attributes), cos the cosine:

```
s(w) = mean over a of cos(w, a) - mean over b of cos(w, b)
d    = (mean of s over X - mean of s over Y) / std of s over X and Y     (n - 1 in the variance)
p    = the share of splits of X and Y, into parts of their sizes, whose difference of means is at least as large
```
All splits are counted where there are at most 100,000, the real one among them; else it and 10,000 random ones.
A word's vector is that of `embed`: pooled as the model's files say, of a decoder the mean over its tokens' last states.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from anyformer.evaluate.answering import Measured
from anyformer.evaluate.intervals import Corpus, Estimate, Metric
from anyformer.evaluate.items import Item
from anyformer.evaluate.scoring import begin, score, way
from anyformer.generate import embed
from anyformer.hub.formats.guard import read_bytes

EXACT, DRAWN = 100_000, 10_000
SETS = ("X", "Y", "A", "B")
MOST = 1 << 24  # bytes of a file of words


def word_lists(file: str | Path) -> dict[str, dict[str, list[str]]]:
    """Tests by name, each with the sets X, Y, A and B; a file with these alone is one test.

    Raises:
        ValueError: naming test and set, for one that is missing, has fewer than two words, or a word twice. OSError.
    """
    text = read_bytes(Path(file).expanduser(), MOST).decode("utf-8")
    try:
        read = json.loads(text) if Path(file).suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is neither YAML nor JSON: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(read, dict) or not read:
        raise ValueError(f"{file} holds no test; a test is NAME: {{X: [words], Y: [words], A: [words], B: [words]}}")
    tests = {"weat": read} if set(SETS) <= set(read) else read
    for name, sets in tests.items():
        if not isinstance(sets, dict) or set(sets) != set(SETS):
            has = ", ".join(map(str, sets)) if isinstance(sets, Mapping) else repr(sets)[:40]
            raise ValueError(f"{file}, {name}: a test has the sets X, Y, A and B; got {has}")
        for key, words in sets.items():
            where = f"{file}, {name}, {key}"
            if not isinstance(words, list) or not all(isinstance(w, str) and w.strip() for w in words):
                raise ValueError(f"{where}: expected a list of words, got {words!r:.60}")
            if len(set(words)) < max(2, len(words)):
                raise ValueError(f"{where}: needs two words or more, each once; got {words!r:.60}")
        for one, other in (("X", "Y"), ("A", "B")):
            if both := set(sets[one]) & set(sets[other]):
                raise ValueError(f"{file}, {name}: {sorted(both)[0]!r} is in {one} and in {other}")
    return tests


def effect(x: np.ndarray, y: np.ndarray) -> float:
    """The effect size d from the associations of X and of Y."""
    spread = np.concatenate((x, y)).std(ddof=1)
    return float((x.mean() - y.mean()) / spread) if spread > 0 else 0.0


def permutation(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, int]:
    """p of the one-sided permutation test, and how many splits were counted."""
    every, n = np.concatenate((x, y)), len(x)
    found, total = x.mean() - y.mean(), every.sum()
    exact = math.comb(len(every), n) <= EXACT
    if exact:
        parts: Any = (every[list(part)].sum() for part in itertools.combinations(range(len(every)), n))
    else:
        noise = np.random.default_rng(seed)
        parts = itertools.chain((x.sum(),), (noise.permutation(every)[:n].sum() for _ in range(DRAWN)))
    sums = np.fromiter(parts, float)
    differences = sums / n - (total - sums) / len(y)
    return float((differences >= found - 1e-12).mean()), len(sums)


def associations(
    vectors: Mapping[str, np.ndarray], words: Sequence[str], a: Sequence[str], b: Sequence[str]
) -> np.ndarray:
    """s of each word, from vectors of length 1."""
    one, other = (np.stack([vectors[w] for w in some]) for some in (a, b))
    return np.array([(one @ vectors[w]).mean() - (other @ vectors[w]).mean() for w in words])


def weat(model: Any, file: str | Path, seed: int) -> Measured:
    """The effect size and the test of each set of words."""
    made = Measured({})
    for name, sets in word_lists(file).items():
        words = list(dict.fromkeys(word for some in sets.values() for word in some))
        found = embed(model, words, normalize=True).double().cpu().numpy()
        vectors = dict(zip(words, found, strict=True))
        x, y = (associations(vectors, sets[key], sets["A"], sets["B"]) for key in ("X", "Y"))
        p, splits = permutation(x, y, seed)

        def again(drawn: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> float:
            first, second = drawn[drawn < len(x)], drawn[drawn >= len(x)] - len(x)
            return effect(x[first], y[second]) if len(first) and len(second) else 0.0

        made.metrics[f"{name}, d"] = Corpus(again, len(x) + len(y))
        made.details[name] = {"p": p, "splits": splits, "sizes": {key: len(some) for key, some in sets.items()}}
        made.notes.append(f"{name}: p = {p:.4g} of {splits:,} splits")
        made.rows += [
            {"test": name, "word": w, "s": float(s)} for w, s in zip([*sets["X"], *sets["Y"]], [*x, *y], strict=True)
        ]
    return made


def templates(model: Any, items: Sequence[Item]) -> Measured:
    """The log-likelihood of the first sentence of a pair minus that of the second, in nats."""
    way(model)
    if model.reads_source:
        raise ValueError("an encoder-decoder has no likelihood of a sentence alone; use a decoder or a masked encoder")
    begin(model) if model.generates else None
    logs = [[float(v.sum()) for v in score(model, "", item.answers, item.where)] for item in items]
    values = np.array([first - second for first, second in logs])
    metrics: dict[str, Metric | Corpus] = {
        "difference": Metric(values, units="pairs"),
        "first_likelier": Metric((values > 0).astype(float), share=True),
    }
    groups = sorted({item.group for item in items if item.group})
    for group in groups:
        inside = np.array([item.group == group for item in items])
        metrics[f"difference, {group}"] = Metric(values[inside], units="pairs")
    rows = [
        {"item": i.where, "first": i.answers[0], "second": i.answers[1], "difference": float(v), "group": i.group}
        for i, v in zip(items, values, strict=True)
    ]
    return Measured(metrics, {"first_likelier, no difference": Estimate(0.5)}, rows=rows)
