"""Functions in conversations, as the openai client sees them, in front of a real process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anyformer.know import index
from tests.generate.test_tools import TAGS
from tests.know.subjects import minilm, write
from tests.serve.conftest import TEMPLATE, saved

pytest.importorskip("llguidance", reason="grammars: left out: llguidance is not installed")
ASK: list[Any] = [{"role": "user", "content": "Is it warm in Rome?"}]
CITY = {"enum": ["Rome", "Oslo"]}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": CITY}, "required": ["city"]},
    },
}
TIME: Any = {"type": "function", "function": {"name": "time"}}
CALCULATOR: Any = {"type": "calculator"}


@pytest.fixture(scope="module")
def server(process, tmp_path_factory: pytest.TempPathFactory) -> Any:
    base: Path = tmp_path_factory.mktemp("calling")
    own = saved(base / "own", "llama", TEMPLATE, context=4096)
    native = saved(base / "native", "llama", TAGS, context=4096)
    return process(own, native, "--tools", "calculator")


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def ask(client: Any, **options: Any) -> Any:
    return client.chat.completions.create(
        **{"messages": ASK, "max_tokens": 300, "temperature": 1, "seed": 1, **options}
    )


@pytest.mark.parametrize("model", ["own", "native"])
def test_a_call_follows_its_schema_whole_and_as_a_stream(client, model):
    asked: dict[str, Any] = {"model": model, "tools": [WEATHER, TIME], "tool_choice": "required", "n": 3}
    choices = ask(client, **asked).choices
    for choice in choices:
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        for call in choice.message.tool_calls:
            arguments = json.loads(call.function.arguments)
            good: dict[str, list[Any]] = {"weather": [{"city": "Rome"}, {"city": "Oslo"}], "time": [{}]}
            assert arguments in good[call.function.name]
    found: dict[int, list[Any]] = {}
    ends: dict[int, Any] = {}
    for part in ask(client, **asked, stream=True):
        for choice in part.choices:
            found.setdefault(choice.index, []).extend(choice.delta.tool_calls or [])
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
            assert not choice.delta.content
    assert set(ends.values()) == {"tool_calls"}
    for choice in choices:
        whole = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls]
        assert whole == [(c.function.name, c.function.arguments) for c in found[choice.index]]


def test_the_choice_of_a_function(client):
    named: Any = {"type": "function", "function": {"name": "weather"}}
    for seed in range(4):
        one = {"model": "own", "tools": [WEATHER, TIME], "tool_choice": named, "parallel_tool_calls": False}
        calls = ask(client, **one, seed=seed).choices[0].message.tool_calls
        assert [call.function.name for call in calls] == ["weather"]
    free = ask(client, model="own", tools=[WEATHER], tool_choice="auto", max_tokens=20).choices[0]
    none = ask(client, model="own", tools=[WEATHER], tool_choice="none", max_tokens=20).choices[0]
    plain = ask(client, model="own", max_tokens=20).choices[0]
    assert free.message.tool_calls is None and none.message.content == plain.message.content != free.message.content


@pytest.mark.parametrize("model", ["own", "native"])
def test_results_are_part_of_the_prompt(client, server, model):
    call = (
        ask(client, model=model, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False).choices[0].message
    )
    said = [*ASK, call.model_dump(exclude_none=True)]
    said.append({"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "31 degrees"})
    made = ask(client, model=model, messages=said, tools=[WEATHER], max_tokens=10)
    more = ask(client, model=model, messages=said[:-1], tools=[WEATHER], max_tokens=10)
    assert made.usage.prompt_tokens > more.usage.prompt_tokens + 10 and made.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_the_server_runs_its_own_tools_and_the_answer_goes_on(client, stream):
    asked: dict[str, Any] = {"model": "native", "tools": [CALCULATOR], "tool_choice": "required", "max_tokens": 120}
    found = ask(client, **asked, stream=stream)
    if stream:
        choices = [choice for part in found for choice in part.choices]
        text, end = "".join(c.delta.content or "" for c in choices), choices[-1].finish_reason
        assert not any(c.delta.tool_calls for c in choices)
    else:
        text, end = found.choices[0].message.content, found.choices[0].finish_reason
        assert found.choices[0].message.tool_calls is None
        assert found.usage.completion_tokens > len("calculator")
    assert end in ("stop", "length") and text and "<tool_call>\n{" not in text


def test_the_server_searches_an_index(process, tmp_path):
    """The answer goes on behind what was found, which stands in the prompt: it grows by at least the quotation."""
    index(write(tmp_path / "docs", {"a.txt": "A lighthouse stands at the sea. " * 3}), tmp_path / "idx", minilm())
    folder = saved(tmp_path / "own", "llama", TEMPLATE, context=4096)
    client = process(folder, "--tools", f"search={tmp_path / 'idx'}").client()
    found = ask(client, model="own", tools=[{"type": "search"}], tool_choice="required", max_tokens=1500)
    assert found.choices[0].message.tool_calls is None and found.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"tools": [WEATHER, WEATHER]}, 400, "different names"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, 422, "tools"),
        ({"tools": [{"type": "web_search"}]}, 422, "tools"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, 400, "leave one of them out"),
        ({"tool_choice": "required"}, 400, "needs tools"), ({"tools": [CALCULATOR], "n": 2}, 400, "n is 1"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, 400, "not among"),
        ({"messages": [{"role": "assistant"}]}, 400, "without content"),
        ({"messages": [*ASK, {"role": "assistant", "tool_calls": [
            {"id": "x", "type": "function", "function": {"name": "f", "arguments": "["}}]}]}, 400, "JSON object"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"a": {"type": "nonsense"}}}}}]}, 400, "nonsense"),
    ],
)  # fmt: skip
def test_a_mistake_is_an_error_that_names_it(client, options, status, words):
    import openai

    with pytest.raises(openai.APIStatusError, match=words) as caught:
        ask(client, **{"model": "own", "max_tokens": 3, **options})
    assert caught.value.status_code == status


def test_a_server_without_tools_of_its_own_says_so(process, tmp_path):
    import openai

    client = process(saved(tmp_path / "own", "llama", TEMPLATE, context=4096)).client()
    with pytest.raises(openai.BadRequestError, match="start it with --tools calculator"):
        ask(client, tools=[CALCULATOR], model="own")
    with pytest.raises(openai.BadRequestError, match="start it with --tools search=INDEX"):
        ask(client, tools=[{"type": "search"}], model="own")
