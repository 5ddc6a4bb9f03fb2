"""Intervals, scores of classes and of confidence: equal to other packages and to brute force."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from anyformer.evaluate import baselines, calibration
from anyformer.evaluate.answering import confusion, macro_f1, token_f1
from anyformer.evaluate.intervals import Corpus, Metric, wilson
from anyformer.evaluate.items import Item


def mean(values: np.ndarray, drawn: np.ndarray) -> float:
    return float(values[drawn].mean())


@pytest.mark.parametrize("right, count", [(0, 5), (3, 7), (7, 7), (412, 900)])
def test_wilsons_interval_is_that_of_statsmodels(right: int, count: int) -> None:
    from statsmodels.stats.proportion import proportion_confint

    found = wilson(right, count)
    low, high = proportion_confint(right, count, method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((right / count, low, high), abs=1e-12)


def test_means_and_paired_differences_have_the_errors_of_the_t_test() -> None:
    from scipy import stats

    noise = np.random.default_rng(0)
    a = noise.normal(size=40)
    b = a + noise.normal(0.3, 0.1, 40)
    mean = Metric(a).estimate()
    assert mean.high == pytest.approx(a.mean() + 2 * stats.sem(a))
    found, expected = Metric(b).minus(Metric(a)), stats.ttest_rel(b, a)
    assert found is not None and found.low is not None
    assert found.value / ((found.value - found.low) / 2) == pytest.approx(expected.statistic)


def test_the_error_of_a_ratio_is_near_that_of_the_bootstrap() -> None:
    noise = np.random.default_rng(1)
    weights = noise.integers(20, 200, 300).astype(float)
    values = 2.0 * weights + noise.normal(0, 30, 300)
    one = Metric(values, weights).estimate()
    drawn = [noise.integers(0, 300, 300) for _ in range(2000)]
    spread = np.std([values[d].sum() / weights[d].sum() for d in drawn])
    assert one.high is not None and one.high - one.value == pytest.approx(2 * spread, rel=0.1)
    shown = Metric(values, weights, shown=math.exp).estimate()
    assert shown.high == pytest.approx(math.exp(one.high))


def test_the_bootstrap_covers_the_truth_and_repeats_by_its_seed() -> None:
    covered = 0
    for trial in range(60):
        values = np.random.default_rng(trial).normal(1.0, 1.0, 50)
        found = Corpus(partial(mean, values), 50, rounds=200).estimate(seed=trial)
        covered += found.low <= 1.0 <= found.high  # type: ignore[operator]
    assert 50 <= covered <= 60
    one = Corpus(partial(mean, values), 50)
    assert one.estimate(3) == one.estimate(3) != one.estimate(4)


def test_macro_f1_and_confusion_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import confusion_matrix, f1_score

    noise = np.random.default_rng(2)
    gold, guess = noise.integers(0, 4, 200), noise.integers(0, 3, 200)
    table = confusion(gold, guess, 5)  # the last class never occurs
    assert table[:4, :4].tolist() == confusion_matrix(gold, guess).tolist()
    assert macro_f1(table) == pytest.approx(f1_score(gold, guess, average="macro"))


def test_naive_bayes_is_that_of_scikit_learn() -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    noise = np.random.default_rng(3)
    words = ["red", "blue", "green", "fast", "slow", "deep"]
    texts = [" ".join(noise.choice(words, 5)) for _ in range(120)]
    labels = ["yes" if text.count("red") + text.count("fast") > 1 else "no" for text in texts]
    items = [Item(str(i), text, label=label) for i, (text, label) in enumerate(zip(texts, labels, strict=True))]
    found = baselines.bayes(items[:80], items[80:], ("no", "yes"))
    counter = CountVectorizer(ngram_range=(1, 2))
    theirs = MultinomialNB(alpha=1.0).fit(counter.fit_transform(texts[:80]), labels[:80])
    expected = theirs.predict(counter.transform(texts[80:]))
    assert [("no", "yes")[i] for i in found] == expected.tolist()


def test_the_calibration_error_is_its_definition_bin_by_bin() -> None:
    noise = np.random.default_rng(4)
    confidence = np.r_[noise.uniform(0, 1, 300), 0.0, 0.1, 1.0]
    right = (noise.uniform(0, 1, 303) < confidence**2).astype(float)
    total = 0.0
    for b in range(10):
        inside = [(c, r) for c, r in zip(confidence, right, strict=True) if b / 10 < c <= (b + 1) / 10 or (b == c == 0)]
        if inside:
            c, r = np.array(inside).mean(0)
            total += abs(r - c) * len(inside) / 303
    assert calibration.ece(confidence, right) == pytest.approx(total, abs=1e-12)
    perfect = np.repeat([0.25, 0.75], 400)
    assert calibration.ece(perfect, np.r_[[1, 0, 0, 0] * 100, [1, 1, 1, 0] * 100].astype(float)) == pytest.approx(0)


def test_risks_are_errors_among_the_most_confident_and_do_not_depend_on_the_order_of_ties() -> None:
    from sklearn.metrics import auc

    confidence, right = np.array([0.9, 0.5, 0.5, 0.7]), np.array([1.0, 0.0, 1.0, 0.0])
    assert calibration.risks(confidence, right).tolist() == pytest.approx([0, 0.5, 1.5 / 3, 0.5])
    swapped = calibration.risks(confidence[[0, 2, 1, 3]], right[[0, 2, 1, 3]])
    assert swapped.tolist() == pytest.approx(calibration.risks(confidence, right).tolist())
    noise = np.random.default_rng(5)
    c, r = noise.permutation(50) / 50, noise.integers(0, 2, 50).astype(float)
    curve = calibration.risks(c, r)
    for k in (1, 7, 50):
        best = sorted(zip(c, r, strict=True), reverse=True)[:k]
        assert curve[k - 1] == pytest.approx(1 - sum(x for _, x in best) / k)
    assert auc(np.arange(50), curve) == pytest.approx(np.trapezoid(curve))


def test_token_f1_counts_words_as_often_as_both_have_them() -> None:
    assert token_f1("The cat, the cat!", "a cat") == pytest.approx(2 / 3)
    assert token_f1("Paris", "in Paris") == pytest.approx(2 / 3)
    assert token_f1("the", "an") == 1.0 and token_f1("x", "the") == 0.0
