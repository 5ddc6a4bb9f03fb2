"""One text in two languages: blocks, pairs, batches, the word-by-word baseline."""

import shutil

import pytest
import torch

import anyformer as af
from examples.translation_texts import parallel

PAGE = """<html><head><title>Ignored, but a page has one</title><link rel="up" href="x"/></head><body>
<h2 class="title">{title}</h2><div class="para">
   {first}   <code>apt-get</code> &amp; more<br/> lines
<ul><li><div class="para">{inner}</div></li></ul> and its end</div><p class="subtitle-x"><a id="i"/>{sub}</p>
<p>not a block</p></body></html>"""
EN = {"title": "1. The Title", "first": "Use", "inner": "An item.", "sub": "Sub"}
DE = {"title": "1. Der Titel", "first": "Nutze", "inner": "Ein Punkt.", "sub": "Sub"}


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    for language, words in (("en-US", EN), ("de-DE", DE)):
        folder = tmp_path / "debian-handbook" / language
        folder.mkdir(parents=True)
        (folder / "a.html").write_text(PAGE.format(**words))
        (folder / "b.html").write_text(PAGE.format(**words | {"title": EN["title"]}))  # repeated
    return tmp_path / "debian-handbook"


def test_blocks_are_paragraphs_and_titles_the_inner_ones_apart():
    expected = ["1. The Title", "Use apt-get & more lines and its end", "An item.", "Sub"]
    assert parallel.blocks(PAGE.format(**EN)) == expected


def test_pairs_leave_out_what_is_not_translated_and_repetitions(book):
    assert parallel.handbook() == [
        ("1. The Title", "1. Der Titel"),
        ("Use apt-get & more lines and its end", "Nutze apt-get & more lines and its end"),
        ("An item.", "Ein Punkt."),
    ]


def test_pages_with_other_numbers_of_blocks_are_left_out(book):
    for name in ("a.html", "b.html"):
        (book / "de-DE" / name).write_text('<div class="para">nur einer</div>')
    assert parallel.handbook() == []


def test_without_apt_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match=r"apt-get is not installed. What to do: .*dpkg-deb -x.*en-US, fr-FR"):
        parallel.handbook(target="fr-FR")


def test_where_apt_fails_its_words_are_passed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, script in (("apt-get", "echo 'E: Unable to locate package' >&2; exit 100"), ("dpkg-deb", "exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(OSError, match="could not fetch debian-handbook: E: Unable to locate package"):
        parallel.handbook()
    assert not list((tmp_path / "cache" / "debian-handbook").glob("*-*"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="the corpus is a Debian package: it is fetched with apt")
def test_the_real_book(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    pairs = parallel.handbook()
    assert len(pairs) > 3000 and not any(a == b for a, b in pairs)
    assert any("Debian" in a and "Debian" in b for a, b in pairs)
    with pytest.raises(ValueError, match=r"no language 'xx-XX'; it has .*de-DE"):
        parallel.handbook(target="xx-XX")


def test_a_pair_stays_on_its_side():
    pairs = [(f"text {i}", f"Text {i}") for i in range(2000)]
    train, held = parallel.split(pairs)
    assert sorted([*train, *held]) == sorted(pairs) and 150 < len(held) < 250
    assert parallel.split(pairs[::-2])[1] == [p for p in held[::-1] if p in set(pairs[::-2])]


def test_sentences_are_cut_where_both_sides_have_as_many():
    pairs = [("One. Two! 3.5 GB", "Eins. Zwei! 3.5 GB"), ("One. Two.", "Eins und zwei.")]
    assert parallel.sentences(pairs) == [("One.", "Eins."), ("Two! 3.5 GB", "Zwei! 3.5 GB"), pairs[1]]


def test_batches_have_every_pair_once_a_round_and_keep_to_their_size():
    noise = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 30, (200, 2), generator=noise).tolist()
    pairs = [([i + 1] * a, [i + 1] * b) for i, (a, b) in enumerate(sizes)]
    batches = parallel.Batches(pairs, tokens=200, begin_id=0, seed=3)
    for turn in range(2):
        seen = []
        for number in range(turn * len(batches), (turn + 1) * len(batches)):
            batch = batches(number)
            assert batch["input_ids"].numel() + batch["labels"].numel() <= 200
            for ids, keep, labels, given in zip(
                *(batch[k] for k in ("input_ids", "attention_mask", "labels", "decoder_input_ids")), strict=True
            ):
                target = labels[labels != -100].tolist()
                assert (ids[keep].tolist(), target) == pairs[target[0] - 1]
                assert given.tolist()[: len(target)] == [0, *target[:-1]]
                seen.append(target[0])
        assert sorted(seen) == list(range(1, 201))
    again = parallel.Batches(pairs, tokens=200, begin_id=0, seed=3)
    assert all(torch.equal(again(5)[k], v) for k, v in batches(5).items())
    assert not torch.equal(batches(0)["labels"], batches(len(batches))["labels"])  # another order in each round


def test_padding_of_a_batch_changes_no_prediction():
    model = af.build("transformer", "tiny", seed=0).eval()
    rows = [([3, 4, 5], [6, 7]), ([8], [9, 10, 11, 12])]
    batch = parallel.Batches(rows, tokens=100, begin_id=5)(0)
    labels = batch.pop("labels")
    logits = model(**batch).logits
    for i, own in enumerate(labels):
        ids = batch["input_ids"][i][batch["attention_mask"][i]][None]
        alone = model(input_ids=ids, decoder_input_ids=batch["decoder_input_ids"][i][own != -100][None]).logits[0]
        torch.testing.assert_close(logits[i][own != -100], alone)


def test_the_dictionary_finds_words_that_never_stand_alone():
    pairs = [("the house", "das Haus"), ("the book", "das Buch"), ("a book", "ein Buch")]
    assert parallel.Dictionary(pairs)("a house unknown") == "ein Haus unknown"
