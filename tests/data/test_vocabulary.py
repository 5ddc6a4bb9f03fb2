"""Tokenizers made from text: what each kind loses, that `transformers` opens them, and that `train` takes them."""

import json
import re
import string
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import anyformer as af
from anyformer.cli import main
from anyformer.data import records, text
from anyformer.data.vocabulary import Kind, make, train_tokenizer
from anyformer.hub.text.tokenizer import Tokenizer, byte_letters

torch.set_num_threads(1)
ENGLISH = text.read()[:100_000] + string.printable
KINDS = get_args(Kind)
VOCAB = 400


@pytest.fixture(scope="module")
def made():
    """One tokenizer of each kind."""
    return {kind: make([ENGLISH], kind, VOCAB, ["<|user|>", "<|tool|>"]) for kind in KINDS}


# --------------------------------------------------------------------------------------------- round trips


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_bpe_gives_back_any_text(written):
    tokenizer = make_bpe()
    assert tokenizer.decode(tokenizer.encode(written), skip_special=False) == written  # <|endoftext|> is text, too


def make_bpe(kept=[]):  # noqa: B006, kept on purpose: hypothesis allows no fixture that changes
    if not kept:
        kept.append(make([ENGLISH], "bpe", VOCAB))
    return kept[0]


@settings(deadline=None)
@given(st.binary())
def test_bpe_has_a_token_for_every_byte(content):
    tokenizer, letters = make_bpe(), byte_letters()
    ids = [tokenizer.core.token_to_id(letters[byte]) for byte in content]
    assert None not in ids and tokenizer.decode(ids) == content.decode("utf-8", "replace")
    assert len({tokenizer.core.token_to_id(letter) for letter in letters}) == 256


@settings(deadline=None)
@given(st.text(alphabet=string.printable))
def test_characters_that_were_seen_come_back(made, written):
    tokenizer = made["chars"]
    ids = tokenizer.encode(written)
    assert len(ids) == len(written) and tokenizer.decode(ids) == written


def test_characters_that_were_not_seen_are_unknown(made):
    tokenizer = made["chars"]
    assert tokenizer.decode(tokenizer.encode("a日b"), skip_special=False) == "a<unk>b"
    assert tokenizer.vocab_size == len(set(ENGLISH)) + 4


@settings(deadline=None)
@given(st.lists(st.text(alphabet=string.ascii_letters + string.punctuation, min_size=1), min_size=1))
def test_unigram_gives_back_words_that_it_can_write(made, words):
    written, tokenizer = " ".join(words), made["unigram"]
    assert tokenizer.decode(tokenizer.encode(written)) == written


@settings(deadline=None)
@given(st.lists(st.text(alphabet=string.ascii_letters, min_size=1, max_size=90), min_size=1))
def test_wordpiece_gives_back_small_letters(made, words):
    written, tokenizer = " ".join(words), made["wordpiece"]
    assert tokenizer.decode(tokenizer.encode(written)) == written.lower()
    first, *_, last = tokenizer.encode(written)
    assert [first, last] == [tokenizer.role_id("cls_token"), tokenizer.role_id("sep_token")]


# ------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_what_is_written(kind, made, tmp_path):
    ours = made[kind]
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.vocab_size <= VOCAB
    for written in ("The quick brown fox, 1234 times.\n\n  def f(x): return x", "<|user|>hi<|tool|>", ""):
        for special in (True, False):
            ids = ours.encode(written, special=special)
            assert theirs(written, add_special_tokens=special)["input_ids"] == ids
            assert Tokenizer.load(tmp_path).encode(written, special=special) == ids
        assert theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == ours.decode(ids)
    for role, token in ours.roles.items():
        assert getattr(theirs, role) == token and ours.role_id(role) is not None
    for token in ("<|user|>", "<|tool|>"):
        assert ours.encode(token, special=False) == [ours.core.token_to_id(token)]
        assert token not in ours.decode(ours.encode(f"a {token} b"))


@pytest.mark.parametrize("kind", ["bpe", "chars"])
def test_the_same_text_gives_the_same_tokenizer(kind, made):
    again = make(iter([ENGLISH]), kind, VOCAB, ["<|user|>", "<|tool|>"])
    assert again.core.to_str() == made[kind].core.to_str()


def test_a_larger_vocabulary_takes_fewer_tokens(made):
    for kind in ("bpe", "wordpiece", "unigram"):
        larger = make([ENGLISH], kind, 1500)
        assert larger.vocab_size > 1000
        assert len(larger.encode(ENGLISH)) < 0.9 * len(made[kind].encode(ENGLISH))


# ---------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("kind", KINDS)
def test_train_takes_what_the_command_makes(kind, tmp_path, capsys):
    rows = [json.dumps({"content": part}) for part in re.findall(r"(?s).{1,3000}", ENGLISH[:60_000])]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    data, name = ["--data", str(tmp_path / "a.jsonl"), "--fields.text", "content"], str(tmp_path / "tok")
    assert (
        main(["tokenizer", *data, "--out", name, "--kind", kind, "--vocab", "300", "--special", "<|a|>", "<|b|>"]) == 0
    )
    shown = capsys.readouterr().out
    assert f"wrote {name}: " in shown and "tokens; a sentence of 44 letters takes" in shown
    small = ["--size", "tiny", "--steps", "2", "--context", "32", "--quiet", "--out", str(tmp_path / "run")]
    assert main(["train", "--model", "llama", *data, "--tokenizer", name, *small]) == 0
    model = af.load(tmp_path / "run/step-000002")
    assert model.embed.vocab == Tokenizer.load(name).vocab_size <= 300
    assert model.tokenizer.core.token_to_id("<|b|>") is not None
    assert main(["tokenizer", *data, "--out", name]) == 2
    assert "has a tokenizer already" in capsys.readouterr().err


def test_several_sources_are_used(tmp_path):
    (tmp_path / "a.txt").write_text("zebra " * 500)
    tokenizer = train_tokenizer(f"pydoc=1,{tmp_path}/a.txt=1", out=tmp_path / "tok", vocab=600)
    assert len(tokenizer.encode(" zebra")) == 1
    assert sum(len(t) for _, t in records.texts("pydoc")) > 300_000


REFUSED = [
    (("bpe", 256, []), r"expected at least 257 \(256 bytes and"),
    (("bpe", 257, ["<a>"]), "expected at least 258"),
    (("chars", 50, []), r"vocab=50 is too small: .* alone are 110; use at least that"),
    (("wordpiece", 50, []), "vocab=50 is too small"),
    (("unigram", 50, []), "vocab=50 is too small"),
    (("words", 500, []), "kind must be one of bpe, chars, wordpiece, unigram, got 'words'"),
    (("bpe", 500, ["<a>", "<a>"]), "must not be empty or come twice"),
    (("chars", 500, [""]), "must not be empty or come twice"),
]


@pytest.mark.parametrize("options, said", REFUSED)
def test_refused(options, said):
    with pytest.raises(ValueError, match=said):
        make([ENGLISH], *options)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_refused(kind, tmp_path):
    (tmp_path / "a.txt").write_text("  \n")
    with pytest.raises(ValueError, match="holds no text"):
        train_tokenizer(tmp_path / "a.txt", out=tmp_path / "tok", kind=kind)
    assert not (tmp_path / "tok").exists()


def test_the_readers_mistake_is_one_line(capsys):
    assert main(["tokenizer", "--data", "pydoc", "--kind", "bep", "--out", "x"]) == 2
    assert "kind: expected one of bpe, chars, wordpiece, unigram" in capsys.readouterr().err
