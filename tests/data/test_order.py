"""The order of data as a function: permutations, epochs, processes, mixtures, threads. No test here reads a file."""

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anyformer.data.batches import Numbered
from anyformer.data.mixing import BLOCK, Mixture, shares
from anyformer.data.order import Epochs, Global, Items, Rows, permuted, shuffled
from anyformer.data.prefetch import Prefetch
from anyformer.data.text import Windows

IDS = np.arange(1003, dtype=np.uint16)
SEED = st.integers(0, 2**63)


def listed(items: np.ndarray) -> dict[str, torch.Tensor]:
    return {"item": torch.from_numpy(items)}


def together(*batches):
    return {name: torch.cat([b[name] for b in batches]) for name in batches[0]}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------- permutation


@settings(deadline=None)
@given(st.integers(1, 3000), SEED, st.integers(0, 10**6))
def test_permutation_has_everything_once(size, seed, epoch):
    assert sorted(permuted(np.arange(size), size, seed, epoch).tolist()) == list(range(size))


@settings(deadline=None)
@given(st.integers(1, 10**15), SEED, st.data())
def test_a_place_does_not_depend_on_the_others(size, seed, data):
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    whole = permuted(places, size, seed)
    assert ((whole >= 0) & (whole < size)).all() and len(set(whole)) == len(set(places))
    assert [int(permuted(places[i : i + 1], size, seed)[0]) for i in range(len(places))] == whole.tolist()


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_permutation_of_a_few_is_about_as_frequent(size):
    drawn = Counter(tuple(permuted(np.arange(size), size, seed).tolist()) for seed in range(3000))
    many = math.factorial(size)
    chi = sum((n - 3000 / many) ** 2 / (3000 / many) for n in drawn.values())
    assert len(drawn) == many and chi < (many - 1) + 4 * (2 * (many - 1)) ** 0.5


def test_place_and_neighbours_say_nothing():
    """Over many seeds the first item is everywhere equally often, and the step from one place to the next too."""
    size, seeds = 50, 2000
    tables = np.stack([permuted(np.arange(size), size, seed) for seed in range(seeds)])  # (seeds, size)
    for column in (
        tables[:, 0],
        tables[:, 49],
        (tables[:, 1] - tables[:, 0]) % size,
        (tables[:, 30] + tables[:, 7]) % size,
    ):
        counts = np.bincount(column, minlength=size)[1 if (column == 0).sum() == 0 else 0 :]
        chi = ((counts - seeds / len(counts)) ** 2 / (seeds / len(counts))).sum()
        assert chi < len(counts) + 5 * (2 * len(counts)) ** 0.5
    # two epochs of one seed are as unlike as two seeds
    epochs = [permuted(np.arange(1000), 1000, 0, e) for e in range(2)]
    assert abs(np.corrcoef(epochs[0], epochs[1])[0, 1]) < 0.1 and (epochs[0] == epochs[1]).sum() < 10


def test_large_orders_take_no_memory_and_little_time():
    began = time.perf_counter()
    assert len(set(permuted(np.arange(1000), 10**15, 1).tolist())) == 1000
    assert time.perf_counter() - began < 1


# ------------------------------------------------------------------------------------- epochs and processes


