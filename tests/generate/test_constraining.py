"""Texts that follow a grammar, whatever the model would rather write."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from anyformer.generate import generate, stream
from tests.generate.subjects import reading

pytest.importorskip("llguidance", reason="grammars: left out: llguidance is not installed")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blau", "青"]},
        "count": {"type": "integer", "minimum": 3, "maximum": 42},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["colour", "count", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> Any:
    return reading()


def follows(text: str) -> bool:
    found = json.loads(text)
    tags = found["tags"]
    return (
        list(found) == list(SCHEMA["properties"]) and found["colour"] in SCHEMA["properties"]["colour"]["enum"]
        and 3 <= found["count"] <= 42 and len(tags) <= 2 and all(isinstance(tag, bool) for tag in tags)
    )  # fmt: skip


def test_every_text_follows_the_schema_and_ends(model):
    options: dict[str, Any] = {"max_new_tokens": 120, "temperature": 1.5, "schema": SCHEMA}
    texts = generate(model, ["a", "the cat and the other", "b"] * 4, seed=list(range(12)), **options)
    assert all(map(follows, texts)) and len(set(texts)) > 8
    assert generate(model, "b", seed=5, **options) == texts[5]  # and does not depend on the others
    assert generate(model, "b", seed=5, speculate="lookup", **options) == texts[5]
    assert "".join(stream(model, "b", seed=5, **options)) == texts[5]
    assert follows(generate(model, "x", max_new_tokens=120, schema=SCHEMA))


def test_every_text_follows_the_expression(model):
    for seed in range(5):
        text = generate(model, "x", max_new_tokens=60, temperature=2.0, seed=seed, regex=r"(ab|é){2,4}-[0-9]{3}")
        assert re.fullmatch(r"(ab|é){2,4}-[0-9]{3}", text)
    rest = generate(model, "x", max_new_tokens=4, temperature=2.0, seed=1, regex=r"[0-9]{9}")
    assert re.fullmatch(r"[0-9]{4,9}", rest)  # max_new_tokens ends it


def test_every_text_follows_the_grammar(model):
    lark = 'start: "<" part ("," part){0,2} ">"\npart: /[a-c]+/ | "é"'
    for seed in range(4):
        text = generate(model, "x", max_new_tokens=60, temperature=2.0, seed=seed, grammar=lark)
        assert re.fullmatch("<([a-c]+|é)(,([a-c]+|é)){0,2}>", text) or (
            len(text) > 20 and re.fullmatch("<[a-cé,]*", text)
        )


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"grammar": "start: nothing"}, "grammar: .*nothing"), ({"grammar": ""}, "Lark"),
        ({"regex": "("}, "regex: .*unclosed"), ({"schema": {"type": "nonsense"}}, "schema: .*nonsense"),
        ({"schema": {"a": float("nan")}}, "plain values"), ({"schema": "x"}, "plain values"), ({"regex": ""}, "regex"),
        ({"regex": "a", "schema": {}}, "one of them"), ({"regex": "a" * 200_000}, "at most 100,000"),
        ({"regex": "a", "num_beams": 2}, "regex"), ({"regex": "(a{1000}){1000}"}, "regex|complex"),
    ],
)  # fmt: skip
def test_a_grammar_that_makes_no_sense_is_an_error(model, options, word):
    with pytest.raises(ValueError, match=word):
        generate(model, "x", max_new_tokens=3, **options)


def test_a_model_without_an_end_is_refused():
    made = reading()
    made.tokenizer.eos_ids = set()
    with pytest.raises(ValueError, match="token that ends texts"):
        generate(made, "x", max_new_tokens=3, regex="a")
