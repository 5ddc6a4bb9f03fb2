"""The server as the openai client sees it, in front of a real process."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import anyformer as af
from anyformer.explain.attribution import attribute
from anyformer.explain.rows import attention_row
from anyformer.generate import embed, generate

HELLO: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello é?"}]


@pytest.fixture(scope="module")
def client(server):
    return server.client()


@pytest.fixture(scope="module")
def llama(folders):
    return af.load(folders["llama"])


def alone(model, ids: list[int], count: int, **options: Any) -> str:
    return model.tokenizer.decode(generate(model, ids, max_new_tokens=count, **options))


def test_models_are_listed_with_what_they_answer(client, server):
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == ["llama", "mamba", "compressive", "t5", "bert"]
    assert listed["bert"].verbs == ["embeddings", "tokenize"] and "chat" in listed["llama"].verbs
    card = client.models.retrieve("llama").card
    assert card["licence"] == "apache-2.0" and card["context"] == 256 and card["recipe"].startswith("CausalLM.of(")
    assert any("in turns" in line and line.startswith("compressive") for line in server.said)
    assert not any("in turns" in line and line.startswith(("llama", "mamba", "t5")) for line in server.said)


def test_a_chat_is_what_generate_gives(client, llama):
    made = client.chat.completions.create(model="llama", messages=HELLO, max_tokens=12, temperature=0)
    ids = llama.tokenizer.chat_ids(HELLO)
    assert made.choices[0].message.content == alone(llama, ids, 12)
    assert made.choices[0].finish_reason == "length"
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (len(ids), 12)


def test_a_stream_joins_to_the_whole_and_has_the_usage(client):
    options: dict[str, Any] = {"model": "llama", "messages": HELLO, "max_tokens": 40, "temperature": 1.3, "seed": 7}
    whole = client.chat.completions.create(**options, n=3)
    texts, ends, last = ["", "", ""], {}, None
    for part in client.chat.completions.create(**options, n=3, stream=True, stream_options={"include_usage": True}):
        for choice in part.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason
        last = part
    assert texts == [choice.message.content for choice in whole.choices] and len(set(texts)) == 3
    assert last is not None and last.usage == whole.usage and not last.choices
    assert all(ends.values())


def test_seeds_repeat_and_differ(client):
    def draw(seed: int) -> str:
        made = client.completions.create(model="mamba", prompt="x", max_tokens=12, temperature=1.0, seed=seed)
        return made.choices[0].text

    assert draw(3) == draw(3) != draw(0)
    many = client.completions.create(model="mamba", prompt="x", max_tokens=12, temperature=1.0, seed=3, n=2)
    assert many.choices[0].text == draw(3) and many.choices[1].text == draw(4)


def test_stop_bias_and_penalties_act(client, llama):
    free = alone(llama, llama.tokenizer.encode("abc"), 24)
    stop = next(free[i] for i in range(4, len(free)) if free[i].isprintable() and free[i] != "\ufffd")
    made = client.completions.create(model="llama", prompt="abc", max_tokens=24, temperature=0, stop=[stop])
    assert made.choices[0].text == free[: free.index(stop)] and made.choices[0].finish_reason == "stop"
    made = client.completions.create(model="llama", prompt="abc", max_tokens=5, temperature=0, logit_bias={"122": 100})
    assert made.choices[0].text == "zzzzz"
    made = client.completions.create(
        model="llama", prompt="abc", max_tokens=5, temperature=0, logit_bias={"122": 3, "121": 2.9},
        extra_body={"repetition_penalty": 1.0}, presence_penalty=2, frequency_penalty=2,
    )  # fmt: skip
    expected = generate(
        llama, "abc", max_new_tokens=5, logit_bias={122: 3, 121: 2.9}, presence_penalty=2.0, frequency_penalty=2.0
    )
    assert made.choices[0].text == expected


def test_an_answer_follows_its_schema(client):
    import openai

    pytest.importorskip("llguidance", reason="grammars: left out: llguidance is not installed")
    digit = {"type": "integer", "minimum": 0, "maximum": 9}
    schema = {
        "type": "object", "properties": {"n": digit, "b": {"type": "boolean"}}, "required": ["n", "b"],
        "additionalProperties": False,
    }  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
    made = client.chat.completions.create(
        model="llama", messages=HELLO, max_tokens=60, temperature=1.5, seed=1, n=4, response_format=form
    )
    found = [json.loads(choice.message.content) for choice in made.choices]
    assert all(list(one) == ["n", "b"] and 0 <= one["n"] <= 9 and isinstance(one["b"], bool) for one in found)
    assert all(choice.finish_reason == "stop" for choice in made.choices) and len({str(one) for one in found}) > 1
    for wrong in ({"type": 7}, {"$ref": "http://127.0.0.1/schema.json"}):
        form = {"type": "json_schema", "json_schema": {"name": "it", "schema": wrong}}
        with pytest.raises(openai.BadRequestError, match="schema"):
            client.chat.completions.create(model="llama", messages=HELLO, max_tokens=3, response_format=form)


def test_log_probabilities_are_those_of_the_model_with_alternatives(client, llama):
    ids = llama.tokenizer.chat_ids(HELLO)
    made = client.chat.completions.create(
        model="llama", messages=HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    content = made.choices[0].logprobs.content
    new = generate(llama, ids, max_new_tokens=4)
    scores = llama(input_ids=torch_ids([*ids, *new])).logits[0].log_softmax(-1)
    for place, entry in enumerate(content):
        expected = scores[len(ids) + place - 1]
        assert entry.bytes == [new[place]]
        np.testing.assert_allclose(entry.logprob, expected.max().item(), atol=1e-4)
        assert entry.top_logprobs[0].bytes == entry.bytes and len(entry.top_logprobs) == 3
    assert len(content) == 4


def test_echo_scores_a_prompt_as_lm_eval_asks(client, llama):
    rows = [llama.tokenizer.encode("the cat"), llama.tokenizer.encode("a longer prompt " * 20 + "é")[:250]]
    made = client.completions.create(model="llama", prompt=rows, max_tokens=1, temperature=0, echo=True, logprobs=1)
    for row, choice in zip(rows, made.choices, strict=True):
        logs = choice.logprobs
        scores = llama(input_ids=torch_ids(row)).logits[0].log_softmax(-1)
        expected = [scores[i, token].item() for i, token in enumerate(row[1:])]
        assert logs.token_logprobs[0] is None and len(logs.tokens) == len(row) + 1
        np.testing.assert_allclose(logs.token_logprobs[1:-1], expected, atol=1e-4)
        greedy = [
            own == max(top.values()) for own, top in zip(logs.token_logprobs[1:], logs.top_logprobs[1:], strict=True)
        ]
        assert greedy == [*(scores[:-1].argmax(-1) == torch_ids(row)[0, 1:]).tolist(), True]
        assert choice.text.startswith(llama.tokenizer.decode(row))
    only = client.completions.create(model="llama", prompt="the cat", max_tokens=0, echo=True, logprobs=0)
    assert only.choices[0].text == "the cat" and len(only.choices[0].logprobs.tokens) == 7


def torch_ids(row: list[int]) -> Any:
    import torch

    return torch.tensor([row])


@pytest.mark.parametrize("name", ["mamba", "compressive", "t5"])
def test_every_kind_of_page_answers_several_at_once(client, folders, name):
    model = af.load(folders[name])
    prompts = [f"{name} {'x' * i}" for i in range(1, 7)]
    expected = [generate(model, prompt, max_new_tokens=8) for prompt in prompts]
    made = client.completions.create(model=name, prompt=prompts, max_tokens=8, temperature=0)
    assert [choice.text for choice in made.choices] == expected


def test_sixteen_users_at_once_get_their_own_texts(client, llama):
    """Canaries: every answer is the user's own prompt and its own continuation, whatever else is in the batch."""
    prompts = [f"canary-{i:02}-{'ab' * (i % 5)}" for i in range(16)]
    expected = [prompt + generate(llama, prompt, max_new_tokens=10) for prompt in prompts]

    def ask(prompt: str) -> list[str]:
        def one() -> str:
            made = client.completions.create(model="llama", prompt=prompt, max_tokens=10, temperature=0, echo=True)
            return made.choices[0].text

        def parts() -> str:
            pieces = client.completions.create(
                model="llama", prompt=prompt, max_tokens=10, temperature=0, echo=True, stream=True
            )
            return "".join(part.choices[0].text for part in pieces)

        return [one(), parts()]

    with ThreadPoolExecutor(16) as users:
        answers = list(users.map(ask, prompts))
    assert answers == [[text, text] for text in expected]


