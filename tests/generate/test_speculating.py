"""Guesses that are verified: the text is that of decoding token by token, in fewer passes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.generate import generate, stream
from anyformer.generate.drafting import thinned
from anyformer.generate.options import Options
from anyformer.generate.speculating import Lookup, Speculation
from anyformer.hub.text.tokenizer import Tokenizer

from .subjects import each_page, model, reading
from .test_generate import WARM, rows

PLAIN: dict[str, Any] = {"temperature": 0.0, "stop": (), "cache": True, **dict.fromkeys(
    ("top_k", "top_p", "min_p", "repetition_penalty", "seed"))}  # fmt: skip
DEEP = {"t5": {"decoder_depth": 6}}  # of pages whose stack that decodes has its own depth
REPEATS = [5, 6, 7, 8] * 2


def disturbed(m: Any) -> Any:
    """A draft that is right at times: the model with other weights, a little."""
    draft, noise = copy.deepcopy(m), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.mul_(1 + 0.1 * torch.rand(weight.shape, generator=noise, dtype=weight.dtype))
    return draft


@pytest.mark.parametrize("name", each_page())
def test_the_text_is_that_without_guesses(name):
    m = model(name)
    begin = rows(m)[0]
    count = min(9, (m.context or 64) - len(begin) - len(REPEATS))
    prompts, other = [begin + REPEATS, begin], disturbed(m)
    bias: dict[str, Any] = {"logit_bias": {token: 8.0 for token in (5, 6, 7, 8)}}  # so that guesses are right at times
    for options in (bias, {**bias, **WARM, "seed": [3, 4]}):
        expected = generate(m, prompts, max_new_tokens=count, **options)
        assert generate(m, prompts, max_new_tokens=count, speculate="lookup", **options) == expected
        assert generate(m, prompts, max_new_tokens=count, draft=other, **options) == expected


@pytest.mark.parametrize("name", ["llama:", "mamba:", "gemma3:", "t5:"])
def test_right_guesses_save_passes(name):
    m = model(name)
    bias = {5: 99.0}
    options = Options(20, 0.0, None, None, None, None, (), None, True, logit_bias=bias, speculate="lookup")
    run = Speculation(m, [[5] * 6], options)
    found = [token for _ in iter(lambda: bool(run.rows), False) for _, token in run.step()]
    assert found == [5] * 20 and run.passes <= 6


@pytest.mark.parametrize("name", ["llama:", "mamba:", "gemma3:", "t5:", "bart:", "jamba:", "llava:"])
def test_a_draft_that_is_the_model_is_always_right(name):
    """Drawn texts too: it draws the numbers that the model draws."""
    m = model(name)
    for options in ({}, {**WARM, "seed": 3}):
        run = Speculation(m, rows(m)[:1], Options(**{**PLAIN, **options, "max_new_tokens": 19, "speculate": m}))
        found = [token for _ in iter(lambda: bool(run.rows), False) for _, token in run.step()]  # noqa: B023
        assert found == generate(m, rows(m)[:1], max_new_tokens=19, **options)[0]
        assert len(found) < 19 or run.passes <= 5


def test_draws_have_the_probabilities_of_the_model():
    """Texts of three tokens over a vocabulary of three, against their exact probabilities at temperature 3: chi-square
    with 26 degrees of freedom, whose 99.9 % quantile is 54.1."""
    m = af.build("gpt", "tiny", vocab=3, context=32, seed=0)
    with torch.no_grad():
        for weight in m.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(weight.numel()))
    prompt, draws = [1, 2, 1, 2, 0, 1, 2], 450
    expected, counted = {}, dict.fromkeys(itertools.product(range(3), repeat=3), 0)
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
    assert sum((counted[text] - expected[text]) ** 2 / expected[text] for text in counted) < 54.1
    assert passes < 3 * draws


@pytest.mark.parametrize("name", ["llama", "mamba", "t5", "jamba", "flamingo"])
def test_without_every_second_block_it_guesses_for_itself(name):
    m = af.build(name, "tiny", seed=0, **DEEP.get(name, {"depth": 6})).eval()
    before = {path: id(part) for path, part in m.named_modules()}
    thin = thinned(m)
    assert 0 < len(thin.start(1).slots) < len(m.start(1).slots)
    assert {id(p) for p in thin.parameters()} < {id(p) for p in m.parameters()}
    for options in ({}, {**WARM, "seed": 3}):
        expected = generate(m, rows(m)[0], max_new_tokens=12, **options)
        assert generate(m, rows(m)[0], max_new_tokens=12, speculate="layers", **options) == expected
    assert {path: id(part) for path, part in m.named_modules()} == before


def test_a_draft_with_a_short_context_and_a_padded_vocabulary():
    m, small = (af.build(page, "tiny", vocab=vocab, seed=0).eval() for page, vocab in (("llama", 400), ("gpt", 420)))
    small.context, m.tokenizer = 9, reading().tokenizer
    small.tokenizer = m.tokenizer
    prompt = [5, 6, 7, 8]
    assert generate(m, prompt, max_new_tokens=12, draft=small) == generate(m, prompt, max_new_tokens=12)
    small.tokenizer = Tokenizer.train_bpe(["other words are here"], 300)
    with pytest.raises(ValueError, match="vocabulary is another one"):
        generate(m, prompt, max_new_tokens=2, draft=small)


def test_a_stream_stops_inside_a_guess():
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
                          ({"speculate": "lookup", "num_beams": 2}, "speculate"),
                          ({"speculate": "lookup", "draft": m}, "one of them"),
                          ({"speculate": "layers"}, "four"),
                          ({"draft": model("bert:")}, "writes no text"),
                          ({"draft": model("t5:")}, "encoder-decoder"),
                          ({"draft": af.build("llama", "tiny", vocab=7)}, "7 tokens")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            generate(m, [1], max_new_tokens=2, **options)
