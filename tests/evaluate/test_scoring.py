"""Log-probabilities of every page against one pass for each text; windows against one pass for each token."""

from __future__ import annotations

import math
import string
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.data import vocabulary
from anyformer.evaluate.answering import perplexity
from anyformer.evaluate.items import Item
from anyformer.evaluate.scoring import score, windows
from anyformer.evaluate.shots import Form
from anyformer.generate.prompts import Prompts
from anyformer.hub.text.tokenizer import Tokenizer
from tests.generate.subjects import each_page, model

torch.set_num_threads(1)
LETTERS = vocabulary.make(["abcdefgh ."], "chars", 1 << 10)


def logs(found: Any, ids: list[int], first: int, inputs: dict[str, Any] | None = None, prefix: str = "") -> np.ndarray:
    """log p of ids[first:], by one pass over the whole text."""
    with torch.no_grad():
        scores = found(**(inputs or {}), **{f"{prefix}input_ids": torch.tensor([ids[:-1]])}).logits[0].double()
    scores = scores.log_softmax(-1)
    return np.array([float(scores[i - 1, ids[i]]) for i in range(first, len(ids))])


@pytest.mark.parametrize("name", each_page())
def test_endings_have_the_log_probabilities_of_a_pass_of_their_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = model(name)
    if not one.reads_text:
        pytest.skip("it reads no text")
    monkeypatch.setattr(one, "tokenizer", LETTERS)  # other tests have the same model
    endings = [" cab", " fed.", " abc", " a"]
    expected = []
    for ending in endings:
        if one.reads_source:
            source = Prompts(one, "bad cafe").rows
            ids = [one.begin_id, *LETTERS.encode(ending.strip())]
            expected.append(logs(one, ids, 1, {"input_ids": torch.tensor(source)}, one.target))
        else:
            expected.append(logs(one, LETTERS.encode("bad cafe" + ending), 8))
    if any((values < -1000).any() for values in expected):
        with pytest.raises(ValueError, match="row 1: the model rules out a token"):
            score(one, "bad cafe", endings, "row 1")
        return
    for values, right in zip(score(one, "bad cafe", endings, "row 1"), expected, strict=True):
        assert values == pytest.approx(right, abs=2e-4, rel=1e-5)


@pytest.fixture(scope="module")
def decoder() -> Any:
    made = af.build("llama", "tiny", vocab=300, context=48, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3, generator=draw)
    text = [string.printable, "the cat sat on the mat and the dog ran " * 5]
    made.tokenizer = Tokenizer.train_bpe(text, 300, ["<s>"])
    made.tokenizer.roles["bos_token"] = "<s>"
    return made.eval()


def test_spaces_before_an_ending_belong_to_it(decoder: Any) -> None:
    assert score(decoder, "the cat ", ["sat"], "")[0] == pytest.approx(score(decoder, "the cat", [" sat"], "")[0])


def test_without_a_text_in_front_the_token_that_begins_texts_is(decoder: Any) -> None:
    ids = [decoder.tokenizer.bos_id, *decoder.tokenizer.encode("the mat", special=False)]
    assert score(decoder, "", ["the mat"], "")[0] == pytest.approx(logs(decoder, ids, 1), abs=1e-5)


def test_a_masked_encoder_hides_each_token_alone() -> None:
    one = af.build("bert", "tiny", vocab=300, seed=0).eval()
    one.tokenizer = Tokenizer.train_bpe(["the cat sat on the mat " * 9], 300, ["[CLS]", "[SEP]", "[MASK]"])
    one.tokenizer.roles |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    t = one.tokenizer
    cls, sep, mask = (t.role_id(f"{name}_token") for name in ("cls", "sep", "mask"))
    for context in ("the cat", ""):
        ids = [cls, *t.encode(context + " sat on", special=False), sep]
        first = 1 + len(t.encode(context, special=False))
        expected = []
        for place in range(first, len(ids) - 1):
            row = [mask if i == place else v for i, v in enumerate(ids)]
            with torch.no_grad():
                scores = one(input_ids=torch.tensor([row])).heads["mlm"][0, place].log_softmax(-1)
            expected.append(float(scores[ids[place]]))
        assert score(one, context, [" sat on"], "")[0] == pytest.approx(expected, abs=1e-5)


def test_windows_count_each_token_once_behind_what_the_stride_leaves(decoder: Any) -> None:
    text = "the cat sat on the mat and the dog ran. " * 4
    ids = [decoder.tokenizer.bos_id, *decoder.tokenizer.encode(text, special=False)]
    for window, stride in ((16, 8), (16, 16), (20, 3)):
        expected, start = [], 0
        for i in range(1, len(ids)):
            while i > start + window:
                start += stride
            expected.append(float(logs(decoder, ids[start : i + 1], i - start)[0]))
        found = windows(decoder, text, window, stride, "")
        assert sum(n for _, n in found) == len(ids) - 1
        assert sum(nats for nats, _ in found) == pytest.approx(-sum(expected), rel=1e-5)


def test_perplexities_follow_from_nats_tokens_and_bytes(decoder: Any) -> None:
    texts = ["the cat sat on the mat é", "and the dog ran"]
    items = [Item(str(i), text) for i, text in enumerate(texts)]
    nats = tokens = size = 0.0
    for text in texts:
        ids = [decoder.tokenizer.bos_id, *decoder.tokenizer.encode(text, special=False)]
        nats, tokens, size = nats - logs(decoder, ids, 1).sum(), tokens + len(ids) - 1, size + len(text.encode())
    made = {k: m.estimate().value for k, m in perplexity(decoder, items, Form(), None, None).metrics.items()}
    expected = {"token_perplexity": math.exp(nats / tokens), "byte_perplexity": math.exp(nats / size),
                "bits_per_byte": nats / size / math.log(2)}  # fmt: skip
    assert made == pytest.approx(expected, rel=1e-5)


def test_what_is_too_long_is_named_and_never_cut(decoder: Any) -> None:
    with pytest.raises(ValueError, match=r"q.jsonl, row 7: the prompt with its answer has \d+ tokens.* is 48; nothing"):
        score(decoder, "the cat " * 60, [" sat"], "q.jsonl, row 7")


def test_a_model_without_probabilities_of_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="gives texts no probabilities"):
        score(af.build("vit", "tiny"), "a", ["b"], "")
    with pytest.raises(ValueError, match="gives texts no probabilities"):
        score(af.build("bert", "tiny", task="none"), "a", ["b"], "")


def test_broken_weights_are_said(decoder: Any) -> None:
    import copy

    broken = copy.deepcopy(decoder)
    with torch.no_grad():
        broken.head.proj.weight[0] = math.nan
    with pytest.raises(ValueError, match="row 1: a log-probability is not finite"):
        score(broken, "the", [" cat"], "row 1")
