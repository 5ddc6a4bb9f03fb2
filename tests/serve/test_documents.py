"""Answers out of the documents of a server, with the passages that they cite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import anyformer as af
from anyformer.know import Searcher, index
from anyformer.know.tool import search_tool
from anyformer.serve.card import served
from anyformer.serve.engine import Engine
from anyformer.serve.limits import Limits
from tests.know.subjects import minilm, write
from tests.serve.conftest import TEMPLATE, saved
from tests.serve.site import Site

TOWN = "# Drumhaven 🏠\n\nIt lies by the sea.\nIts lighthouse was built in 1846.\n\nThe market is held on Tuesday.\n"
QUESTION = "When was the lighthouse of Drumhaven built?"


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    long = saved(tmp_path_factory.mktemp("asked") / "long", "llama", TEMPLATE, context=4096)
    places: list[Path | str] = [long, folders["bert"]]
    known = served(["long", "bert"], places, [af.load(place) for place in places])
    made = Engine({n: one.model for n, one in known.items()}, Limits(new_tokens=40))
    made.start()
    yield made, known
    made.stop()


@pytest.fixture(scope="module")
def site(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("documents")
    files = {"town.md": TOWN, "food.txt": "Bread is made of flour, water and salt.\n"}
    index(write(place / "docs", files), place / "idx", minilm())
    searcher = Searcher(place / "idx", minilm())
    yield Site(engine, tools=[search_tool(searcher)])
    searcher.close()


def test_sentences_come_with_the_passage_that_says_them(site):
    assert site("GET", "/v1/models").json()["tools"] == ["search"]
    told = site("POST", "/ask", json={"question": QUESTION}).json()
    one = next(s for s in told["statements"] if "1846" in s["text"])
    before, quoted, behind = one["passage"]
    assert told["found"] and one["place"] == "town.md:4" and quoted == "Its lighthouse was built in 1846."
    assert f"{before}{quoted}{behind}" == TOWN.strip() and told["passages"][one["number"] - 1] == "town.md:1-6"


def test_a_model_writes_among_other_requests_and_its_sentences_are_judged(site, engine):
    told = site("POST", "/ask", json={"question": QUESTION, "model": "long", "max_tokens": 12}).json()
    assert told["found"] and all("number" not in s for s in told["statements"])  # random weights say nothing of it
    assert "documents" not in str(told["notes"]) and engine[0].measure().count("\n") > 1


def test_what_is_not_there_is_not_answered(site):
    told = site("POST", "/ask", json={"question": "Wie heißt der Präsident?"}).json()
    assert not told["found"] and not told["statements"] and "another language" in told["notes"][0]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"question": ""}, 422, "question"),
        ({"question": " "}, 400, "question is empty"),
        ({"question": "x", "k": 51}, 422, "k"),
        ({"question": "x", "model": "bert"}, 400, "cannot answer chat"),
        ({"question": "x", "model": "none"}, 404, "no such model"),
        ({"question": QUESTION, "model": "long", "max_tokens": 41}, 400, "max_tokens is 41, at most 40"),
        ({"question": QUESTION, "model": "long", "max_tokens": 5000}, 400, "more than the model's context"),
    ],
)
def test_questions_that_make_no_sense_are_refused(site, body, status, said):
    answer = site("POST", "/ask", json=body)
    assert answer.status_code == status and said in answer.json()["error"]["message"]


def test_a_server_without_documents_says_how_it_gets_them(engine):
    site = Site(engine)
    answer = site("POST", "/ask", json={"question": "x"})
    assert answer.status_code == 400 and "--tools search=INDEX" in answer.json()["error"]["message"]
    assert site("GET", "/v1/models").json()["tools"] == []