def test_embeddings_are_those_of_embed_and_truncation_is_told(client, folders):
    model, texts = af.load(folders["bert"]), ["short", "long " * 30]
    made = client.embeddings.create(model="bert", input=texts, encoding_format="float")
    with pytest.warns(UserWarning, match="longer than 64"):
        expected = embed(model, texts)
    np.testing.assert_allclose([entry.embedding for entry in made.data], expected, atol=1e-5)
    assert made.truncated == [1] and "64" in made.warning and made.usage.prompt_tokens == 5 + 64
    coded = client.embeddings.with_raw_response.create(model="bert", input="short", encoding_format="base64")
    data = json.loads(coded.text)["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(data), "<f4"), expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ({"model": "gpt-9"}, "NotFoundError", "llama, mamba"),
        ({"model": "mamba"}, "BadRequestError", "chat template"),
        ({"model": "bert"}, "BadRequestError", "llama can"),
        ({"max_tokens": 5000}, "BadRequestError", "context of llama is 256"),
        ({"temperature": 3}, "UnprocessableEntityError", "temperature"),
        ({"extra_body": {"top_k": 0}}, "UnprocessableEntityError", "top_k"),
        ({"extra_body": {"functions": []}}, "UnprocessableEntityError", "functions"),
        ({"n": 100}, "BadRequestError", "at most 8"),
        ({"logit_bias": {"300": 1}}, "BadRequestError", "outside the vocabulary"),
        ({"messages": [{"role": "user", "content": "x" * 300_000}]}, "APIStatusError", "bytes"),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "http://127.0.0.1/cat.png"}}]}]},
            "BadRequestError", "no address is fetched",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_an_error_that_names_it(client, call, error, words):
    import openai

    with pytest.raises(getattr(openai, error), match=words) as caught:
        client.chat.completions.create(**{"model": "llama", "messages": HELLO, "max_tokens": 3, **call})
    assert caught.value.status_code in (400, 404, 413, 422)
    assert {"message", "type", "param", "code"} <= set(caught.value.body)


