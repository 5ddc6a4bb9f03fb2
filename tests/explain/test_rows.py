"""The attention behind one token: the row of the recorded weights, of every layer."""

from __future__ import annotations

import pytest
import torch

from anyformer.core.taps import Taps
from anyformer.explain.rows import attention_row
from anyformer.hub.text.tokenizer import Tokenizer
from tests.generate.subjects import model


@pytest.mark.parametrize("name", ["llama:", "gpt:", "hybrid:", "gemma3:", "t5:"])
def test_a_row_is_that_of_the_recorded_weights(name, monkeypatch):
    m = model(name)
    monkeypatch.setattr(m, "tokenizer", Tokenizer.bytes_level())
    prompt, answer = [5, 6, 7, 8], [9, 10, 11]
    looked = attention_row(m, prompt, answer, 1)
    before = [m.begin_id] if m.reads_source else prompt
    ids = torch.tensor([[*before, 9]])
    inputs = {"decoder_input_ids": ids, "input_ids": torch.tensor([prompt])} if m.reads_source else {"input_ids": ids}
    paths = [path for path, module in m.named_modules() if type(module).__name__ == "Attention"]
    paths = [path for path in paths if not path.startswith("encoder.")]
    with torch.no_grad(), Taps(m, *(f"{path}.weights" for path in paths)) as taps:
        m(**inputs)
    assert looked.token == len(before) + 1 and looked.query == len(before) and looked.first == len(before)
    assert len(looked.tokens) == len(before) + 3 and len(looked.source) == (4 if m.reads_source else 0)
    expected = [taps[f"{path}.weights"][0, :, -1] for path in paths]
    assert len(looked.rows) == len(expected)
    for row in looked.rows:
        assert any(torch.equal(row.weights, e) for e in expected)
        assert row.weights.shape[1] == (4 if row.cross else len(before) + 1)
        torch.testing.assert_close(row.weights.sum(1), torch.ones(len(row.weights)))
    assert not m._forward_hooks and torch.equal(attention_row(m, prompt, answer).rows[0].weights,
                                                attention_row(m, prompt, answer, 2).rows[0].weights)  # fmt: skip


@pytest.mark.parametrize(("name", "token", "word"), [("mamba:", 0, "no attention"), ("llama:", 3, "no token 3")])
def test_what_cannot_be_shown_is_an_error(name, token, word):
    with pytest.raises(ValueError, match=word):
        attention_row(model(name), [5], [6, 7, 8], token)
