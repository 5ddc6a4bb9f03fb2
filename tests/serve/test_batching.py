"""The engine: what a text is does not depend on what else is written, and everybody gets a turn."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import anyformer as af
from anyformer.generate import generate
from anyformer.generate.options import Options
from anyformer.generate.prompts import Prompts
from anyformer.serve.card import served
from anyformer.serve.engine import Engine, Queue
from anyformer.serve.jobs import Call, Event, Failed, Job, Made, Refused, Write
from anyformer.serve.limits import Limits
from anyformer.serve.texts import Piece, Token
from tests.serve.site import Site


class Answer:
    """The texts of one job, collected."""

    def __init__(self, count: int):
        self.texts, self.tokens = [""] * count, [list[Token]() for _ in range(count)]
        self.left, self.done = count, threading.Event()
        self.error: Exception | None = None
        self.value: Any = None
        self.at = 0.0

    def __call__(self, number: int, event: Event) -> None:
        if isinstance(event, Failed):
            self.error, self.left = event.error, 0
        elif isinstance(event, Made):
            self.value, self.left = event.value, 0
        elif isinstance(event, Piece):
            self.texts[number] += event.text
            self.tokens[number] += event.tokens
            self.left -= event.end is not None
        if self.left <= 0:
            self.at = time.monotonic()
            self.done.set()

    def wait(self) -> Answer:
        assert self.done.wait(30), "no answer"
        if self.error is not None:
            raise self.error
        return self


def write(
    engine: Engine,
    name: str,
    text: str,
    count: int = 12,
    client: str = "a",
    rows: int = 1,
    made: Answer | None = None,
    **options: Any,
) -> Answer:
    """Submits one prompt."""
    given = {"temperature": 0.0, "top_k": None, "top_p": None, "min_p": None, "repetition_penalty": None, "stop": (),
             "seed": None, "cache": True, **options}  # fmt: skip
    made, ids = made or Answer(rows), Prompts(engine.models[name], text).rows[0]
    each = [Options(count, **given) for _ in range(rows)]
    engine.submit(name, [Write(client, time.monotonic() + 60, made, ids=ids, options=each, top=2)])
    return made


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: af.load(folders[name]) for name in ("llama", "mamba", "compressive", "t5")}


@pytest.fixture
def engine(loaded):
    """`engine(exact=True)` starts one."""
    made: list[Engine] = []

    def start(exact: bool = False, **limits: Any) -> Engine:
        made.append(Engine(loaded, Limits(**limits), exact))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.stop()


def test_a_text_is_counted_from_its_first_token_to_its_last(engine):
    """Whoever has read a piece of a text sees it among those that are written."""
    running, counts = engine(), list[int]()

    class Counted(Answer):
        def __call__(self, number: int, event: Event) -> None:
            counts.append(running.running)
            super().__call__(number, event)

    write(running, "mamba", "abc", 5, rows=2, made=Counted(2)).wait()
    assert len(counts) > 4 and set(counts) == {2}


@pytest.mark.parametrize("exact", [False, True])
def test_greedy_texts_do_not_depend_on_the_batch(engine, loaded, exact):
    running = engine(exact=exact, chunk=16)
    for name in loaded:
        text = f"{name} says: "
        alone = write(running, name, text).wait()
        asked, others = [], []
        for i in range(3):  # they come at different times, with other lengths and options
            asked.append(write(running, name, text, client=f"u{i}"))
            others.append(
                write(running, name, "other " * (1 + 7 * i), 3 + 4 * i, temperature=1.5, seed=i, rows=1 + i % 2)
            )
            time.sleep(0.004 * i)
        for one in (*asked, *others):
            one.wait()
        for one in asked:
            assert one.texts == alone.texts == [generate(loaded[name], text, max_new_tokens=12)]
            if exact:  # the very same numbers, too
                assert [(t.log, t.best) for t in one.tokens[0]] == [(t.log, t.best) for t in alone.tokens[0]]


def test_drawn_texts_are_those_of_generate_with_their_seeds(engine, loaded):
    running = engine(rows=3)
    options: dict[str, Any] = {"temperature": 1.2, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1}
    many = [write(running, "llama", f"prompt {i} {'é' * i}", seed=i, **options) for i in range(7)]
    expected = [
        generate(loaded["llama"], f"prompt {i} {'é' * i}", max_new_tokens=12, seed=i, **options) for i in range(7)
    ]
    assert [one.wait().texts[0] for one in many] == expected and len(set(expected)) == 7


def test_short_prompts_are_read_together_and_fail_alone(engine, loaded):
    running = engine(rows=16)
    for name in ("llama", "mamba", "t5"):
        before = running.metrics.text()
        model, texts = loaded[name], [f"{i} {'é' * (i % 4)}" for i in range(8)]
        with running._work:  # all of them wait before the engine looks
            many = [write(running, name, text, 6, rows=1 + i % 3) for i, text in enumerate(texts)]
            wrong = write(running, name, "x", 6, logit_bias={999: 1.0})
        for text, one in zip(texts, many, strict=True):
            assert one.wait().texts == [generate(model, text, max_new_tokens=6)] * len(one.texts)
        with pytest.raises(ValueError, match="999"):
            wrong.wait()
        assert before != running.metrics.text()


def test_a_long_prompt_does_not_hold_up_the_others(engine, loaded):
    running = engine(chunk=8)
    first = write(running, "llama", "go ", 100)
    while not first.tokens[0]:
        time.sleep(0.001)
    seen = len(first.tokens[0])
    long = write(running, "llama", "w " * 120, 2)
    long.wait()
    between = len(first.tokens[0]) - seen
    assert between >= 240 // 8 - 2, f"only {between} tokens were written while 240 were read in 30 chunks"
    first.wait()


def test_each_client_has_a_turn():
    queue = Queue()
    jobs = [Job(client, time.monotonic() + 9, lambda *_: None) for client in "aaaabbc"]
    for job in jobs:
        queue.put(job)
    jobs[1].cancelled = True
    order = []
    while queue.peek() is not None:
        order.append(queue.take().client)
    assert order == ["a", "b", "c", "a", "b", "a"] and not len(queue)


def test_limits_refuse_by_name(engine, loaded):
    running = engine(rows=1, waiting=2)
    begun = [write(running, "mamba", "x", 4000, temperature=1.0, logit_bias={256: -100.0})]
    while not begun[0].tokens[0]:
        time.sleep(0.001)
    begun += [write(running, "mamba", "x", 1) for _ in range(2)]
    with pytest.raises(Refused, match="wait already") as full:
        write(running, "mamba", "x", 1)
    assert full.value.status == 429 and full.value.after
    late = Answer(1)
    running.draining = True
    with pytest.raises(Refused, match="being stopped") as ending:
        running.submit("mamba", [Call("a", time.monotonic() + 9, late, work=dict)])
    assert ending.value.status == 503
    running.stop()
    for one in begun:
        with pytest.raises(Refused, match="was stopped"):
            one.wait()


def test_time_ends_a_text_and_a_wait(engine, loaded):
    running = engine(rows=1)
    text, wait = Answer(1), Answer(1)
    ids, now = [65], time.monotonic()
    options = [Options(4000, 1.0, None, None, None, None, (), 0, True, logit_bias={256: -100.0})]
    running.submit("mamba", [Write("a", now + 0.4, text, ids=ids, options=options)])
    running.submit("mamba", [Write("a", now + 0.2, wait, ids=ids, options=options)])
    with pytest.raises(TimeoutError):
        wait.wait()
    assert 1 < len(text.wait().tokens[0]) < 4000 and text.at - now < 2


def test_a_job_that_fails_leaves_the_others_alone(engine, loaded):
    running = engine()
    good = write(running, "llama", "fine", 40)
    bad = write(running, "llama", "bad", 40, logit_bias={999: 1.0})
    with pytest.raises(ValueError, match="999"):
        bad.wait()
    assert good.wait().texts == [generate(loaded["llama"], "fine", max_new_tokens=40)]
    called = Answer(1)
    running.submit("llama", [Call("a", time.monotonic() + 9, called, work=lambda: 6 * 7)])
    assert called.wait().value == 42


def test_a_stream_that_waits_gives_signs_of_life(loaded, monkeypatch):
    monkeypatch.setattr("anyformer.serve.inbox.QUIET", 0.02)
    engine = Engine({"llama": loaded["llama"]}, Limits())
    site = Site((engine, served(["llama"], ["llama"], [loaded["llama"]])))
    threading.Timer(0.3, engine.start).start()
    body = {"prompt": "x", "max_tokens": 3, "temperature": 0, "stream": True}
    parts = site("POST", "/v1/completions", json=body).text.split("\n\n")
    engine.stop()
    assert parts[0] == ": waiting" and parts[-2] == "data: [DONE]"
    said = [json.loads(part[6:])["choices"][0]["text"] for part in parts if part.startswith("data: {")]
    assert "".join(said) == generate(loaded["llama"], "x", max_new_tokens=3)
