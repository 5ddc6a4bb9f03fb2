"""Documents in rows: nothing lost, nothing twice, no document next to its own label in another."""

import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data.packing import Packed, Style, plan

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=40).filter(lambda found: max(found) > 1)


def text(lengths):
    """Documents of these lengths; every token is different."""
    starts = np.cumsum([0, *lengths[:-1]])
    return np.arange(1, sum(lengths) + 1, dtype=np.uint32), starts


def pairs(batch):
    """(token, next token) at every place that counts."""
    seen = batch["labels"] != -100
    return list(zip(batch["input_ids"][seen].tolist(), batch["labels"][seen].tolist(), strict=True))


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 50), st.sampled_from(["fit", "split"]), st.integers(0, 99))
def test_every_pair_of_every_document_once_in_an_epoch(lengths, context, style, seed):
    ids, starts = text(lengths)
    packed = Packed(ids, plan(starts, len(ids), context, style), seed)
    wanted = Counter((int(i), int(i) + 1) for i in ids if i not in set(np.cumsum(lengths)))
    for epoch in range(2):
        assert Counter(pairs(packed.rows(epoch * packed.size, packed.size))) == wanted


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 50), st.sampled_from(["fit", "split"]))
def test_ids_of_documents_say_who_belongs_together(lengths, context, style):
    ids, starts = text(lengths)
    batch = Packed(ids, plan(starts, len(ids), context, style)).rows(0, 20)
    document = np.repeat(np.arange(len(lengths)), lengths)
    for row, label, number in zip(batch["input_ids"], batch["labels"], batch["document_ids"], strict=True):
        assert torch.equal(number == -1, label == -100) and torch.equal(number == -1, row == 0)
        length = int((number >= 0).sum())
        assert (number[:length] >= 0).all()  # padding is at the end
        assert number[0] == 0 and set(number[:length].diff().tolist()) <= {0, 1}  # 0, 1, …, each in one piece
        for i in range(int(number.max()) + 1):
            piece = (row[number == i] - 1).numpy()
            assert len(set(document[piece].tolist())) == 1 and set(np.diff(piece).tolist()) <= {1}


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 50))
def test_split_wastes_nothing_but_the_end_of_the_last_row(lengths, context):
    ids, starts = text(lengths)
    made = plan(starts, len(ids), context, "split")
    total = sum(n - 1 for n in lengths)
    assert made.size == -(-total // context)
    per_row = np.add.reduceat(made.lengths, made.firsts[:-1])
    assert (per_row[:-1] == context).all() and per_row.sum() == total


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 50))
def test_fit_cuts_only_what_is_longer_than_a_row_and_needs_few_rows(lengths, context):
    ids, starts = text(lengths)
    made = plan(starts, len(ids), context, "fit")
    assert len(made.lengths) == sum(-(-(n - 1) // context) for n in lengths)
    least = -(-sum(n - 1 for n in lengths) // context)
    assert made.size <= 11 / 9 * max(least, sum(1 for n in made.lengths if n > context / 2)) + 1 or made.filled > 0.5


def test_the_drawing_in_the_docstring():
    ids, starts = text([6, 3, 5, 2])
    drawn: dict[Style, list[str]] = {"fit": ["000001", "000011"], "split": ["000001", "011112"]}
    for style, rows in drawn.items():
        made = plan(starts, len(ids), 6, style)
        found = Packed(ids, made).rows(0, 2)["document_ids"].tolist()
        assert sorted("".join(map(str, row)) for row in found) == sorted(rows) and made.filled == 1


def test_real_lengths_are_packed_tightly_and_fast():
    lengths = np.random.default_rng(0).lognormal(5, 1, 100_000).astype(int) + 1
    starts = np.cumsum(lengths) - lengths
    began = time.perf_counter()
    made = plan(starts, int(lengths.sum()), 1024)
    assert time.perf_counter() - began < 5 and made.filled > 0.995


def test_packing_nothing_is_refused():
    with pytest.raises(ValueError, match="no document has two tokens"):
        plan(np.arange(5), 5, 8)
    with pytest.raises(ValueError, match="context must be at least 1"):
        plan(np.array([0]), 5, 0)
