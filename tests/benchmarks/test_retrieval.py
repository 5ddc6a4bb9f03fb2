"""The benchmark of retrieval: its figures, its invented facts, its tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import retrieval, retrieval_data
from tests.know.subjects import minilm


def test_figures_count_ranks_of_files() -> None:
    found = retrieval.ranks(lambda q: ["a", "b", "a", "c"], [("1", "a"), ("2", "c"), ("3", "x")])
    assert found == [1, 3, 0]
    assert retrieval.figures(found) == pytest.approx({"recall@1": 1 / 3, "recall@5": 2 / 3, "mrr": (1 + 1 / 3) / 3})


def test_questions_and_texts_are_drawn_once() -> None:
    pairs = [("q1", "t1"), ("q1", "t2"), ("q2", "t1"), ("q3", "t3")]
    kept = retrieval_data._drawn(list(pairs), 10)
    assert len({q for q, _ in kept}) == len({t for _, t in kept}) == len(kept) >= 2


def test_every_invented_fact_is_in_its_sentence_alone() -> None:
    rows = list(retrieval_data.facts())
    assert len({file for file, *_ in rows}) == len(rows) == 36
    for _, question, sentence, changed, fact in rows:
        assert fact in sentence and fact not in changed and fact not in question


def test_edits_of_cited_facts_are_counted_and_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(retrieval_data, "PLACES", retrieval_data.PLACES[:2])
    found = retrieval.cited(minilm(), None, 2)
    assert found["shares"] == {"right": (2, 2), "cites it": (2, 2), "cited edited": (2, 2), "other edited": (0, 2)}
    shown = retrieval.table([{"kind": "cite", "model": "none", "machine": "here", **found}])
    assert "| the cited fact is edited: another answer | 2 of 2 |" in shown and shown.endswith("here")
