"""Beginnings of prompts that are read once: the same numbers to the last bit, for the same owner, in bounded memory."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.generate import generate
from anyformer.generate.options import Options
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.serve.batch import Reading
from anyformer.serve.engine import Engine
from anyformer.serve.jobs import Write
from anyformer.serve.limits import Limits
from anyformer.serve.prefixes import Prefixes, copied, unshared
from tests.generate.subjects import each_page, model

CHUNK = 4
LARGE = 10**9


def read(m: Any, ids: list[int], prefixes: Prefixes, owner: str = "a") -> tuple[int, Tensor]:
    """The tokens whose state was known, and the scores (4, V) of the next four tokens."""
    options = [Options(4, 0.0, None, None, None, None, (), None, True)]
    job = Write("a", time.monotonic() + 60, lambda n, e: None, ids=ids, options=options, owner=owner)
    reading = Reading(m, [job], "m", prefixes, CHUNK)
    while not reading.step(CHUNK):
        pass
    assert reading.scores is not None
    found = [reading.scores]
    for _ in range(3):
        able = found[-1].index_fill(1, torch.tensor(sorted(m.placeholders), dtype=torch.long), float("-inf"))
        reading.run.append(able.argmax(-1, keepdim=True))
        found.append(reading.run.scores())
    return reading.found, torch.cat(found)


@pytest.mark.parametrize("name", each_page())
def test_numbers_are_equal_to_the_last_bit(name, monkeypatch):
    m = model(name)
    monkeypatch.setattr(m, "tokenizer", m.tokenizer or Tokenizer.bytes_level())
    if (why := unshared(m)) is not None:
        with pytest.raises(ValueError, match=f"x cannot share.*{why[:20]}"):
            Engine({"x": m}, Limits(prefix=1000))
        return
    draw, tokens = torch.Generator().manual_seed(1), min(m.vocab, 256, *m.placeholders)
    ids = torch.randint(3, tokens, (min(19, (m.context or 99) - 4),), generator=draw).tolist()
    more = [*ids[:10], *torch.randint(3, tokens, (min(8, (m.context or 99) - 14),), generator=draw).tolist()]
    prefixes, none = Prefixes(LARGE), Prefixes(0)
    with torch.inference_mode():
        for prompt in (ids, ids, more, more[:-2], more, ids[:6], ids[:5]):
            found, scores = read(m, prompt, prefixes)
            assert torch.equal(scores, read(m, prompt, none)[1])
            assert found % CHUNK == 0 and found < len(prompt)
        last = (len(ids) - 2) // CHUNK * CHUNK
        assert read(m, ids, prefixes)[0] == last  # all whole chunks of a prompt that was there
        assert read(m, ids, prefixes, owner="b")[0] == 0  # of another owner nothing


def test_a_longer_and_another_end_share_their_beginning(monkeypatch):
    m = model("llama:")
    monkeypatch.setattr(m, "tokenizer", Tokenizer.bytes_level())
    prefixes = Prefixes(LARGE)
    with torch.inference_mode():
        assert read(m, list(range(3, 20)), prefixes)[0] == 0
        assert read(m, list(range(3, 23)), prefixes)[0] == 12
        assert read(m, [*range(3, 12), 5, 5, 5, 5, 5], prefixes)[0] == 8
        assert read(m, [9, *range(3, 20)], prefixes)[0] == 0


def test_memory_is_bounded_and_the_oldest_goes_first():
    m = model("llama:")
    states = []
    for _ in range(3):
        states.append(m.start(1, 8))
        with torch.inference_mode():
            m(torch.tensor([[1, 2, 3, 4]]), state=states[-1])
    size = states[0].bytes()
    prefixes = Prefixes(2 * size + size // 2)
    for i, state in enumerate(states):
        prefixes.keep(m, "m", "a", [i, 2, 3, 4], state)
        assert prefixes.bytes == min(2, i + 1) * size <= prefixes.limit
        if i == 1:
            assert prefixes.find(m, "m", "a", [0, 2, 3, 4, 5, 6], 4, m.start(1, 9)) is not None  # used: it stays longer
    assert prefixes.find(m, "m", "a", [1, 2, 3, 4, 5, 6], 4, m.start(1, 9)) is None
    found = prefixes.find(m, "m", "a", [0, 2, 3, 4, 5, 6], 4, m.start(1, 9))
    assert found is not None and found.length == 4
    prefixes.keep(m, "m", "a", [9, 9, 9, 9], m.start(1, 10_000))
    assert prefixes.bytes <= prefixes.limit
    same = copied(states[0], m)
    assert list(same.slots) == list(states[0].slots) and same.bytes() == size


def test_a_server_shares_by_key_and_counts(process, tmp_path):
    from tests.serve.conftest import TEMPLATE, saved

    keys = tmp_path / "keys"
    keys.write_text("first-key-of-two\nsecond-key-of-two\n")
    folder = saved(tmp_path / "own", "llama", TEMPLATE, context=2048)
    server = process(folder, "--prefix-cache", 50_000_000, "--api-key-file", keys)
    prompt = "a long beginning that many questions share; " * 20
    texts: dict[str, set[str]] = {}
    for key in ("first-key-of-two", "second-key-of-two"):
        client = server.client(key)
        for end in ("one", "two"):
            made = client.completions.create(model="own", prompt=prompt + end, max_tokens=8, temperature=0)
            texts.setdefault(end, set()).add(made.choices[0].text)
        counted = client.with_options(base_url=server.url).get("/metrics", cast_to=str)
        shared = next(line for line in counted.splitlines() if line.startswith("anyformer_prefix_tokens_total{"))
        assert float(shared.split()[-1]) == (768 if key.startswith("first") else 1536)
    m = af.load(folder)
    assert all(len(found) == 1 for found in texts.values())
    assert texts["one"] == {generate(m, prompt + "one", max_new_tokens=8)}
