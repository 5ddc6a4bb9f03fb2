"""Text in, text out: stop strings across tokens, streams, chat."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

import anyformer as af
from anyformer.generate import chat, generate, stream
from anyformer.generate.writing import Writer
from anyformer.hub.text.tokenizer import Tokenizer

from .subjects import reading

PROMPTS = ["the cat", "naïve 東京", "🙂 and the other"]
WARM: dict[str, Any] = {"temperature": 1.3, "max_new_tokens": 60}


@pytest.fixture(scope="module")
def reader():
    return reading()


def test_text_is_the_decoded_continuation(reader):
    texts = generate(reader, PROMPTS, **WARM, seed=1)
    ids = generate(reader, [reader.tokenizer.encode(p) for p in PROMPTS], **WARM, seed=1)
    assert texts == [reader.tokenizer.decode(row) for row in ids]
    assert texts[0] == generate(reader, PROMPTS[0], **WARM, seed=1)
    assert len(set(texts)) == 3 and all(texts)


@pytest.mark.parametrize("seed", range(8))
def test_a_stream_joined_is_the_text_and_no_piece_is_half_a_character(reader, seed):
    whole = generate(reader, PROMPTS[1], **WARM, seed=seed)
    pieces = list(stream(reader, PROMPTS[1], **WARM, seed=seed))
    assert "".join(pieces) == whole and len(pieces) > 5 and all(pieces)
    assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])  # broken bytes wait for what comes next


@pytest.mark.parametrize("seed", range(4))
def test_a_stop_string_ends_the_text_wherever_it_falls(reader, seed):
    whole = generate(reader, "the", **WARM, seed=seed)
    ids = generate(reader, reader.tokenizer.encode("the"), **WARM, seed=seed)
    for start in range(0, len(whole) - 4, 1 + len(whole) // 6):
        stop = whole[start : start + 4]
        expected = whole[: whole.index(stop)]
        options = {**WARM, "seed": seed, "stop": [stop, "nowhere to be found"]}
        assert generate(reader, "the", **options) == expected
        assert "".join(stream(reader, "the", **options)) == expected
        cut = generate(reader, reader.tokenizer.encode("the"), **options)
        assert cut == ids[: len(cut)] and expected.startswith(reader.tokenizer.decode(cut))


def test_rows_stop_each_for_itself(reader):
    whole = generate(reader, PROMPTS, **WARM, seed=3)
    stop = whole[1][10:13]
    assert generate(reader, PROMPTS, **WARM, seed=3, stop=stop) == [text.split(stop)[0] for text in whole]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_nothing_of_a_stop_string_is_given_out(data):
    text = data.draw(st.text("ab🙂é", min_size=1, max_size=20))
    stops = data.draw(st.lists(st.text("ab🙂é", min_size=1, max_size=4), max_size=3))
    tokenizer = Tokenizer.bytes_level()  # one token a byte: every character falls apart
    ids = tokenizer.encode(text, special=False)
    writer, shown = Writer(tokenizer, None, tuple(stops)), ""
    for token in ids:
        shown += writer.put(token)
        assert not any(stop in shown for stop in stops) and text.startswith(shown)
        if writer.stopped:
            break
    shown += writer.end()
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    expected = text[: min(found)[1]] if found else text  # the one that is complete first
    assert shown == expected
    assert tokenizer.decode(ids[: writer.tokens()]) == expected


def test_a_character_cut_by_the_end_is_shown_as_the_tokenizer_shows_it():
    tokenizer = Tokenizer.bytes_level()
    ids = tokenizer.encode("aé🙂", special=False)
    for n in range(len(ids) + 1):
        writer = Writer(tokenizer, None, ())
        assert "".join(writer.put(t) for t in ids[:n]) + writer.end() == tokenizer.decode(ids[:n])


def test_the_space_after_the_prompt_is_kept():
    tokenizer = Tokenizer(metaspace())
    ids = tokenizer.encode("the cat sat", special=False)
    assert tokenizer.decode(ids[1:]) == "cat sat"  # alone, it looks like the beginning of a text
    writer = Writer(tokenizer, ids[0], ())
    assert "".join(writer.put(t) for t in ids[1:]) + writer.end() == " cat sat"


def metaspace():
    words = ["▁the", "▁cat", "▁sat", "<unk>"]
    core = Core(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return core


def test_a_token_that_the_tokenizer_does_not_know_has_no_text():
    tokenizer = Tokenizer.bytes_level()
    writer = Writer(tokenizer, 5000, ())
    assert writer.put(97) + writer.put(5000) + writer.put(98) + writer.end() == "ab"


def test_the_end_of_a_text_is_not_part_of_it(reader):
    whole = generate(reader, [3, 4], **WARM, seed=2)
    end = whole[20]
    reader.origin = {"generation": {"eos_token_id": end}}
    try:
        assert generate(reader, [3, 4], **WARM, seed=2) == whole[: whole.index(end)]
        text = "".join(stream(reader, [3, 4], **WARM, seed=2))
    finally:
        reader.origin = None
    assert text == reader.tokenizer.decode(whole[: whole.index(end)])


def test_streams_are_lazy_and_can_be_left(reader):
    pieces = stream(reader, "the", max_new_tokens=200, temperature=1.0, seed=0)
    assert next(pieces)
    del pieces
    assert not torch.is_inference_mode_enabled()
    assert torch.ones(1, requires_grad=True).sum().requires_grad


def test_chat_is_the_stream_of_the_templated_ids(reader):
    messages = [{"role": "user", "content": "the cat"}]
    with pytest.raises(ValueError, match="no chat template"):
        chat(reader, messages)
    reader.tokenizer.template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    try:
        got = "".join(chat(reader, messages, **WARM, seed=5))
    finally:
        reader.tokenizer.template = None
    assert got == generate(reader, "[user]the cat[assistant]", **WARM, seed=5) != ""


def test_an_encoder_decoder_writes_text():
    m = af.build("t5", "tiny", vocab=260, seed=0).eval()
    m.tokenizer = Tokenizer.bytes_level()
    text = generate(m, ["ab", "the other cat"], max_new_tokens=30, temperature=1.0, seed=0)
    assert text[1] == "".join(stream(m, "the other cat", max_new_tokens=30, temperature=1.0, seed=0)) != text[0]
