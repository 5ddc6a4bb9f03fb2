"""`anyformer.hub.text.tokenizer` and `gguf_tokenizer`: the ids of the oracle, streams that are exact."""

import json
import re
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

from anyformer.data import sources
from anyformer.hub.formats.gguf import GGUF
from anyformer.hub.formats.guard import FileRefused
from anyformer.hub.text.gguf_tokenizer import tokenizer_from_gguf
from anyformer.hub.text.tokenizer import END, Tokenizer
from tests.hub.texts import CHAT, CHATML, ODD, TEXTS, oracle, sentencepiece, streamed

torch.set_num_threads(1)
# ------------------------------------------------------------------------------------------------------ real ones


@pytest.fixture(scope="module")
def smollm() -> Tokenizer:
    path = sources.get("smollm2")
    found = tokenizer_from_gguf(GGUF(path).metadata, path)
    assert found is not None
    return found


def test_smollm2_gives_the_ids_of_transformers(smollm):
    """Both as `transformers` builds it and, before digits, as the model's authors do (digits are cut off first)."""
    path = sources.get("smollm2")
    theirs = oracle(path.parent, gguf_file=path.name)
    for text in TEXTS:
        if not re.search(r"\s\s+[0-9²½०-९]", text):
            assert smollm.encode(text) == theirs.encode(text), text
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert [smollm.encode(t) for t in TEXTS] == [theirs.encode(t) for t in TEXTS]
    assert smollm.chat(CHAT) == theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert smollm.chat(CHAT, False) == theirs.apply_chat_template(CHAT, tokenize=False)
    want = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert smollm.chat_ids(CHAT) == want
    assert (smollm.bos_id, smollm.eos_ids, smollm.pad_id, smollm.vocab_size) == (1, {2}, 2, 49_152)
    assert smollm.ids() == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_smollm2_decodes_what_it_encoded_also_in_pieces(smollm):
    for text in TEXTS:
        ids = smollm.encode(text)
        assert smollm.decode(ids, skip_special=False) == text == streamed(smollm, ids, skip_special=False)
        assert streamed(smollm, ids) == smollm.decode(ids)


def test_what_is_saved_opens_in_transformers_with_the_same_ids_and_template(smollm, tmp_path):
    trained = Tokenizer.train_bpe(TEXTS, 400)
    trained.template = CHATML
    for name, tokenizer in (("smollm", smollm), ("bytes", Tokenizer.bytes_level()), ("trained", trained)):
        tokenizer.save(tmp_path / name)
        theirs, again = oracle(tmp_path / name), Tokenizer.load(tmp_path / name)
        for text in TEXTS:
            ids = tokenizer.encode(text)
            assert theirs.encode(text) == ids == again.encode(text), (name, text)
            assert theirs.decode(ids, clean_up_tokenization_spaces=False) == tokenizer.decode(ids, False)
        assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, *tokenizer.eos_ids)
        assert (again.roles, again.template, again.config) == (tokenizer.roles, tokenizer.template, tokenizer.config)
        if tokenizer.template:
            want = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
            assert tokenizer.chat(CHAT) == want == again.chat(CHAT)
        before = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        again.save(tmp_path / name)
        assert {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} == before


def test_a_bert_tokenizer_is_that_of_transformers_and_never_cuts_text(tmp_path):
    folder = sources.get("minilm")
    tokenizer, theirs = Tokenizer.load(folder), oracle(folder)
    long = " ".join(["word"] * 700)  # its tokenizer.json cuts at 128 tokens and pads to 128
    for text in [*TEXTS, long]:
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text)
        assert tokenizer.encode(text, special=False) == theirs.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == streamed(tokenizer, ids)
    assert len(tokenizer.encode(long)) == 702
    some = ["one", "", "two words and more", "three"]
    for side in ("left", "right"):
        theirs.padding_side = side
        want = theirs(some, padding=True, return_tensors="pt")
        batch, mask = tokenizer.batch(some, padding=side)  # type: ignore[arg-type]
        assert batch.equal(want["input_ids"]) and mask.equal(want["attention_mask"])
    assert tokenizer.role_id("mask_token") == theirs.mask_token_id and tokenizer.bos_id is None
    tokenizer.save(tmp_path)
    assert [oracle(tmp_path).encode(t) for t in ODD] == [theirs.encode(t) for t in ODD]
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.chat(CHAT)


# -------------------------------------------------------------------------------------------------------- new ones


def test_bytes_are_ids():
    tokenizer = Tokenizer.bytes_level()
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (257, 256, {256}, 256)
    for text in TEXTS:
        assert tokenizer.encode(text) == list(text.encode())
        assert tokenizer.decode(text.encode()) == text
    assert tokenizer.encode(f"a{END}") == [97, 256] and tokenizer.decode([97, 256, 98]) == "ab"
    assert tokenizer.decode(torch.tensor([104, 105])) == "hi"
    assert tokenizer.decode([104, 300, 105]) == "hi"  # a row of the model that is no token


