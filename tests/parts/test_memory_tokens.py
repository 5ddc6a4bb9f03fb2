"""Memory tokens in any page by one line: what they are, with padding, in a state, in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.core.flow import Flow
from anyformer.parts import MemoryTokens, SegmentRecurrence, Window

PAGES: dict[str, dict[str, Any]] = {
    "llama": {},
    "bert": {},
    "llama, windows": {"blocks.*.mixer.mask": Window(6)},
    "llama, segments": {"blocks.*.mixer": SegmentRecurrence.of(heads=4, segment=4, memory=5)},
    "mamba": {},
}


def remembering(name: str) -> Any:
    recipe = af.recipe(name.split(",")[0], "tiny").but(PAGES[name])
    recipe = recipe.but({"blocks": [MemoryTokens.of(3, recipe.options["blocks"])]})
    return redrawn(recipe.build()).eval()


def ids(rows: int, time: int) -> Tensor:
    return torch.randint(0, 128, (rows, time))


@pytest.mark.parametrize("name", PAGES)
def test_they_are_tokens_before_the_text(name: str) -> None:
    model, text = remembering(name), ids(2, 9)
    (tokens,) = model.blocks
    entered: list[Tensor] = []
    hook = model.embed.register_forward_hook(lambda module, inputs, output: entered.append(output))
    hidden = model(text).hidden
    hook.remove()
    x = torch.cat((tokens.tokens.expand(2, -1, -1), entered[0]), 1)
    flow = Flow(torch.arange(12), causal=name != "bert")
    for block in tokens.blocks:
        x = block(x, flow)
    expected = x if model.norm is None else model.norm(x)
    torch.testing.assert_close(hidden, expected[:, 3:])


@pytest.mark.parametrize("name", PAGES)
def test_padding_does_not_move_them(name: str) -> None:
    model, text = remembering(name), ids(3, 9)
    keep = torch.ones(3, 9, dtype=torch.bool)
    keep[0, :4] = keep[1, 6:] = False
    logits = model(text, attention_mask=keep).hidden
    for row in range(3):
        torch.testing.assert_close(logits[row, keep[row]], model(text[row, keep[row]][None]).hidden[0])
    assert model(text, attention_mask=torch.zeros_like(keep)).hidden.isfinite().all()


@pytest.mark.parametrize("name", [n for n in PAGES if n != "bert"])
def test_a_state_holds_them_once(name: str) -> None:
    model, text = remembering(name), ids(3, 14)
    keep = torch.ones(3, 14, dtype=torch.bool)
    keep[0, :4] = False
    with torch.no_grad():
        for mask in (None, keep):
            whole, state, at = model(text, attention_mask=mask).logits, model.start(3), 0
            for piece in (5, 1, 4, 1, 3):
                now = None if mask is None else mask[:, at : at + piece]
                found = model(text[:, at : at + piece], attention_mask=now, state=state).logits
                torch.testing.assert_close(found[1:], whole[1:, at : at + piece])
                torch.testing.assert_close(found[0, piece - 1], whole[0, at + piece - 1])
                at += piece
                if at == 6:  # what is taken back, the memory tokens not counted, and rows that change places
                    state.mark()
                    model(ids(3, 4), state=state)
                    state.trim(6)
                    state.reorder(torch.tensor([0, 2, 1]))
                    text, keep, whole = (t[[0, 2, 1]] for t in (text, keep, whole))
                    mask = None if mask is None else keep
        late = torch.ones(3, 2, dtype=torch.bool)
        late[0] = False
        state = model.start(3)
        model(text[:, :2], attention_mask=late, state=state)
        with pytest.raises(ValueError, match="give every row a token of its text in the first call"):
            model(text[:, :2], attention_mask=torch.tensor([[0, 1]] * 3).bool() | late, state=state)


def test_they_learn_and_generate_and_are_written_down() -> None:
    model = remembering("llama")
    model(ids(2, 6)).logits.square().mean().backward()
    assert bool(model.blocks[0].tokens.grad.ne(0).all())
    prompt = [[1, 2, 3], [4, 5]]
    assert model.generate(prompt, max_new_tokens=5) == model.generate(prompt, max_new_tokens=5, cache=False)
    again = af.Recipe.from_json(model.recipe.to_json())
    assert again == model.recipe and "blocks.0.blocks.1.mixer.q.weight" in again.build().state_dict()
    with pytest.raises(ValueError, match="cannot keep packed documents apart"):
        model(ids(1, 4), document_ids=torch.tensor([[0, 0, 1, 1]]))
    with pytest.raises(ValueError, match="tokens must be at least 1; got 0"):
        MemoryTokens.of(0, []).build(4)


def test_the_source_of_an_encoder_decoder_may_have_them() -> None:
    recipe = af.recipe("t5", "tiny")
    stack = recipe.options["encoder"].options["blocks"]
    model = redrawn(recipe.but({"encoder.blocks": [MemoryTokens.of(2, stack)]}).build()).eval()
    source, target = ids(2, 7), ids(2, 3)
    keep = torch.ones(2, 7, dtype=torch.bool)
    keep[1, 4:] = False
    with torch.no_grad():
        both = model(input_ids=source, attention_mask=keep, decoder_input_ids=target).logits
        alone = model(input_ids=source[1:, :4], decoder_input_ids=target[1:]).logits
    torch.testing.assert_close(both[1:], alone)
