"""Passages: nothing is cut, nothing is lost, whatever the text."""

import random

import pytest

from anyformer.know.chunking import passages
from anyformer.know.reading import document

from .subjects import minilm, small


def check(text, encoder, name="a.md"):
    read = document(name, text.encode())
    made = passages(read, encoder)
    at = 0
    for row in made.rows:
        assert not read.text[at : row.begin].strip(), "text between passages"
        assert row.begin < row.end and at <= row.begin
        at = row.end
    assert not read.text[at:].strip()
    texts = [row.read(read.text) for row in made.rows]
    counts = encoder.counts(texts)
    assert max(counts) <= encoder.limit and counts == [row.tokens for row in made.rows]
    assert made.lost == 0
    return read, made


@pytest.mark.parametrize("context", [16, 33, 64])
def test_every_character_is_in_one_passage_that_the_encoder_reads_whole(context):
    encoder, draw = small(context), random.Random(context)
    pieces = [
        "word ", "naïve ", "🙂🙂🙂", "end. ", "\n\n", "\n# A heading of some length\n\n", "x" * 40, "\n- item ", "漢字",
        "a\u0301" * 9,
    ]  # fmt: skip
    for _ in range(12):
        text = "".join(draw.choice(pieces) for _ in range(draw.randrange(1, 90))) + "z"
        check(text, encoder)


def test_one_line_of_any_length_becomes_passages():
    for text in ("a" * 70_000, "word " * 15_000, "🙂" * 3000):
        assert len(check(text, small(64), "a.txt")[1].rows) > 100
    assert len(check("lorem ipsum " * 9000, minilm(), "a.txt")[1].rows) > 50


def test_a_word_without_end_does_not_make_a_passage_without_end():
    _, made = check("x" * 50_000, minilm(), "a.txt")  # one unknown token to this encoder
    assert max(row.end - row.begin for row in made.rows) <= 24 * minilm().limit
    assert minilm().unknown("x" * 200) == 1


def test_passages_follow_headings_and_end_with_sentences():
    text = "# One\n\n" + "This is a sentence of one. " * 30 + "\n\n# Two\n\nAnother text.\n"
    read, made = check(text, minilm())
    assert made.rows[-1].trail == ("Two",) and read.text[made.rows[-1].begin :].startswith("# Two")
    assert made.rows[0].head == "One\n"
    long = "This is the sentence. " * 200
    rows = check(long, minilm(), "a.txt")[1].rows
    assert len(rows) > 3 and all(long[row.begin : row.end].endswith(".") for row in rows)


def test_headings_never_crowd_out_the_text():
    head = "".join(f"{'#' * n} {'very long heading ' * 12}\n\n" for n in range(1, 6))
    check(head + "the text " * 50, small(64))


def test_the_loss_is_counted_where_there_is_one():
    """A document whose blocks miss a part of its text."""
    from dataclasses import replace

    read = document("a.txt", b"first part\n\nsecond part")
    assert passages(replace(read, blocks=read.blocks[:1]), small(64)).lost == len("secondpart")