def test_tokens_health_and_metrics(server, client):
    def get(path: str, body: Any = None) -> str:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(server.url + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()

    assert json.loads(get("/health")) == {"status": "ok"}
    assert json.loads(get("/tokenize", {"prompt": "ab", "model": "llama"}))["tokens"] == [97, 98]
    chat = json.loads(get("/tokenize", {"messages": [{"role": "user", "content": "ab"}], "model": "llama"}))
    assert bytes(chat["tokens"]) == b"<user>ab<assistant>"
    client.completions.create(model="llama", prompt="secret-word", max_tokens=2)
    told = get("/metrics")
    assert 'anyformer_generated_tokens_total{model="llama"}' in told and "anyformer_first_token_seconds_sum" in told
    assert "secret" not in told and 'anyformer_running{model="llama"} 0' in told
    assert not any("secret" in line for line in (*server.said, *server.errors))


def test_attention_and_wiring_for_the_page(server, llama):
    def ask(path: str, body: Any = None) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(server.url + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    status, data = ask("/attention", {"model": "llama", "prompt": "abcd", "answer": "efg", "token": 1})
    found, expected = json.loads(data), attention_row(llama, list(b"abcd"), list(b"efg"), 1)
    assert status == 200 and (found["token"], found["query"], found["first"]) == (5, 4, 4)
    each = np.frombuffer(base64.b64decode(found["weights"]), np.uint8).astype(float) / 255
    whole = np.concatenate([row.weights.numpy().ravel() for row in expected.rows])
    np.testing.assert_allclose(each**2, whole, atol=0.005)
    assert [(r["heads"], r["keys"]) for r in found["layers"]] == [tuple(row.weights.shape) for row in expected.rows]
    assert ask("/attention", {"model": "t5", "prompt": "ab", "answer": "c"})[0] == 200
    for body, words in (({"model": "mamba", "prompt": "a", "answer": "b"}, b"cannot answer attention"),
                        ({"model": "llama", "prompt": "a", "answer": "b", "token": 1}, b"no token 1"),
                        ({"model": "llama", "answer": "b"}, b"one of them"),
                        ({"model": "llama", "prompt": "a" * 300, "answer": "b"}, b"context of llama")):  # fmt: skip
        status, data = ask("/attention", body)
        assert status == 400 and words in data
    asked = {"model": "llama", "prompt": "abcd", "answer": "efg", "token": 1}
    status, data = ask("/explain", asked)
    told = json.loads(data.decode().split('id="data">')[1].split("</script>")[0])
    made = attribute(llama, list(b"abcde"), ord("f"), "grad")
    assert status == 200 and (told["target"], told["model"]) == ("f", "llama") and told["maps"] and told["lens"]["rows"]
    np.testing.assert_allclose(told["attribution"]["inputs"][0]["values"], made.values["input_ids"][0], rtol=1e-3)
    assert ask("/explain", {"model": "t5", "prompt": "ab", "answer": "cd", "method": "occlusion"})[0] == 200
    assert ask("/attention", asked)[1] == ask("/attention", asked)[1]  # and it leaves the model as it was
    for more, words in (({"token": 3}, b"no token 3"), ({"method": "relevance"}, b"method")):
        status, data = ask("/explain", {**asked, **more})
        assert status in (400, 422) and words in data
    status, data = ask("/v1/models/llama/wiring.svg")
    assert status == 200 and b"<svg" in data and ask("/v1/models/nothing/wiring.svg")[0] == 404


def test_a_client_that_goes_away_ends_its_text(server, client):
    import openai

    def running() -> str:
        with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
            return next(line for line in answer.read().decode().splitlines() if 'running{model="mamba"}' in line)

    import time

    endless: dict[str, Any] = {
        "model": "mamba", "prompt": "x", "max_tokens": 4000, "temperature": 1.0, "logit_bias": {"256": -100},
    }  # fmt: skip
    stream = client.completions.create(**endless, stream=True)
    next(iter(stream))
    assert running().endswith(" 1")
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(**endless, timeout=0.2)
    end = time.monotonic() + 5
    while not running().endswith(" 0"):
        assert time.monotonic() < end, "the text is still being written"
        time.sleep(0.05)


def test_sigterm_ends_answers_that_have_begun(process, folders):
    server = process(folders["llama"])
    stream = server.client().completions.create(model="llama", prompt="x", max_tokens=200, temperature=0, stream=True)
    parts = [next(iter(stream)).choices[0].text]
    server.process.terminate()
    parts += [part.choices[0].text for part in stream]
    assert server.process.wait(timeout=30) == 0
    model = af.load(folders["llama"])
    assert "".join(parts) == generate(model, "x", max_new_tokens=200)
