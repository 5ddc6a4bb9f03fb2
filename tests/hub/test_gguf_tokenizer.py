"""`anyformer.hub.text.gguf_tokenizer`: the ids of the oracle for every way to cut text, and refusals by key."""

import re

import numpy as np
import pytest
import torch
from tokenizers import normalizers

from anyformer.hub.formats.guard import FileRefused
from anyformer.hub.text.gguf_tokenizer import PRE, tokenizer_from_gguf
from tests.hub.texts import TEXTS, byte_level, sentencepiece, streamed

torch.set_num_threads(1)


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken", "dbrx"])
def test_byte_level_ids_are_those_of_transformers(tmp_path, pre):
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    tokenizer = tokenizer_from_gguf(byte_level(tmp_path / "x.gguf", pre))
    assert tokenizer is not None
    architecture, found, _ = get_gguf_tokenizer(str(tmp_path / "x.gguf"))
    theirs, _ = convert_gguf_tokenizer(architecture, found)
    if PRE[pre].whole:  # they leave this out; the program that reads the file does not
        theirs.model.ignore_merges = True
    if PRE[pre].nfc:
        theirs.normalizer = normalizers.NFC()
    for text in [*TEXTS, "a<|begin|> b <think>c</think><|end|>"]:
        ids = tokenizer.encode(text, special=False)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)
    assert (tokenizer.encode("x")[0] == tokenizer.bos_id) == PRE[pre].bos


def test_bos_and_eos_are_added_as_the_file_says(tmp_path):
    metadata = byte_level(tmp_path / "x.gguf", "gpt-2", add_bos_token=True, add_eos_token=True)
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer is not None
    plain = tokenizer.encode("hello", special=False)
    assert tokenizer.encode("hello") == [tokenizer.bos_id, *plain, *tokenizer.eos_ids]
    tokenizer.template = "{{ bos_token }}{{ messages[0].content }}"
    assert tokenizer.chat_ids([{"role": "user", "content": "hello"}]) == [tokenizer.bos_id, *plain]  # not twice
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_sentencepiece_ids_are_those_of_transformers(tmp_path):
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    metadata, trained = sentencepiece(tmp_path / "x.gguf")
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer is not None
    architecture, found, _ = get_gguf_tokenizer(str(tmp_path / "x.gguf"))
    theirs, _ = convert_gguf_tokenizer(architecture, found)
    compared = [t for t in TEXTS if t and not t.startswith(" ") and "<s>" not in t]
    assert len(compared) > 180
    for text in compared:
        ids = tokenizer.encode(text, special=False)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        if re.fullmatch(r"[ -~\n]+", text):
            assert [tokenizer.core.id_to_token(i) for i in ids] == trained.encode(text).tokens
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids[0] == 1 and (tokenizer.decode(ids) == text or "<s>" in text)
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)
    words = tokenizer.core.encode("  hi<s>hi", add_special_tokens=False).tokens
    assert "".join(words) == "▁▁▁hi<s>▁hi"  # the space goes before the text and after a special token
    plain = tokenizer_from_gguf({**metadata, "tokenizer.ggml.add_space_prefix": False})
    assert plain is not None and plain.decode(plain.encode(" hi")) == " hi"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pre": "nobody-knows"}, "tokenizer.ggml.pre: expected one of"),
        ({"model": "rwkv"}, "tokenizer.ggml.model: expected gpt2 or llama, got rwkv"),
        ({"tokens": []}, "tokenizer.ggml.tokens"),
        ({"tokens": ["a", "a"]}, "every token once, got a twice"),
        ({"tokens": np.arange(4)}, "tokenizer.ggml.tokens"),
        ({"merges": ["a b c"]}, "tokenizer.ggml.merges"),
        ({"merges": ["Ġ nothingofthekind"]}, "tokenizer.ggml.merges"),
        ({"merges": None}, "tokenizer.ggml.merges"),
        ({"token_type": np.ones(3)}, "tokenizer.ggml.token_type"),
        ({"bos_token_id": 10**6}, "tokenizer.ggml.bos_token_id: expected a token id below"),
        ({"eos_token_id": "</s>"}, "tokenizer.ggml.eos_token_id"),
    ],
)
def test_metadata_that_make_no_tokenizer_are_refused(tmp_path, change, words):
    metadata = byte_level(tmp_path / "x.gguf", "gpt-2")
    metadata |= {f"tokenizer.ggml.{k}": v for k, v in change.items()}
    with pytest.raises(FileRefused) as refused:
        tokenizer_from_gguf(metadata, "some.gguf")
    assert words in str(refused.value) and "some.gguf" in str(refused.value)
    assert tokenizer_from_gguf({"general.architecture": "llama"}) is None


@pytest.mark.parametrize("said", [{}, {"tokenizer.ggml.model": "none"}, {"tokenizer.ggml.model": "no_vocab"}], ids=str)
def test_a_file_of_ids_alone_has_no_tokenizer(said):
    assert tokenizer_from_gguf({"general.architecture": "llama", **said}) is None
