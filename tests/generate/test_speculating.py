"""Guesses that are verified: the text is that of decoding token by token, in fewer passes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.generate import generate, stream
from anyformer.generate.options import Options
from anyformer.generate.speculating import Lookup, Speculation

from .subjects import each_page, model
from .test_generate import WARM, rows

REPEATS = [5, 6, 7, 8] * 2


@pytest.mark.parametrize("name", each_page())
def test_the_text_is_that_without_guesses(name):
    m = model(name)
    begin = rows(m)[0]
    count = min(12, (m.context or 64) - len(begin) - len(REPEATS))
    prompts = [begin + REPEATS, begin]
    bias: dict[str, Any] = {"logit_bias": {token: 8.0 for token in (5, 6, 7, 8)}}  # so that guesses are right at times
    for options in ({}, bias, {**bias, **WARM, "seed": [3, 4]}, {**bias, "temperature": 0.7, "seed": 5}):
        expected = generate(m, prompts, max_new_tokens=count, **options)
        assert generate(m, prompts, max_new_tokens=count, speculate="lookup", **options) == expected


@pytest.mark.parametrize("name", ["llama:", "mamba:", "gemma3:", "t5:"])
def test_right_guesses_save_passes(name):
    m = model(name)
    bias = {5: 99.0}
    options = Options(20, 0.0, None, None, None, None, (), None, True, logit_bias=bias, speculate="lookup")
    run = Speculation(m, [[5] * 6], options)
    found = [token for _ in iter(lambda: bool(run.rows), False) for _, token in run.step()]
    assert found == [5] * 20 and run.passes <= 6


def test_draws_have_the_probabilities_of_the_model():
    """Texts of three tokens over a vocabulary of four, against their exact probabilities: chi-square with 63 degrees of
    freedom, whose 99.9 % quantile is 103.4, at temperature 3."""
    m = af.build("gpt", "tiny", vocab=4, context=32, seed=0)
    with torch.no_grad():
        for weight in m.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(weight.numel()))
    prompt, draws = [1, 2, 1, 2, 3, 1, 2], 1500
    expected, counted = {}, dict.fromkeys(itertools.product(range(4), repeat=3), 0)
    for text in counted:
        with torch.no_grad():
            logs = m(input_ids=torch.tensor([prompt + list(text)])).logits[0].div(3).log_softmax(-1)
        expected[text] = draws * float(sum(logs[len(prompt) - 1 + i, t] for i, t in enumerate(text)).exp())
    passes = 0
    for seed in range(draws):
        run = Speculation(m, [prompt], Options(3, 3.0, None, None, None, None, (), seed, True, speculate="lookup"))
        found = [token for _ in iter(lambda: bool(run.rows), False) for _, token in run.step()]  # noqa: B023
        counted[tuple(found)] += 1
        passes += run.passes
    assert min(expected.values()) > 1
    assert sum((counted[text] - expected[text]) ** 2 / expected[text] for text in counted) < 103.4
    assert passes < 3 * draws


def test_a_stream_stops_inside_a_guess():
    from .subjects import reading

    m = reading()
    text = "the cat and the cat and the cat"
    for stop in ((), ("zz",)):
        options: dict[str, Any] = {
            "max_new_tokens": 24,
            "stop": stop,
            "logit_bias": dict.fromkeys(m.tokenizer.encode("zz"), 9.0),
        }
        expected = generate(m, text, **options)
        assert "".join(stream(m, text, speculate="lookup", **options)) == expected
        assert generate(m, text, speculate="lookup", **options) == expected


def test_look_up_and_refusals():
    seen = Lookup()
    seen.add([1, 2, 3, 4, 1, 2, 3, 5, 9, 2, 3])
    assert seen.guess(2) == [5, 9] and seen.guess(0) == [] and seen.guess(7) == [5, 9, 2, 3, 5, 9, 2]
    seen.add([7])
    assert seen.guess(3) == []
    m = model("llama:")
    for options, word in (({"speculate": "magic"}, "lookup"), ({"speculate": "lookup", "cache": False}, "cache"),
                          ({"speculate": "lookup", "num_beams": 2}, "speculate")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            generate(m, [1], max_new_tokens=2, **options)
