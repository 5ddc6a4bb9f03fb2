"""The order and meaning of the sampling options, against transformers; the draws against the probabilities."""

from typing import Any

import pytest
import torch
from transformers import generation as hf

from anyformer.generate.options import Options
from anyformer.generate.sampling import Sampler

V = 200


def sampler(rows=1, ids=None, **options) -> Sampler:
    given = {
        "max_new_tokens": 1, "temperature": 1.0, "top_k": None, "top_p": None, "min_p": None,
        "repetition_penalty": None, "stop": (), "seed": 0, "cache": True,
    }  # fmt: skip
    return Sampler(Options(**{**given, **options}), ids or [[] for _ in range(rows)], V, torch.device("cpu"))


def probabilities(scores, **options):
    p, order = sampler(**options).candidates(scores)
    p = p / p.sum(-1, keepdim=True)
    return p if order is None else torch.zeros_like(scores).scatter_(1, order, p)


@pytest.mark.parametrize("others", [{}, {"top_k": 5}, {"typical_p": 1e-300}, {"min_p": 1.0}])
def test_the_smallest_values_leave_the_likeliest(others):
    scores = torch.randn(3, V, generator=torch.Generator().manual_seed(0))
    assert sampler(rows=3, top_p=5e-324, **others).choose(scores).tolist() == scores.argmax(-1).tolist()
    infinite = sampler(ids=[[int(scores[0].argmax())]], repetition_penalty=1e-300, top_p=0.5, **others)
    assert infinite.choose(scores[:1]).tolist() == [-1]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 30, V])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.7, 1.0])
@pytest.mark.parametrize("min_p", [None, 0.0, 0.1])
def test_probabilities_are_those_of_transformers(temperature, top_k, top_p, min_p):
    scores = torch.randn(3, V, generator=torch.Generator().manual_seed(0)) * 3
    chain = [hf.TemperatureLogitsWarper(temperature)]
    chain += [hf.TopKLogitsWarper(top_k)] if top_k is not None else []
    chain += [hf.TopPLogitsWarper(top_p)] if top_p is not None and top_p < 1 else []
    chain += [hf.MinPLogitsWarper(min_p)] if min_p is not None else []
    theirs = scores
    for warper in chain:
        theirs = warper(torch.zeros(3, 1, dtype=torch.long), theirs)
    ours = probabilities(scores, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    torch.testing.assert_close(ours, theirs.softmax(-1))


@pytest.mark.parametrize("typical_p", [0.01, 0.2, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("others", [{}, {"top_k": 20}, {"top_p": 0.8}, {"top_k": 30, "min_p": 0.02}])
def test_typical_sampling_is_that_of_transformers(typical_p, others):
    scores = torch.randn(4, V, generator=torch.Generator().manual_seed(2)) * 3
    kinds = {"top_k": hf.TopKLogitsWarper, "top_p": hf.TopPLogitsWarper, "min_p": hf.MinPLogitsWarper}
    chain = [hf.TemperatureLogitsWarper(1.3), *(kinds[name](value) for name, value in others.items())]
    chain += [hf.TypicalLogitsWarper(typical_p)] if typical_p < 1 else []
    theirs = scores
    for warper in chain:
        theirs = warper(torch.zeros(4, 1, dtype=torch.long), theirs)
    ours = probabilities(scores, temperature=1.3, typical_p=typical_p, **others)
    torch.testing.assert_close(ours, theirs.softmax(-1))


def test_repetition_penalty_is_that_of_transformers_and_counts_new_tokens():
    scores = torch.randn(2, V, generator=torch.Generator().manual_seed(1))
    ids = [[5, 9, 9, 50], [int(scores[1].argmax())]]
    ours = sampler(ids=ids, repetition_penalty=3.0, temperature=0.0)
    for _ in range(10):
        padded = torch.tensor([row + row[:1] * (40 - len(row)) for row in ids])
        expected = hf.RepetitionPenaltyLogitsProcessor(3.0)(padded, scores).argmax(-1).tolist()
        assert ours.choose(scores).tolist() == expected
        ids = [[*row, token] for row, token in zip(ids, expected, strict=True)]
    assert len(set(ids[1])) > 3


def test_draws_have_the_probabilities():
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0] + [-float("inf")] * (V - 4)])
    for options in ({}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.1}):
        draw = sampler(**options)
        n = 4000
        counts = torch.zeros(V)
        for _ in range(n):
            counts[draw.choose(scores)] += 1
        p = probabilities(scores, **options)[0]
        spread = (p * (1 - p) / n).sqrt()
        assert ((counts / n - p).abs() <= 5 * spread).all(), (options, counts[:4], p[:4])


