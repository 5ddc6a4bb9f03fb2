"""What cannot be done is said at once, by name, with what to do."""

import pytest
import torch

import anyformer as af
from anyformer.generate import chat, embed, generate, stream

from .subjects import model, reading


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []], torch.tensor([], dtype=torch.long), torch.zeros(1, 0).long()])
def test_nothing_to_continue(prompts):
    with pytest.raises(ValueError, match="empty"):
        generate(model("llama:"), prompts)


def test_an_empty_text():
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(reading(), "")


@pytest.mark.parametrize("prompts", [[[1, 128]], [-1], torch.tensor([[1, 500]])])
def test_ids_outside_the_vocabulary(prompts):
    with pytest.raises(ValueError, match="outside the vocabulary: ids go from 0 to 127"):
        generate(model("llama:"), prompts, max_new_tokens=1)


@pytest.mark.parametrize(
    "prompts", [[1.5], [[1, "a"]], ["a", [1]], torch.ones(2), torch.ones(2, 2, 2).long(), {"a": 1}, b"ab", 7, None]
)
def test_other_things_than_prompts(prompts):
    with pytest.raises(ValueError, match="prompt"):
        generate(reading() if isinstance(prompts, list) else model("llama:"), prompts, max_new_tokens=1)


def test_text_without_a_tokenizer():
    m = model("llama:")
    for call in (lambda: generate(m, "a"), lambda: stream(m, [1]), lambda: chat(m, [{"role": "user", "content": "a"}])):
        with pytest.raises(ValueError, match=r"need a tokenizer, and this model has none: pass token ids, or"):
            call()
    with pytest.raises(ValueError, match="stop strings"):
        generate(m, [1], stop="a", max_new_tokens=1)
    with pytest.raises(ValueError, match="tokenizer"):
        embed(m, ["a"])


def test_longer_than_the_context_names_both_numbers():
    m = model("gpt:")
    with pytest.raises(ValueError, match=r"the prompt has 65 tokens, and the context of this model is 64"):
        generate(m, [1] * 65, max_new_tokens=1)
    with pytest.raises(
        ValueError, match=r"prompt 1 has 60 tokens; .*grows to 65.*context of this model is 64: give max_new_tokens=4"
    ):
        generate(m, [[1], [1] * 60], max_new_tokens=5)


def test_models_that_do_not_generate():
    for name in ("bert", "vit"):
        with pytest.raises(ValueError, match=f"{name} cannot generate"):
            generate(af.build(name, "tiny"), [1, 2])
    with pytest.raises(ValueError, match="Linear cannot generate"):
        generate(torch.nn.Linear(2, 2), [1, 2])
    with pytest.raises(ValueError, match="bert cannot generate"):
        chat(af.build("bert", "tiny"), [{"role": "user", "content": "a"}])
    vit = af.build("vit", "tiny")
    with pytest.raises(ValueError, match="the model has no processor"):
        embed(vit, ["a"])


def test_broken_weights():
    m = af.build("llama", "tiny", seed=0)
    with torch.no_grad():
        m.blocks[1].ffn.up.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        generate(m, [1, 2], max_new_tokens=3)


def test_streams_say_so_at_the_call():
    m = reading()
    for call in (
        lambda: stream(m, ""),
        lambda: stream(m, "a", temperature=-1.0),
        lambda: stream(m, ["a", "b"]),  # type: ignore[list-item]
        lambda: stream(m, [999]),
    ):
        with pytest.raises(ValueError, match=r"prompt|temperature"):
            call()


@pytest.mark.parametrize("texts", [[], "a", ["a", 1], [""]])
def test_texts_to_embed(texts):
    with pytest.raises(ValueError, match="text"):
        embed(reading(), texts)


@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_batch_to_embed(batch):
    with pytest.raises(ValueError, match="batch must be"):
        embed(reading(), ["a"], batch=batch)