@settings(deadline=None)
@given(st.integers(1, 60), SEED, st.integers(0, 200), st.integers(1, 150))
def test_each_item_once_in_an_epoch_wherever_a_batch_begins(size, seed, first, count):
    epochs, items = shuffled(first, count, size, seed)
    whole = shuffled(0, (first + count + size) // size * size, size, seed)
    assert np.array_equal(items, whole[1][first : first + count])
    assert np.array_equal(epochs, np.arange(first, first + count) // size)
    for epoch in range(len(whole[0]) // size):
        assert sorted(whole[1][whole[0] == epoch].tolist()) == list(range(size))


MAKERS: dict[str, Callable[[int], Rows]] = {
    "items": lambda seed: Items(37, listed, seed),
    "epochs": lambda seed: Epochs(IDS, 16, seed),
    "drawn": lambda seed: Windows(IDS, 1, 16, seed),
    "mixture": lambda seed: Mixture((Epochs(IDS, 16, seed), Epochs(IDS[::-1], 16, seed)), (0.7, 0.3), seed),
}


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(MAKERS)), SEED, st.integers(0, 500))
def test_processes_together_see_the_batch_of_one(kind, seed, number):
    rows, batch = MAKERS[kind](seed), 12
    whole = Global(rows, batch)(number)
    for size in (1, 2, 3, 4, 6, 12):
        assert same(together(*(Global(rows, batch, rank, size)(number) for rank in range(size))), whole)
    halves = [Global(rows, batch // 2)(2 * number + i) for i in range(2)]
    assert same(together(*halves), whole)  # accumulation
    assert same(Global(MAKERS[kind](seed), batch)(number), whole)  # no state
    assert not same(Global(MAKERS[kind](seed + 1), batch)(number), whole)


def test_shares_that_do_not_work_out_are_refused():
    rows = Items(5, listed)
    with pytest.raises(ValueError, match="batch=6 cannot be shared by 4 processes; use a multiple of 4"):
        Global(rows, 6, 0, 4)
    with pytest.raises(ValueError, match="rank must be from 0 to 1, got 2"):
        Global(rows, 6, 2, 2)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        Global(rows, 0)
    with pytest.raises(ValueError, match="no examples"):
        Items(0, listed)


def test_windows_of_an_epoch_lie_side_by_side_and_their_cuts_move():
    rows, offsets = Epochs(IDS, 16, seed=3), set()
    assert rows.size == 62
    for epoch in range(12):
        ids = rows.rows(epoch * 62, 62)["input_ids"]
        assert torch.equal(rows.rows(epoch * 62, 62)["labels"], ids + 1)  # as the text counts up
        starts = sorted(ids[:, 0].tolist())
        assert {b - a for a, b in itertools.pairwise(starts)} == {16} and starts[-1] + 16 <= 1002
        offsets.add(starts[0])
    assert len(offsets) > 3 and max(offsets) <= 1002 - 62 * 16
    with pytest.raises(ValueError, match="has 16 tokens, and one window of context=16 needs 17"):
        Epochs(IDS[:16], 16)
    assert Epochs(IDS[:17], 16).rows(0, 3)["input_ids"].shape == (3, 16)


# ------------------------------------------------------------------------------------------------- mixing


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), SEED)
def test_shares_are_those_of_the_weights(weights, seed):
    assume(min(weights) >= sum(weights) / 1000)  # less is refused
    share = shares(tuple(weights))
    assert share.sum() == BLOCK and np.abs(share / BLOCK - np.array(weights) / sum(weights)).max() < 1 / BLOCK
    mixture = Mixture(tuple(Items(10, listed) for _ in weights), tuple(weights), seed)
    assert mixture.rows_before(3 * BLOCK) == (3 * share).tolist()


@settings(deadline=None, max_examples=30)
@given(SEED, st.integers(0, 5000), st.integers(1, 1500))
def test_each_source_gives_its_rows_one_after_another(seed, first, count):
    class Count:
        def __init__(self, sign):
            self.sign = sign

        def rows(self, first, count):
            return {"row": self.sign * (1 + torch.arange(first, first + count))}

    mixture = Mixture((Count(1), Count(-1)), (3, 1), seed)
    rows = mixture.rows(first, count)["row"]
    for source, sign in enumerate((1, -1)):
        mine = (rows[rows.sign() == sign].abs() - 1).tolist()
        begin, end = mixture.rows_before(first)[source], mixture.rows_before(first + count)[source]
        assert mine == list(range(begin, end))


def test_mixed_well_within_a_block():
    mixture = Mixture((Items(1, listed), Items(1, lambda i: listed(i + 1))), (9, 1))
    tenths = mixture.rows(0, BLOCK)["item"].view(10, 100).sum(1)
    assert tenths.sum() == 100 and tenths.min() >= 2 and tenths.max() <= 22


def test_mixtures_that_are_none_are_refused():
    rows = Items(5, listed)
    with pytest.raises(ValueError, match=r"weights must be above 0, got 1, 0; leave out"):
        Mixture((rows, rows), (1, 0))
    with pytest.raises(ValueError, match="one weight a source: 2 and 1"):
        Mixture((rows, rows), (1,))
    with pytest.raises(ValueError, match=r"0\.0001 is less than a thousandth"):
        Mixture((rows, rows), (1, 0.0001))
    with pytest.raises(ValueError, match="source 1 of the mixture has other names or shapes"):
        Mixture((Epochs(IDS, 8), Epochs(IDS, 9)), (1, 1)).rows(0, 50)


# --------------------------------------------------------------------------------------------- prefetching


def slow(number):
    """Later batches are ready sooner."""
    time.sleep(0.01 if number % 2 == 0 else 0)
    return {"x": torch.tensor(number)}


@pytest.mark.parametrize("workers, ahead", [(1, None), (3, None), (2, 1), (4, 9)])
def test_ahead_of_time_in_the_same_order(workers, ahead):
    with Prefetch(slow, workers, ahead) as batches:
        assert [int(batches(i)["x"]) for i in range(20)] == list(range(20))
        assert [int(batches(i)["x"]) for i in (3, 100, 7, 7, 8)] == [3, 100, 7, 7, 8]  # and out of it
    mixture = MAKERS["mixture"](5)
    with Prefetch(Global(mixture, 4), workers, ahead) as batches:
        assert all(same(batches(i), Global(mixture, 4)(i)) for i in range(10, 40))


def test_batches_are_made_before_they_are_asked_for():
    made: list[int] = []
    with Prefetch(lambda i: made.append(i) or {}, workers=1, ahead=3) as batches:  # type: ignore[func-returns-value]
        batches(0)
        end = time.monotonic() + 5
        while len(made) < 4:
            assert time.monotonic() < end
            time.sleep(0.001)
        assert made == [0, 1, 2, 3]


def test_an_error_comes_where_the_batch_is_asked_for_and_threads_end():
    def broken(number):
        if number == 2:
            raise OSError("the disk is gone")
        return {"x": torch.tensor(number)}

    with Prefetch(broken, workers=2) as batches:
        assert int(batches(0)["x"]) == 0 and int(batches(1)["x"]) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            batches(2)
        assert int(batches(3)["x"]) == 3
        with pytest.raises(OSError, match="the disk is gone"):
            batches(2)
    with pytest.raises(KeyboardInterrupt), Prefetch(slow, workers=2) as batches:
        batches(0)
        raise KeyboardInterrupt
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]
    with pytest.raises(RuntimeError):
        batches(1)


def test_what_keeps_a_state_is_refused():
    with pytest.raises(ValueError, match="keeps a state"):
        Prefetch(Numbered([{"x": torch.tensor(0)}]))
    with pytest.raises(ValueError, match="workers and ahead must be at least 1, got 0 and 1"):
        Prefetch(slow, workers=0)