def test_extreme_temperatures_do_not_break():
    scores = torch.randn(1, V, generator=torch.Generator().manual_seed(2)) * 1e4
    best = int(scores.argmax())
    for temperature in (1e-300, 1e-45, 1e-6):
        assert sampler(temperature=temperature).choose(scores).tolist() == [best]
    assert len({int(sampler(temperature=1e30, seed=s).choose(scores)) for s in range(20)}) > 15


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_not_finite_are_told_apart(temperature):
    scores = torch.zeros(4, V)
    scores[1, 7], scores[2, 7], scores[3] = float("nan"), float("inf"), -float("inf")
    found = sampler(rows=4, temperature=temperature).choose(scores).tolist()
    assert found[0] >= 0 and found[1:] == [-1, -1, -1]


GOOD: dict[str, list[Any]] = {
    "max_new_tokens": [0, 1], "temperature": [0, 0.0, 1], "top_k": [None, 1], "top_p": [None, 1, 1.0, 1e-9],
    "min_p": [None, 0, 1], "typical_p": [None, 1, 0.5],
    "repetition_penalty": [None, 1, 0.5], "stop": [(), "a", ["a", "b"]],
    "seed": [None, 0, [0, 1]],
}  # fmt: skip
NAN, INF = float("nan"), float("inf")
BAD: dict[str, list[Any]] = {
    "max_new_tokens": [-1, 1.5, None, True, "3"], "temperature": [-0.1, NAN, INF, None, "hot", True],
    "top_k": [0, -1, 2.0, True], "top_p": [0, 0.0, -1, 1.1, NAN, "x"], "min_p": [-0.1, 1.1, NAN],
    "typical_p": [0, 1.1, NAN], "repetition_penalty": [0, -1, NAN, INF], "stop": ["", [""], [1], ["a", ""]],
    "seed": [-1, 0.5, True, [0, None, "a"]],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in GOOD.items() for v in vs])
def test_values_that_mean_something_are_taken(name, value):
    sampler(**{name: value}, rows=2)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in BAD.items() for v in vs])
def test_other_values_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        sampler(**{name: value})


def test_top_k_0_says_what_to_write_instead():
    with pytest.raises(ValueError, match="top_k=None switches it off"):
        sampler(top_k=0)


def test_one_seed_for_each_prompt():
    with pytest.raises(ValueError, match="for each of the 2 prompts; got 3"):
        sampler(rows=2, seed=[1, 2, 3], temperature=0.0)


def test_penalties_of_the_new_text_and_a_bias_are_subtracted_and_added():
    scores = torch.linspace(0, 1, V)[None]
    ours = sampler(ids=[[V - 1] * 5], presence_penalty=0.012, frequency_penalty=0.004, temperature=0.0)
    written: list[int] = []
    for _ in range(30):  # the prompt does not count
        counts = torch.bincount(torch.tensor(written, dtype=torch.long), minlength=V)
        expected = (scores[0] - 0.012 * (counts > 0) - 0.004 * counts).argmax()
        written.append(int(ours.choose(scores)))
        assert written[-1] == expected
    assert max(written.count(token) for token in written) > 1 and len(set(written)) > 3
    biased = sampler(temperature=0.0, logit_bias={V - 1: -100.0, 3: 1.5})
    assert biased.choose(scores).tolist() == [3]
    with pytest.raises(ValueError, match=f"logit_bias: token {V} is outside"):
        sampler(logit_bias={V: 1.0})
