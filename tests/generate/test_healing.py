"""Healing: the last token of a text is written again, as the beginning of a longer one if that is likelier."""

from __future__ import annotations

import pytest
import torch

from anyformer.generate import generate, stream

from .subjects import model, reading

pytest.importorskip("llguidance")
TEXT = "the cat and the ca"


def test_the_text_goes_on_through_the_end_of_the_prompt():
    """Against a search by hand: the likeliest token that begins with the taken text, then the likeliest ones."""
    m = reading()
    tokenizer = m.tokenizer
    ids = tokenizer.encode(TEXT)
    last = tokenizer.decode(ids[-1:])
    assert len(ids) > 1 and TEXT.endswith(last)
    fits = [t for t in range(tokenizer.vocab_size) if tokenizer.decode([t]).startswith(last)]
    assert len(fits) > 1, "a longer token begins with the last one"
    longer = max(fits, key=lambda t: len(tokenizer.decode([t])))
    bias = {longer: 50.0}
    expected = [*ids[:-1], longer]
    with torch.no_grad():
        for _ in range(4):
            scores = m(input_ids=torch.tensor([expected])).logits[0, -1]
            scores[longer] += 50.0
            expected.append(int(scores.argmax()))
    text = generate(m, TEXT, max_new_tokens=5, logit_bias=bias, heal=True)
    assert text == tokenizer.decode(expected)[len(TEXT) :]
    assert text != generate(m, TEXT, max_new_tokens=4, logit_bias=bias)
    assert "".join(stream(m, TEXT, max_new_tokens=5, logit_bias=bias, heal=True)) == text
    assert generate(m, [TEXT, "the"], max_new_tokens=5, logit_bias=bias, heal=True)[0] == text
    assert generate(m, [TEXT, "the"], max_new_tokens=5, logit_bias=bias, heal=True, speculate="lookup")[0] == text


def test_drawn_texts_begin_with_what_was_taken_off():
    m = reading()
    for seed in range(8):
        text = generate(m, TEXT, max_new_tokens=6, heal=True, temperature=2.0, seed=seed)
        assert isinstance(text, str) and text


def test_what_cannot_be_healed():
    m = reading()
    assert generate(m, "\U0001f642", max_new_tokens=2, heal=True) == generate(m, "\U0001f642", max_new_tokens=2)
    for prompt, options, word in (
        ([1, 2], {}, "token ids"),
        (TEXT, {"regex": "a+"}, "one of them"),
        (TEXT, {"num_beams": 2}, "heal"),
    ):
        with pytest.raises(ValueError, match=word):
            generate(m, prompt, max_new_tokens=2, heal=True, **options)  # type: ignore[arg-type]
    source = model("t5:")
    source.tokenizer = m.tokenizer
    try:
        with pytest.raises(ValueError, match="source"):
            generate(source, "##", max_new_tokens=2, heal=True)
    finally:
        source.tokenizer = None
