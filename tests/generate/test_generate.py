"""What holds for every architecture that generates."""

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.generate import generate
from anyformer.generate.decoding import Decoding
from anyformer.generate.options import Options

from .subjects import each_page, model, names

ROWS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12], [13], [4, 5, 6, 7, 8, 9, 10, 11, 12]]
EACH = pytest.mark.parametrize("name", names())
EACH_PAGE = pytest.mark.parametrize("name", each_page())
WARM: dict[str, Any] = {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2}


def rows(m):
    """Where angles depend on the length, a text that grows past a limit is not read again: stay on one side of it."""
    by_length = any(getattr(getattr(part, "scaling", None), "by_length", False) for part in m.modules())
    return [row + ROWS[1] for row in ROWS] if by_length else ROWS


@EACH_PAGE
def test_a_row_gets_what_it_gets_alone(name):
    m = model(name)
    for options in ({}, {**WARM, "seed": 0}):
        batch = generate(m, ROWS, max_new_tokens=12, **options)
        assert batch == [generate(m, row, max_new_tokens=12, **options) for row in ROWS]
        assert batch[1] == batch[3] and len(batch[0]) == 12
    assert len({tuple(row) for row in batch}) == 3  # and it depends on the prompt


@EACH
def test_without_a_cache_the_tokens_are_the_same(name):
    m = model(name)
    count = min(12, (getattr(m, "context", None) or 64) - max(map(len, rows(m))))
    options: dict[str, Any] = {"max_new_tokens": count, **WARM, "seed": [1, 2, 3, 4]}
    assert generate(m, rows(m), **options) == generate(m, rows(m), **options, cache=False)


@EACH_PAGE
def test_rows_that_are_done_leave_and_the_others_do_not_notice(name):
    m = model(name)
    seeds = [5, 6, 7, 8]
    free = generate(m, rows(m), max_new_tokens=12, temperature=2.0, seed=seeds)
    end = free[1][3]
    expected = [row[: row.index(end)] if end in row else row for row in free]
    m.origin = {"generation": {"eos_token_id": [end]}, "config": {"eos_token_id": None}}
    try:
        for cache in (True, False):
            assert generate(m, rows(m), max_new_tokens=12, temperature=2.0, seed=seeds, cache=cache) == expected
        options = Options(12, 2.0, None, None, None, None, (), seeds, True)
        run, sizes = Decoding(m, rows(m), options), []
        while run.rows:
            run.step()
            sizes.append(len(run.ids))
    finally:
        m.origin = None
    assert min(sizes) < 4, "a row that is done must not be computed on"


@EACH
def test_greedy_is_the_highest_score_of_the_plain_forward_pass(name):
    m = model(name)
    for row, new in zip(ROWS, generate(m, ROWS, max_new_tokens=5), strict=True):
        for n, token in enumerate(new):
            if isinstance(m, af.EncoderDecoder):
                target = torch.tensor([[m.begin_id, *new[:n]]])
                logits = m(torch.tensor([row]), decoder_input_ids=target).logits
            else:
                logits = m(torch.tensor([row + new[:n]])).logits
            logits[..., [n for n in m.placeholders if n < logits.shape[-1]]] = -torch.inf  # they are never written
            assert token == int(logits[0, -1].argmax())


def test_results_come_in_the_form_of_the_prompts():
    m = model("llama:")
    lists = generate(m, [[1, 2], [3, 4]], max_new_tokens=3)
    assert generate(m, [1, 2], max_new_tokens=3) == lists[0] and isinstance(lists[0], list)
    one = generate(m, torch.tensor([1, 2]), max_new_tokens=3)
    assert one.tolist() == lists[0] and one.shape == (3,)
    both = generate(m, torch.tensor([[1, 2], [3, 4]]), max_new_tokens=3)
    assert both.tolist() == lists
    assert generate(m, [torch.tensor([1, 2]), torch.tensor([3, 4])], max_new_tokens=3) == lists
    assert m.generate([[1, 2], [3, 4]], max_new_tokens=3) == lists


def test_a_tensor_of_rows_that_end_early_is_filled_with_the_end():
    m = model("llama:")
    free = generate(m, ROWS[:2], max_new_tokens=6, temperature=2.0, seed=1)
    m.origin = {"config": {"eos_token_id": free[0][1]}}
    try:
        short = generate(m, torch.tensor([[1, 2, 3], [7, 8, 9]]), max_new_tokens=6, temperature=2.0, seed=1)
    finally:
        m.origin = None
    assert short.shape == (2, 6) and short[0].tolist() == [free[0][0]] + [free[0][1]] * 5


def test_falsy_values_mean_what_they_say():
    m = model("llama:")
    assert generate(m, [1, 2], max_new_tokens=0) == []
    assert generate(m, ROWS, max_new_tokens=0) == [[]] * 4
    assert generate(m, torch.tensor([[1, 2]]), max_new_tokens=0).shape == (1, 0)
    greedy = generate(m, [1, 2], max_new_tokens=20)
    assert generate(m, [1, 2], max_new_tokens=20, temperature=0, top_k=7, seed=4) == greedy
    hot = [generate(m, [1, 2], max_new_tokens=20, temperature=3.0, seed=seed) for seed in (0, 0, 1)]
    assert hot[0] == hot[1] != hot[2]
    free = [tuple(generate(m, [1, 2], max_new_tokens=20, temperature=3.0)) for _ in range(3)]
    assert len(set(free)) == 3, "without a seed every call draws anew"
    drawn = generate(m, [[1, 2]] * 3, max_new_tokens=20, temperature=3.0)
    assert len(set(map(tuple, drawn))) == 3, "and every row for itself"
    torch.manual_seed(3)
    first = generate(m, [1, 2], max_new_tokens=20, temperature=3.0)
    torch.manual_seed(3)
    assert generate(m, [1, 2], max_new_tokens=20, temperature=3.0) == first


def test_a_training_model_decodes_as_in_eval_mode_and_stays_as_it_was():
    m = af.build("gpt", "tiny", dropout=0.5, attention_dropout=0.5, seed=0)
    m.blocks[0].eval()
    modes = [x.training for x in m.modules()]
    got = generate(m, [1, 2, 3], max_new_tokens=10, temperature=2.0, seed=0)
    assert [x.training for x in m.modules()] == modes
    assert got == generate(m.eval(), [1, 2, 3], max_new_tokens=10, temperature=2.0, seed=0)


def test_the_context_can_be_filled_to_the_last_token():
    m = model("gpt:")
    assert len(generate(m, [1] * 60, max_new_tokens=4)) == 4
    assert len(generate(m, [1] * 60, max_new_tokens=4, cache=False)) == 4


@EACH
def test_scores_of_the_last_place_alone_are_the_same(name):
    m, ids = model(name), torch.tensor([ROWS[1], ROWS[1][::-1]])
    given = {"decoder_input_ids": ids} if isinstance(m, af.EncoderDecoder) else {}
    whole, last = m(ids, **given).logits, m(ids, **given, last=True).logits
    assert last.shape == (2, 1, whole.shape[2])
    torch.testing.assert_close(last, whole[:, -1:])
