"""Corruption: nothing is lost, the rates are right, the same number gives the same; T5's layout against a plain one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data import corrupt
from anyformer.data.corrupt import Masking, Spans

MASK, CLS, SEP, PAD = 90, 91, 92, 93
SPECIAL = (CLS, SEP, PAD)
seeds = st.integers(0, 1 << 32)
texts = st.lists(st.integers(0, 89), min_size=2, max_size=70).map(np.array)


def rng(number):
    return corrupt.generator(5, number)


def test_the_generator_is_a_function_of_seed_and_number():
    draws = {(s, n): tuple(corrupt.generator(s, n).integers(1 << 30, size=4)) for s in range(3) for n in range(50)}
    assert len(set(draws.values())) == 150
    assert draws[1, 7] == tuple(corrupt.generator(1, 7).integers(1 << 30, size=4))


# ------------------------------------------------------------------------------------------------ BERT


@settings(max_examples=60, deadline=None)
@given(texts, seeds, st.booleans())
def test_masking_loses_nothing_and_leaves_special_tokens(ids, seed, whole):
    ids = np.concatenate(([CLS], ids, [SEP, PAD, PAD]))
    before = ids.copy()
    starts = np.arange(94) % 3 == 0 if whole else None
    read, labels = Masking(MASK, 94, SPECIAL, 0.3, starts)(ids, rng(seed))
    assert (ids == before).all()
    chosen = labels != -100
    assert (np.where(chosen, labels, read) == ids).all()  # what is said and what is kept are the text
    assert not chosen[np.isin(ids, SPECIAL)].any()
    assert not np.isin(read[chosen], SPECIAL).any()
    again = Masking(MASK, 94, SPECIAL, 0.3, starts)(ids, rng(seed))
    assert (again[0] == read).all() and (again[1] == labels).all()
    if starts is not None:
        word = -1
        words = []
        for i, t in enumerate(ids):  # a word begins at a starting token, after a special one, and is one itself
            word += bool(t in SPECIAL or starts[t] or (i and ids[i - 1] in SPECIAL))
            words.append(word)
        for w in set(words):
            assert len({bool(chosen[i]) for i in range(len(ids)) if words[i] == w}) == 1


@pytest.mark.parametrize("starts", [None, np.arange(94) % 3 == 0], ids=["tokens", "words"])
def test_masking_has_the_papers_rates(starts):
    ids = np.random.default_rng(0).integers(0, 90, 200_000)
    read, labels = Masking(MASK, 94, SPECIAL, 0.15, starts)(ids, rng(0))
    chosen = labels != -100
    assert chosen.mean() == pytest.approx(0.15, abs=0.005)
    assert (read[chosen] == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert (read[chosen] == ids[chosen]).mean() == pytest.approx(0.1 + 0.1 / 90, abs=0.01)
    other = chosen & (read != MASK) & (read != ids)
    assert len(set(read[other])) == 90  # any ordinary token
    assert (read[~chosen] == ids[~chosen]).all()


def test_words_are_known_by_how_tokens_are_written():
    assert corrupt.word_starts(["the", "##re", "is", "."]).tolist() == [True, False, True, True]
    assert corrupt.word_starts(["Ġthe", "re", "Ġis", ".", "Ċ"]).tolist() == [True, False, True, True, True]


@settings(max_examples=80, deadline=None)
@given(seeds, st.integers(2, 20))
def test_pairs_follow_each_other_or_come_from_elsewhere(seed, length):
    here, there = np.arange(length), np.arange(100, 100 + length)
    found = corrupt.pair(here, there, rng(seed))
    assert len(found.first) >= 1 and len(found.second) >= 1 and len(found.first) + len(found.second) == length
    whole = np.concatenate((found.first, found.second))
    follows = whole.tolist() == here.tolist()
    assert follows == (found.label == 0)
    assert follows or found.second.tolist() == there[: len(found.second)].tolist()
    joined, types = found.joined(500, 501)
    assert joined.tolist() == [500, *found.first, 501, *found.second, 501]
    assert types.tolist() == [0] * (len(found.first) + 2) + [1] * (len(found.second) + 1)


def test_half_of_the_pairs_follow_and_what_follows_by_chance_does():
    labels = [corrupt.pair(np.arange(20), np.arange(30, 50), rng(i)).label for i in range(2000)]
    assert np.mean(labels) == pytest.approx(0.5, abs=0.04)
    assert not any(corrupt.pair(np.zeros(9), np.zeros(9), rng(i)).label for i in range(50))
    with pytest.raises(ValueError, match="two windows of one length, at least 2 tokens; got 9 and 8"):
        corrupt.pair(np.zeros(9), np.zeros(8), rng(0))


# -------------------------------------------------------------------------------------------------- T5


def spans(**options):
    return Spans(tuple(range(199, 99, -1)), end=98, **options)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 300), seeds, st.sampled_from([0.1, 0.15, 0.5, 0.9]), st.sampled_from([1.0, 3.0, 10.0]))
def test_spans_are_t5s(count, seed, density, mean):
    ids = np.arange(1000, 1000 + count)
    spans_ = Spans(tuple(range(999, 499, -1)), 1, density, mean)
    source, target = spans_(ids, rng(seed))
    # as the published code counts: hidden tokens within [1, n - 1], spans at least 1 and no more than kept tokens
    hidden = min(max(int(np.round(count * density)), 1), count - 1)
    number = max(int(np.round(hidden / mean)), 1)
    number = min(number, count - hidden)
    assert (target >= 1000).sum() == hidden and (source >= 1000).sum() == count - hidden
    for side in (source, target):
        assert side[-1] == 1 and (side == 1).sum() == 1
        assert side[(side >= 500) & (side < 1000)].tolist() == list(range(999, 999 - number, -1))
    assert (len(source), len(target)) == spans_.lengths(count)
    assert source[0] == 1000 and target[0] == 999 and source[-2] == 1000 - number  # begins kept, ends hidden
    # nothing is lost: each sentinel of the source replaced by what the target says about it gives the text
    said: dict[int, list[int]] = {}
    key = 0
    for t in target[:-1]:
        key = t if t < 1000 else key
        said.setdefault(key, [])
        if t >= 1000:
            said[key].append(t)
    assert all(said.values())
    assert [t for s in source[:-1] for t in (said[s] if s < 1000 else [s])] == ids.tolist()


def test_spans_at_the_papers_length():
    assert spans().lengths(568) == (512, 114)  # 512 tokens of source and 114 of target, as the paper's settings give
    assert spans().room(512) == 568


def test_all_cuts_are_alike_likely():
    counts: dict = {}
    for i in range(6000):
        cut = tuple(corrupt._cut(5, 3, rng(i)))
        counts[cut] = counts.get(cut, 0) + 1
    assert len(counts) == 6 and min(counts.values()) > 850 and max(counts.values()) < 1150


def test_spans_refuse():
    with pytest.raises(ValueError, match="at least 2 tokens"):
        spans()(np.array([1]), rng(0))
    with pytest.raises(ValueError, match="3 hidden spans, and there are 2 sentinels"):
        Spans((9, 8), 1)(np.arange(60), rng(0))


# ------------------------------------------------------------------------------------------------ BART


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 80), seeds, st.sampled_from([0.1, 0.3, 0.8]))
def test_infilling_keeps_what_it_does_not_hide(count, seed, rate):
    ids = np.arange(1000, 1000 + count)
    found = corrupt.infill(ids, MASK, rng(seed), rate)
    kept = found[found != MASK]
    assert len(kept) == count - round(count * rate)
    assert (np.diff(kept) > 0).all() and set(kept) <= set(ids)
    for a, b in itertools.pairwise(found):  # without a mask between, tokens were neighbours
        assert MASK in (a, b) or b == a + 1


def test_infilled_spans_are_poisson():
    lengths = []
    for i in range(300):
        ids = np.arange(1000, 1400)
        found = corrupt.infill(ids, MASK, rng(i), 0.1)
        at = 1000
        for k, token in enumerate(found):
            if token == MASK:
                following = found[k + 1] if k + 1 < len(found) else 1400
                if following != MASK and (k == 0 or found[k - 1] != MASK):  # masks side by side cannot be told apart
                    lengths.append(following - at)
            else:
                at = token + 1
    assert np.mean(lengths) == pytest.approx(3.0, abs=0.25)  # the last span of a text is cut
    assert np.mean(np.array(lengths) == 0) == pytest.approx(np.exp(-3), abs=0.02)


@settings(max_examples=60, deadline=None)
@given(texts, seeds)
def test_other_noise_keeps_the_tokens(ids, seed):
    order = np.arange(len(ids))
    hidden = corrupt.hide(ids, MASK, rng(seed), 0.4)
    assert ((hidden == ids) | (hidden == MASK)).all()
    left = corrupt.delete(order, rng(seed), 0.4)
    assert (np.diff(left) > 0).all() and set(left) <= set(order)
    rotated = corrupt.rotate(order, rng(seed))
    assert np.roll(rotated, rotated[0]).tolist() == order.tolist()
    stops = (3, 4)
    permuted = corrupt.permute(ids, stops, rng(seed))

    def sentences(x):
        found: list[tuple[int, ...]] = []
        now: list[int] = []
        for t in x:
            now.append(int(t))
            if t in stops:
                found, now = [*found, tuple(now)], []
        return found, tuple(now)

    whole, rest = sentences(ids)
    assert sorted(permuted) == sorted(ids)
    if not rest:
        assert sorted(sentences(permuted)[0]) == sorted(whole)


def test_rates_of_masking_deletion_and_rotation():
    ids = np.arange(100_000)
    assert (corrupt.hide(ids, -1, rng(0), 0.2) == -1).mean() == pytest.approx(0.2, abs=0.01)
    assert len(corrupt.delete(ids, rng(0), 0.2)) == pytest.approx(80_000, rel=0.01)
    starts = [int(corrupt.rotate(np.arange(10), rng(i))[0]) for i in range(1000)]
    assert np.bincount(starts).min() > 60
    orders = {tuple(corrupt.permute(np.array([1, 9, 2, 9, 3, 9]), (9,), rng(i))) for i in range(100)}
    assert len(orders) == 6


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_rates_are_shares(rate):
    for call in (
        lambda: Masking(1, 9, (), rate),
        lambda: spans(density=rate),
        lambda: corrupt.delete(np.arange(3), rng(0), rate),
    ):
        with pytest.raises(ValueError, match="must be above 0 and below 1"):
            call()
