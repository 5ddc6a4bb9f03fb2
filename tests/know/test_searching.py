"""Search: BM25 and cosines as their formulas, both orders fused, "nothing found"."""

import math

import numpy as np
import pytest

from anyformer.know import Searcher, index, words

from .subjects import minilm, small, write

TEXTS = {
    "bees.txt": "Bees make honey. Honey bees live in hives.",
    "cats.txt": "Cats sleep all day, and hunt at night.",
    "port.txt": "The server listens on port 8000 by default.",
    "long.txt": "A hive holds many bees. " * 6 + "The keeper wears a veil.",
    "ox.txt": "An ox pulls the plough across the field.",
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    place = tmp_path_factory.mktemp("search")
    index(write(place / "docs", TEXTS), place / "idx", minilm())
    searcher = Searcher(place / "idx", minilm())
    yield searcher
    searcher.close()


def test_bm25_is_the_formula_of_its_paper(opened):
    """score = sum over words of idf f (k + 1) / (f + k (1 - b + b L / mean L)), k = 1.2, b = 0.75."""
    tokens = {
        name: [w[:-1] if w in ("bees", "hives", "cats") else w for w in words.words(t)] for name, t in TEXTS.items()
    }
    mean, count = np.mean([len(t) for t in tokens.values()]), len(tokens)
    expected = {}
    for name, held in tokens.items():
        score = 0.0
        for word in ("bee", "veil"):
            n, f = sum(word in t for t in tokens.values()), held.count(word)
            idf = max(math.log((count - n + 0.5) / (n + 0.5)), 1e-6)
            score += float(idf * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * len(held) / mean)))
        if score:
            expected[name] = score
    found = opened.store.match(words.query("bees veil"), 50)
    paths = dict(opened.store.db.execute("SELECT id, path FROM passages"))
    assert {paths[i]: s for i, s in found} == pytest.approx(expected, rel=1e-6)
    assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)


def test_cosines_are_those_of_the_encoder(opened):
    question = "Which insects produce honey?"
    vectors = minilm().vectors(list(TEXTS.values()))
    cosines = dict(zip(TEXTS, (vectors @ minilm().asked([question])[0]).tolist(), strict=True))
    hits = opened.search(question, 5).hits
    assert {h.row.path: h.cosine for h in hits} == pytest.approx(cosines, abs=1e-5)
    by_rank = sorted(hits, key=lambda h: h.ranks[1])
    assert [h.row.path for h in by_rank] == sorted(cosines, key=lambda n: -cosines[n])


def test_the_order_is_made_of_both_ranks(opened):
    hits = opened.search("bees and the keeper's veil", 5).hits
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert hits[0].row.path == "long.txt" and hits[0].ranks[0] == 1
    assert all(
        h.ranks[0] is None and h.bm25 == 0 and h.share == 0 for h in hits if h.row.path in ("cats.txt", "ox.txt")
    )
    assert opened.search("bees and the keeper's veil", 2).hits == hits[:2]


@pytest.mark.parametrize(
    ("question", "sure"),
    [
        ("Which port does the server use?", True),
        ("When do cats hunt?", True),
        ("Who was the first emperor of Rome?", False),
        ("How many goals were scored in the final?", False),
        ("Welche Farbe hat der Himmel über Paris?", False),
        ("zyxwvut", False),
    ],
)
def test_something_is_found_where_there_is_something(opened, question, sure):
    assert opened.search(question).sure is sure


def test_words_that_are_nowhere_are_named(opened):
    assert opened.search("zebra bees").unknown == ["zebra"]


@pytest.mark.parametrize(
    "question",
    ['" OR *', "NEAR(a b)", "text: x", "bees AND NOT", "(((", "a'b\"c", "\0x", "-", "漢字 🙂", "^bees"],
)
def test_no_question_is_a_program(opened, question):
    assert len(opened.search(question, 5).hits) == 5


def test_questions_and_numbers_that_make_no_sense_are_refused(opened):
    for question, k in (("  ", 3), ("bees", 0), ("bees", 51)):
        with pytest.raises(ValueError):
            opened.search(question, k)


def test_equal_passages_come_in_the_order_of_their_files(tmp_path):
    index(write(tmp_path / "docs", {f"{n}.txt": "the same text" for n in "cab"}), tmp_path / "idx", small())
    searcher = Searcher(tmp_path / "idx", small())
    assert [h.row.path for h in searcher.search("same text", 3).hits] == ["a.txt", "b.txt", "c.txt"]
    searcher.close()
