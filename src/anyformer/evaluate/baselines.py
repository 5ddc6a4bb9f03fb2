"""Baselines beside a model: chance, the most frequent answer, n-grams of the examples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from anyformer.data.baseline import Bigram
from anyformer.evaluate.answering import classes_of, confusion, gold_of, macro_f1, plainly
from anyformer.evaluate.intervals import Corpus, Estimate, Metric
from anyformer.evaluate.items import Item


def baselines(task: str, items: Sequence[Item], pool: Sequence[Item]) -> dict[str, Estimate]:
    """The baselines of a task.

    Args:
        pool: examples (`--from`), from which n-grams learn; without them there are none.
    """
    if task == "choice":
        made = {"acc, chance": Estimate(float(np.mean([1 / len(item.choices) for item in items])))}
        return made | ({"acc, bigram of the examples' answers": _bigram_choice(items, pool)} if pool else {})
    if task == "classification" and len({item.label for item in (*items, *pool)}) > 1:
        return _classes(items, pool)
    if task == "generation":
        common = Counter(answer.right for answer in (pool or items)).most_common(1)[0][0]
        right = [float(any(plainly(common) == plainly(a) for a in item.answers)) for item in items]
        return {"exact_match, the most frequent answer": Metric(np.array(right), share=True).estimate()}
    if task == "perplexity" and pool:
        bigram = Bigram()
        for item in pool:
            bigram.count((item.answers[0] if item.answers else item.text).encode())
        texts = [(item.answers[0] if item.answers else item.text).encode() for item in items]
        bits, size = np.array([_bits(bigram, text) for text in texts]), np.array([len(text) for text in texts])
        return {"bits_per_byte, bigram of bytes": Metric(bits, size, units="documents").estimate()}
    return {}


def _classes(items: Sequence[Item], pool: Sequence[Item]) -> dict[str, Estimate]:
    """The most frequent class of the examples (else of the items), and naive Bayes of words and pairs of words."""
    names = classes_of(items, pool)
    gold = gold_of(names, items)
    counts = np.bincount(gold_of(names, pool or items), minlength=len(names))
    guesses = {"majority": np.full(len(items), int(counts.argmax()))}
    if pool:
        guesses["naive Bayes of words and pairs"] = bayes(pool, items, names)
    made = dict[str, Estimate]()
    for name, guess in guesses.items():
        made[f"acc, {name}"] = Metric((guess == gold).astype(float), share=True).estimate()

        def f1(drawn: np.ndarray, guess: np.ndarray = guess) -> float:
            return macro_f1(confusion(gold[drawn], guess[drawn], len(names)))

        made[f"macro_f1, {name}"] = Corpus(f1, len(items)).estimate()
    return made


def grams(text: str) -> list[str]:
    """The words of a text, and its pairs of words."""
    words = plainly(text).split()
    return [*words, *(f"{a} {b}" for a, b in pairwise(words))]


def bayes(pool: Sequence[Item], items: Sequence[Item], names: Sequence[str]) -> np.ndarray:
    """The likeliest class of each item under p(c) prod (n(w, c) + 1) / (n(c) + V), over known words and pairs, (N,)."""
    counts = [Counter[str]() for _ in names]
    gold = gold_of(names, pool)
    for item, number in zip(pool, gold, strict=True):
        counts[number].update(grams(item.text))
    known = set().union(*counts)
    prior = np.log(np.maximum(np.bincount(gold, minlength=len(names)), 1e-9) / len(pool))  # (C,)
    totals = [math.log(sum(c.values()) + len(known)) for c in counts]
    found = []
    for item in items:
        words = [word for word in grams(item.text) if word in known]
        logs = [sum(math.log(c[w] + 1) - total for w in words) for c, total in zip(counts, totals, strict=True)]
        found.append(int(np.argmax(prior + logs)))
    return np.array(found)


def _bits(bigram: Bigram, text: bytes) -> float:
    before = bigram.bits
    bigram.predict(text)
    return bigram.bits - before


def _bigram_choice(items: Sequence[Item], pool: Sequence[Item]) -> Estimate:
    """The choice with the fewest bits a byte under a bigram of right answers: what answers alone give away."""
    bigram = Bigram()
    for item in pool:
        bigram.count((item.right + "\n").encode())
    right = []
    for item in items:
        bits = [_bits(bigram, f"{option}\n".encode()) / len(option.encode()) for option in item.choices]
        right.append(float(int(np.argmin(bits)) == item.gold))
    return Metric(np.array(right), share=True).estimate()
