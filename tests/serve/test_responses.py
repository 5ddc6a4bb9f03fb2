"""/v1/responses, as the openai client sees it, in front of a real process."""

from __future__ import annotations

import json
from typing import Any

import pytest

import anyformer as af
from anyformer.generate import generate
from tests.generate.test_tools import TAGS
from tests.serve.conftest import TEMPLATE, saved

WEATHER: Any = {
    "type": "function", "name": "weather", "description": "The weather.", "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    base = tmp_path_factory.mktemp("responses")
    return [
        saved(base / name, "llama", template, context=4096) for name, template in (("own", TEMPLATE), ("native", TAGS))
    ]


@pytest.fixture(scope="module")
def client(process, folders):
    return process(*folders, "--tools", "calculator").client()


def test_a_response_is_what_generate_gives(client, folders):
    model = af.load(folders[0])
    made = client.responses.create(
        model="own",
        instructions="Be brief.",
        input="Hello é?",
        max_output_tokens=12,
        temperature=0,
        metadata={"a": "b"},
    )
    ids = model.tokenizer.chat_ids(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello é?"}]
    )
    expected = model.tokenizer.decode(generate(model, ids, max_new_tokens=12))
    assert made.output_text == expected and made.status == "incomplete"
    assert made.incomplete_details.reason == "max_output_tokens" and made.metadata == {"a": "b"}
    assert (made.usage.input_tokens, made.usage.output_tokens) == (len(ids), 12)


def test_a_stream_has_all_events_in_order_and_the_same_text(client):
    asked: dict[str, Any] = {"model": "own", "input": "x", "max_output_tokens": 30, "temperature": 1.2, "seed": 5}
    whole = client.responses.create(**{k: v for k, v in asked.items() if k != "seed"}, extra_body={"seed": 5})
    del asked["seed"]
    events = list(client.responses.create(**asked, stream=True, extra_body={"seed": 5}))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text and events[-1].response.usage == whole.usage
    with client.responses.stream(**asked, extra_body={"seed": 5}) as stream:  # the client's own reading of events
        for _ in stream:
            pass


@pytest.mark.parametrize("model", ["own", "native"])
def test_calls_are_items_and_results_go_back_as_items(client, model):
    pytest.importorskip("llguidance", reason="grammars: left out: llguidance is not installed")
    asked: dict[str, Any] = {
        "model": model, "input": [{"role": "user", "content": "Rome?"}], "tools": [WEATHER], "tool_choice": "required",
        "parallel_tool_calls": False, "extra_body": {"seed": 2},
    }  # fmt: skip
    made = client.responses.create(**asked)
    call = made.output[0]
    assert [item.type for item in made.output] == ["function_call"] and made.status == "completed"
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    events = list(client.responses.create(**asked, stream=True))
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [call.arguments]
    assert events[-1].response.output[0].name == "weather"
    back = [*asked["input"], call.model_dump(exclude_none=True)]
    back.append({"type": "function_call_output", "call_id": call.call_id, "output": "31 degrees"})
    last = client.responses.create(model=model, input=back, tools=[WEATHER], max_output_tokens=8)
    assert last.usage.input_tokens > made.usage.input_tokens + 10


def test_a_message_that_was_given_can_be_sent_back(client):
    made = client.responses.create(model="own", input="x", max_output_tokens=5, extra_body={"seed": 1})
    said = [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]
    back = [*said, *(item.model_dump(exclude_none=True) for item in made.output), {"role": "user", "content": "more"}]
    assert client.responses.create(model="own", input=back, max_output_tokens=5).output_text is not None


def test_the_text_follows_a_schema(client):
    pytest.importorskip("llguidance", reason="grammars: left out: llguidance is not installed")
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form: Any = {"format": {"type": "json_schema", "name": "it", "schema": schema, "strict": True}}
    made = client.responses.create(model="own", input="x", max_output_tokens=60, text=form)
    assert isinstance(json.loads(made.output_text)["ok"], bool) and made.status == "completed"


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"previous_response_id": "resp_1"}, 400, "nothing is stored"), ({"model": "x"}, 404, "no such model"),
        ({"input": []}, 422, "input"), ({"reasoning": {"effort": "high"}}, 422, "reasoning"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, 400, "needs its schema"),
        ({"max_output_tokens": 99999}, 400, "context"), ({"tool_choice": "required"}, 400, "needs tools"),
        ({"input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}]}, 400, "sees no pictures"),
    ],
)  # fmt: skip
def test_a_mistake_is_an_error_that_names_it(client, options, status, words):
    import openai

    with pytest.raises(openai.APIStatusError, match=words) as caught:
        client.responses.create(**{"model": "own", "input": "x", **options})
    assert caught.value.status_code == status
