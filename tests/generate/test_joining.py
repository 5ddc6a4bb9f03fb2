"""Rows that join a batch while others are decoded, and leave it: every page that generates."""

import pytest
import torch

from anyformer.generate import generate
from anyformer.generate.decoding import Rows

from .subjects import each_page, model
from .test_generate import rows

NEW = 9


def start(m, prompt: list[int], chunk: int) -> tuple[Rows, int]:
    """A batch of one row that has read its prompt, and its first new token."""
    run = Rows(m, [prompt], NEW, True)
    while run.unread:
        run.read(chunk)
    token = likeliest(m, run)
    run.append(token[:, None])
    return run, int(token)


def likeliest(m, run: Rows) -> torch.Tensor:
    """The next token of each row; placeholders of media are never written."""
    scores = run.scores().clone()
    scores[:, [n for n in m.placeholders if n < scores.shape[1]]] = -torch.inf
    return scores.argmax(-1)


@pytest.mark.parametrize("name", each_page())
def test_a_row_that_joins_gets_what_it_gets_alone(name):
    m = model(name)
    prompts = [rows(m)[place] for place in (0, 1, 2)]
    alone = [generate(m, prompt, max_new_tokens=NEW) for prompt in prompts]
    run, first = start(m, prompts[0], 2)
    assert run.state is not None
    if not run.state.joins:
        assert {type(s).__name__ for s in run.state.slots.values() if not s.joins} <= {
            "Memory", "Tail", "MediaKeys", "Seen",
        }  # fmt: skip
        pytest.skip("its rows cannot join: left out: counted for all rows at once")
    texts, places = {0: [first]}, [0]
    longest = []
    for step in range(3 * NEW):
        if step in (2, 4):  # a longer and a shorter prompt join
            other, first = start(m, prompts[step // 2], 3)
            run.join(other)
            texts[step // 2], places = [first], [*places, step // 2]
        if not places:
            break
        tokens = likeliest(m, run)
        run.append(tokens[:, None])
        for row, token in zip(places, tokens.tolist(), strict=True):
            texts[row].append(token)
        left = [i for i, row in enumerate(places) if len(texts[row]) < NEW]
        if left != list(range(len(places))) and left:
            run.leave(left)
        places = [places[i] for i in left]
        longest.append(run.state.length)
    assert [texts[row] for row in range(3)] == alone
    assert run.state.memory is None or run.state.memory.stream.shape[1] == len(prompts[2])
    assert longest[-1] <= len(prompts[2]) + NEW  # the padding in front of a short text has gone
