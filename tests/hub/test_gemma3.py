"""Gemma 3 from a GGUF file: 1 + weight in the norms, the window, rotary settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.hub.tables.weights import links

gguf = pytest.importorskip("gguf", reason="needs pip install 'anyformer[gguf]'")


def written(path: Path) -> Any:
    """A small model, and its GGUF file as llama.cpp's converter would write it."""
    page = af.page("gemma3")
    c = page.at("tiny", depth=7, every=6, theta=1e6, local_theta=1e4, query_scale=256)
    model = redrawn(page.recipe(c).build()).eval()
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.depth)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_feed_forward_length(c.hidden)
    writer.add_context_length(c.context)
    writer.add_vocab_size(c.vocab)
    writer.add_layer_norm_rms_eps(c.eps)
    writer.add_rope_freq_base(c.theta)
    writer.add_sliding_window(c.window)
    state = model.state_dict()
    for link in links(page.module.HUBS[1].weights(c), state):
        if not link.tied:
            for name, tensor in link.write(state).items():
                writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_gguf_file_is_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.hub.text.gguf_tokenizer.tokenizer_from_gguf", lambda metadata, path: None)
    model = written(tmp_path / "gemma.gguf")
    again = af.load(tmp_path / "gemma.gguf")
    assert again.recipe == model.recipe
    ids = torch.randint(128, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    stored = {line.name: line for line in again.ledger.tensors}
    assert stored["blk.0.post_ffw_norm.weight"].detail == "blocks.0.norm.ffn_out.weight"
    assert torch.allclose(again.state_dict()["norm.weight"], model.state_dict()["norm.weight"], atol=1e-6)
