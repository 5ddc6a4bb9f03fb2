"""Every key of transformers' generation config is honoured, or in the ledger with a reason, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.generation import logits_process as processors

from anyformer.generate.rules import Rules
from anyformer.hub.generation import OFF, RULES, account, unmet
from tests.generate.subjects import model

KEYS = sorted({**vars(transformers.GenerationConfig()), **transformers.GenerationConfig().to_dict()})


@pytest.mark.parametrize("key", KEYS)
def test_a_key_has_a_line(key):
    default = vars(transformers.GenerationConfig()).get(key)
    for value in (default, None):
        lines = account("generation_config.json", {key: value})
        assert [line.key for line in lines] == [key] and lines[0].status in ("used", "ignored") and lines[0].detail
    if key in OFF:  # a value that asks for something is refused, and the option that overrides it is named
        (line,) = account("generation_config.json", {key: 7})
        assert line.status == "refused" and "ignore" in line.detail and unmet({key: 7})


def test_an_unknown_key_is_refused():
    with pytest.raises(ValueError, match=r"'top_kk' is unknown .did you mean top_k"):
        account("generation_config.json", {"top_kk": 3})


RULE: dict[str, tuple[Any, Any]] = {
    "bad_words_ids": ([[5], [6, 7]], lambda v: processors.NoBadWordsLogitsProcessor(v, [2])),
    "suppress_tokens": ([4, 9], lambda v: processors.SuppressTokensLogitsProcessor(v, device="cpu")),
    "begin_suppress_tokens": ([4, 9], lambda v: processors.SuppressTokensAtBeginLogitsProcessor(v, 4, device="cpu")),
    "no_repeat_ngram_size": (2, lambda v: processors.NoRepeatNGramLogitsProcessor(v)),
    "min_length": (6, lambda v: processors.MinLengthLogitsProcessor(v, [2], device="cpu")),
    "min_new_tokens": (3, lambda v: processors.MinNewTokensLengthLogitsProcessor(4, v, [2], device="cpu")),
    "forced_bos_token_id": (8, lambda v: processors.ForcedBOSTokenLogitsProcessor(v)),
    "forced_eos_token_id": (8, lambda v: processors.ForcedEOSTokenLogitsProcessor(10, v, device="cpu")),
}


@pytest.mark.parametrize("key", RULE)
def test_a_rule_is_that_of_transformers(key, monkeypatch):
    """The same scores for texts of four tokens and on, of which the first four are the prompt, and ten at most."""
    value, make = RULE[key]
    m = model("t5:" if key == "forced_bos_token_id" else "llama:")
    monkeypatch.setattr(m, "origin", {"generation": {key: value, "eos_token_id": 2}})
    rules, theirs, draw = Rules(m, {2}, 6), make(value), torch.Generator().manual_seed(0)
    changed = False
    for length in (1,) if key == "forced_bos_token_id" else range(4, 10):
        rows = torch.randint(3, 12, (6, length), generator=draw)
        scores = torch.randn(6, m.vocab, generator=draw)
        ours = rules.apply(scores, rows.tolist(), length - (1 if length == 1 else 4))
        expected = theirs(rows, scores.clone())
        torch.testing.assert_close(ours, expected)
        changed = changed or not torch.equal(ours, scores)
    assert changed and key in RULES
