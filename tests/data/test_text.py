"""Text to windows: reading, splitting, tokenising, drawing, sliding; the bigram; batches by number."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data import files, text
from anyformer.data.baseline import PRIOR, bigram_bits_per_byte
from anyformer.data.batches import Numbered
from anyformer.hub.text.tokenizer import Tokenizer

# ------------------------------------------------------------------------------------------- reading


def test_builtin_text_is_the_same_each_time_and_english():
    assert text.read() == text.read("pydoc") and text.read().count(" the ") > 1000


def test_folder_is_read_in_order_without_hidden_and_empty_files(tmp_path):
    for name, content in {"b.txt": "two", "a/z.md": "one", ".git/x": "no", "c.txt": " \n", "d.txt": "drei é"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert text.read(tmp_path) == "one\n\ntwo\n\ndrei é"


def test_line_ends_are_not_changed(tmp_path):
    (tmp_path / "dos.txt").write_bytes(b"a\r\nb\r\n")
    assert text.read(tmp_path / "dos.txt") == "a\r\nb\r\n"


def test_not_utf8_names_file_and_byte(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8: byte 3 is 0xe9"):
        text.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_no_text_is_an_error(tmp_path, content):
    (tmp_path / "empty.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"empty\.txt holds no text"):
        text.read(tmp_path / "empty.txt")


def test_empty_folder_and_missing_file_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"holds no text \(0 files\)"):
        text.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        text.read(tmp_path / "nowhere.txt")


def test_split_holds_out_the_last_tenth_but_no_more_than_is_quick_to_measure():
    long = "x" * 50_000_000
    assert list(map(len, text.split("abcdefghij" * 10))) == [90, 10]
    assert "".join(text.split("héllo wörld")) == "héllo wörld"
    assert len(text.split(long)[1]) == text.HELD_OUT_BYTES


# ---------------------------------------------------------------------------------------- tokenising


def test_pieces_of_a_long_text_lose_nothing(monkeypatch):
    tokenizer, source = Tokenizer.bytes_level(), text.read()[:5000] + "\n\n\n é\n" + "y" * 300
    whole = text.tokenise(tokenizer, source)
    monkeypatch.setattr(files, "PIECE", 97)
    pieces = text.tokenise(tokenizer, source)
    assert np.array_equal(whole, pieces) and whole.dtype == np.uint16
    assert tokenizer.decode(pieces.tolist()) == source
    assert len(text.tokenise(tokenizer, "")) == 0


# ------------------------------------------------------------------------------------------- windows

IDS = np.arange(1000, dtype=np.uint16)


def test_label_is_the_next_token_and_numbers_give_the_same_batch_again():
    windows = text.Windows(IDS, batch=4, context=16, seed=3)
    batch, again, other = windows(7), text.Windows(IDS, 4, 16, 3)(7), windows(8)
    assert torch.equal(batch["labels"], batch["input_ids"] + 1)  # as the text counts up
    assert torch.equal(batch["input_ids"], again["input_ids"])
    assert not torch.equal(batch["input_ids"], other["input_ids"])
    assert not torch.equal(batch["input_ids"], text.Windows(IDS, 4, 16, 4)(7)["input_ids"])


def test_two_small_batches_are_one_large_batch():
    small, large = text.Windows(IDS, batch=4, context=8), text.Windows(IDS, batch=8, context=8)
    both = torch.cat([small(6)["input_ids"], small(7)["input_ids"]])
    assert torch.equal(both, large(3)["input_ids"])


def test_every_start_is_drawn_about_equally_often():
    starts = Counter(text.Windows(IDS[:20], batch=8000, context=10)(0)["input_ids"][:, 0].tolist())
    assert sorted(starts) == list(range(10)) and max(starts.values()) < 1.3 * min(starts.values())


def test_text_shorter_than_a_window_is_an_error():
    text.Windows(IDS[:17], batch=1, context=16)(0)
    with pytest.raises(ValueError, match=r"has 16 tokens, and one window of context=16 needs 17"):
        text.Windows(IDS[:16], batch=1, context=16)


@settings(deadline=None)
@given(st.integers(2, 90), st.integers(1, 20), st.integers(1, 4))
def test_sliding_counts_each_token_once_with_half_a_window_before_it(length, context, batch):
    counted = []
    for rows in text.sliding(IDS[:length], context, batch):
        assert rows["input_ids"].shape[1] == context and len(rows["input_ids"]) <= batch
        for x, y in zip(rows["input_ids"], rows["labels"], strict=True):
            for place in (y != -100).nonzero().flatten().tolist():
                assert y[place] == x[place] + 1
                assert place + 1 >= context // 2 or x[0] == 0  # the very first window has nothing before it
                counted.append(int(y[place]))
    assert counted == list(range(1, length))


# -------------------------------------------------------------------------------------------- bigram


def test_bigram_is_the_formula():
    train, held_out = "abracadabra é", "abac"
    known = train.encode()
    total = 0.0
    sequence = known[-1:] + held_out.encode()
    for a, b in itertools.pairwise(sequence):
        pairs = sum(1 for i in range(len(known) - 1) if (known[i], known[i + 1]) == (a, b))
        row = sum(1 for i in range(len(known) - 1) if known[i] == a)
        single = (known.count(b) + 1) / (len(known) + 256)
        total -= math.log2((pairs + PRIOR * single) / (row + PRIOR))
    assert bigram_bits_per_byte(train, held_out) == pytest.approx(total / 4)


def test_bigram_knows_what_repeats_and_not_what_is_random():
    noise = bytes(np.random.default_rng(0).integers(0, 128, 200_000).tolist()).decode()
    assert bigram_bits_per_byte("ab" * 50_000, "ab" * 100) < 0.01
    assert 6.9 < bigram_bits_per_byte(noise[:-5000], noise[-5000:]) < 7.2
    with pytest.raises(ValueError, match="empty"):
        bigram_bits_per_byte("abc", "")


# ------------------------------------------------------------------------------------ batches by number


def test_iterable_begins_again_and_finds_its_place():
    items = [{"x": torch.tensor(i)} for i in range(3)]
    batches = Numbered(items)
    assert [int(batches(i)["x"]) for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert int(Numbered(items)(5)["x"]) == 2 and int(batches(1)["x"]) == 1


def test_generator_that_ends_is_an_error():
    batches = Numbered({"x": torch.tensor(i)} for i in range(2))
    assert int(batches(1)["x"]) == 1
    with pytest.raises(ValueError, match="ended after 2"):
        batches(2)