def test_training_is_repeatable_and_lossless():
    tokenizer, again = Tokenizer.train_bpe(iter(TEXTS), 500), Tokenizer.train_bpe(iter(TEXTS), 500)
    assert tokenizer.core.to_str() == again.core.to_str() and tokenizer.vocab_size == 500
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text == streamed(tokenizer, ids)
    assert len(tokenizer.encode("the the the")) < 11 and tokenizer.eos_ids == {0}
    with pytest.raises(ValueError, match="at least 257"):
        Tokenizer.train_bpe(TEXTS, 256)


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> list[Tokenizer]:
    """Every kind of decoder: byte level, byte tokens with and without a leading space, word pieces."""
    folder = tmp_path_factory.mktemp("families")
    metadata, _ = sentencepiece(folder / "s.gguf")
    pieces = Core(
        models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, ".": 3, "n't": 4, "do": 5, "é": 6}, unk_token="[UNK]")
    )
    pieces.decoder = decoders.WordPiece(cleanup=True)
    found = [tokenizer_from_gguf({**metadata, "tokenizer.ggml.add_space_prefix": space}) for space in (True, False)]
    return [Tokenizer.bytes_level(), Tokenizer.train_bpe(TEXTS, 400), Tokenizer(pieces), *filter(None, found)]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_stream_of_any_ids_is_the_text_of_all(families, data):
    tokenizer = data.draw(st.sampled_from(families))
    few = st.integers(0, min(tokenizer.vocab_size + 2, 260))  # byte tokens, special ones, and no token at all
    ids = data.draw(st.lists(few | st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    for skip in (True, False):
        assert streamed(tokenizer, ids, skip) == tokenizer.decode(ids, skip)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_comes_back(families, text):
    text = text.replace("▁", " ")  # how SentencePiece writes a space: it cannot tell them apart
    for tokenizer in (*families[:2], *families[3:]):
        ids = tokenizer.encode(text, special=False)
        if not any(token in text for token in tokenizer.roles.values()):
            assert tokenizer.decode(ids, skip_special=False) == text == streamed(tokenizer, ids, False)


def test_a_stream_holds_half_a_character_back():
    stream = Tokenizer.bytes_level().stream()
    assert [stream.put(byte) for byte in "é🤷!".encode()] == ["", "é", "", "", "", "🤷", "!"]
    assert [stream.put(0xE4), stream.put(0xBD), stream.end(), stream.end()] == ["", "", "\ufffd", ""]


def test_batches():
    tokenizer = Tokenizer.bytes_level()
    ids, mask = tokenizer.batch(["abc", "d", ""], padding="left")
    assert ids.tolist() == [[97, 98, 99], [256, 256, 100], [256] * 3] and ids.dtype == mask.dtype == torch.long
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]
    for texts, side in (([], "left"), ("abc", "left"), (["a"], "middle")):
        with pytest.raises(ValueError, match="expected"):
            tokenizer.batch(texts, padding=side)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- files


def test_what_is_no_text_is_an_error():
    bad: list = ["a\ud800", None, 5, b"bytes", ["a"]]
    for text in bad:
        with pytest.raises(ValueError, match="expected a str"):
            Tokenizer.bytes_level().encode(text)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"looked for tokenizer\.json .*tokenizer_config\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model is not enough alone"):
        Tokenizer.load(tmp_path)
    assert not Tokenizer.exists(tmp_path)


def test_roles_and_templates_are_found_in_all_their_places(tmp_path):
    Tokenizer.bytes_level().save(tmp_path)
    config, special = tmp_path / "tokenizer_config.json", tmp_path / "special_tokens_map.json"
    config.write_text(json.dumps({"eos_token": {"content": "!", "special": True}, "chat_template": "config"}))
    special.write_text(json.dumps({"eos_token": "?", "pad_token": "#", "unk_token": None}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.roles == {"eos_token": "!", "pad_token": "#"} and tokenizer.eos_ids == {33}
    assert tokenizer.decode([104, 105, 33]) == "hi"  # what has a role is special
    assert tokenizer.chat(CHAT) == "config"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert Tokenizer.load(tmp_path).chat(CHAT) == "named"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer.load(tmp_path).chat(CHAT) == "file"
    config.unlink()
    special.unlink()
    assert Tokenizer.load(tmp_path).roles == {}
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("/etc/passwd")
    with pytest.raises(FileRefused, match="link"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", b"{", "not a tokenizer"),
        ("tokenizer.json", b"[" * 100_000, "not a tokenizer"),
        ("tokenizer.json", b'{"model": {"type": "BPE"}}', "not a tokenizer"),
        ("tokenizer_config.json", b"[]", "a JSON object"),
        ("tokenizer_config.json", b'{"eos_token": 5}', "eos_token"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat_template"),
        ("special_tokens_map.json", b'{"a" 1}', "line 1, column 6"),
        ("chat_template.jinja", b"\xff", "UTF-8 at byte 0"),
        ("chat_template.jinja", b"x" * 2_000_000, "size"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, name, content, words):
    Tokenizer.bytes_level().save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileRefused, match=re.escape(name)) as refused:
        Tokenizer.load(tmp_path)
    assert words in str(refused.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_tokenizer_loads_or_is_refused(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "mutated-tokenizer"
    if not (folder / "good").exists():
        core = Core(models.BPE({"a": 0, "b": 1, "ab": 2, "</s>": 3}, [("a", "b")]))
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        Tokenizer(core, {"eos_token": "</s>"}, CHATML).save(folder)
        (folder / "good").write_bytes((folder / "tokenizer.json").read_bytes())
    text = bytearray((folder / "good").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 12))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b'"', b"{", b"null", b"99999999999", b"-1", b"true"])
        )
        text = text or bytearray(b" ")
    (folder / "tokenizer.json").write_bytes(text)
    begin = time.perf_counter()
    try:
        Tokenizer.load(folder).encode("ab </s>")
    except FileRefused as refused:
        assert "tokenizer.json" in str(refused)
    assert time.perf_counter() - begin < 1


def test_messages_must_be_messages():
    tokenizer = Tokenizer(Tokenizer.bytes_level().core, template=CHATML)
    bad: list = [[], [{"content": "no role"}], ["text"]]
    for messages in bad:
        with pytest.raises(ValueError, match="messages: expected dicts"):
            tokenizer.chat(messages)
