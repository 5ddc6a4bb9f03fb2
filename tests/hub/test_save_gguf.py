"""GGUF files that we write: equal to the reference's bytes, read back as the same model, opened by llama.cpp."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import gguf as reference
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Reference

import anyformer as af
from anyformer.cli import main
from anyformer.hub import load, save_gguf
from anyformer.hub.formats.gguf import GGUF
from anyformer.hub.formats.gguf_writer import packed, write_gguf
from anyformer.hub.text.gguf_tokenizer import tokenizer_from_gguf
from anyformer.hub.text.gguf_vocabulary import metadata_of
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.parts.positions import Dynamic, Linear, YaRN
from tests.hub import texts

torch.set_num_threads(1)
TEXTS = ["the cat and the other cat 12345 — naïve 東京 🙂 don't  stop", "a b c d e f " * 9]


def built(page: str, seed: int = 0, **changes: Any) -> Any:
    """A model whose every weight was drawn."""
    model = af.build(page, "tiny", **changes, seed=0)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3, generator=draw)
    return model.eval()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_bytes_are_those_of_the_reference(kind):
    draw = np.random.default_rng(0)
    values = draw.standard_normal((7, 96)).astype(np.float32) * 10.0 ** draw.integers(-5, 4, (7, 1)).astype(np.float32)
    values[0, :32], values[1, :64] = 0, 2.5
    values[2, :32] = np.arange(32) * 0.5 - 8  # halves, which are rounded away from 0
    assert packed("w", torch.from_numpy(values), kind) == reference.quantize(values, Reference[kind]).tobytes()


@pytest.mark.parametrize(
    ("page", "changes"),
    [
        ("llama", {}), ("llama", {"tied": True}), ("llama", {"dim": 64, "head_dim": 12, "heads": 4, "kv_heads": 1}),
        ("llama", {"scaling": Linear(4.0)}), ("llama", {"scaling": YaRN(4.0, 16)}),
        ("qwen2", {}), ("qwen2", {"tied": True}), ("gemma3", {"local_theta": 1e4, "every": 6, "query_scale": 256}),
    ],
)  # fmt: skip
def test_a_model_is_read_back_as_it_was(tmp_path, page, changes):
    model = built(page, **changes, vocab=320)
    model.tokenizer = Tokenizer.train_bpe(TEXTS, 280)
    model.tokenizer.template = "{{ messages[0].content }}"
    save_gguf(model, tmp_path / "x.gguf", "float32")
    back = load(tmp_path / "x.gguf")
    assert back.recipe == model.recipe
    for name, tensor in model.state_dict().items():  # a norm of Gemma is stored with 1 added
        torch.testing.assert_close(back.state_dict()[name], tensor, atol=2e-7, rtol=0)
    for text in TEXTS:
        assert back.tokenizer.encode(text) == model.tokenizer.encode(text)
        assert back.tokenizer.decode(model.tokenizer.encode(text)) == text
    assert back.tokenizer.template == model.tokenizer.template and back.tokenizer.eos_ids == model.tokenizer.eos_ids
    with pytest.raises(FileExistsError, match="overwrite"):
        save_gguf(model, tmp_path / "x.gguf")


@pytest.mark.parametrize(("kind", "error"), [("float16", 5e-4), ("bfloat16", 4e-3), ("q8_0", 5e-3), ("q4_0", 0.13)])
def test_numbers_of_each_format_are_near(tmp_path, kind, error):
    model = built("llama", dim=64, hidden=64, vocab=300)
    save_gguf(model, tmp_path / "x.gguf", kind)
    stored, back = GGUF(tmp_path / "x.gguf"), load(tmp_path / "x.gguf")
    for name, tensor in model.state_dict().items():
        worst = (back.state_dict()[name] - tensor).abs().max() / tensor.abs().max()
        assert worst <= (error if tensor.ndim > 1 else 0), name
    assert stored.metadata["general.architecture"] == "llama" and back.tokenizer is None


def test_a_file_of_ours_is_read_by_the_reference(tmp_path):
    model = built("llama", dim=64, hidden=64, vocab=300)
    model.tokenizer = Tokenizer.train_bpe(TEXTS, 280)
    save_gguf(model, tmp_path / "x.gguf", "q8_0")
    read = reference.GGUFReader(tmp_path / "x.gguf")
    assert {t.name for t in read.tensors} >= {"token_embd.weight", "blk.1.ffn_down.weight", "output_norm.weight"}
    tokens = read.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 300 and tokens[-1] == "[PAD299]" and read.fields["llama.vocab_size"].contents() == 300
    assert read.fields["llama.rope.dimension_count"].contents() == 16


@pytest.mark.parametrize("space", [True, False])
def test_sentencepiece_is_written_with_scores_that_give_the_same_merges(tmp_path, space):
    metadata, _ = texts.sentencepiece(tmp_path / "x.gguf")
    tokenizer = tokenizer_from_gguf({**metadata, "tokenizer.ggml.add_space_prefix": space})
    assert tokenizer is not None
    made = metadata_of(tokenizer, tokenizer.vocab_size)
    back = tokenizer_from_gguf(made)
    assert back is not None and json.loads(back.core.to_str())["model"] == json.loads(tokenizer.core.to_str())["model"]
    assert made["tokenizer.ggml.token_type"].tolist() == metadata["tokenizer.ggml.token_type"].tolist()
    for text in texts.TEXTS:
        assert back.encode(text) == tokenizer.encode(text), text


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "dbrx"])
def test_the_rules_for_words_are_found_again(tmp_path, pre):
    tokenizer = tokenizer_from_gguf(texts.byte_level(tmp_path / "x.gguf", pre))
    assert tokenizer is not None
    made = tokenizer_from_gguf(metadata_of(tokenizer, tokenizer.vocab_size + 3))
    assert made is not None
    for text in texts.TEXTS:
        assert made.encode(text) == tokenizer.encode(text), text


@pytest.mark.parametrize(
    ("page", "changes", "words"),
    [
        ("bert", {}, "bert has no map to GGUF.*gemma3, llama, qwen2"), ("llama", {"window": 7}, "window=7"),
        ("llama", {"bias": True, "ffn_bias": True}, "bias=True"), ("llama", {"act": "gelu_tanh"}, "act='gelu_tanh'"),
        ("llama", {"scaling": Dynamic(2.0, 64)}, "scaling="), ("llama", {"task": "none"}, "task"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_hold_is_refused_by_name(tmp_path, page, changes, words):
    with pytest.raises(ValueError, match=words):
        save_gguf(built(page, **changes), tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_other_refusals(tmp_path):
    model = built("llama", vocab=300)
    with pytest.raises(ValueError, match=r"whole blocks of 32.*float16"):
        save_gguf(built("llama", dim=48, heads=4, kv_heads=2), tmp_path / "x.gguf", "q8_0")
    with pytest.raises(ValueError, match=r"ends in \.gguf"):
        save_gguf(model, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="kind must be"):
        save_gguf(model, tmp_path / "x.gguf", "q2_k")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only 100 rows"):
        metadata_of(Tokenizer.train_bpe(TEXTS, 280), 100)
    with torch.no_grad():
        model.blocks[0].mixer.q.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"blk\.0\.attn_q\.weight.*choose float32"):
        save_gguf(model, tmp_path / "x.gguf")
    words = Tokenizer.train_bpe(TEXTS, 280)
    from tokenizers import pre_tokenizers

    words.core.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="no GGUF name stands for"):
        metadata_of(words, 300)
    with pytest.raises(ValueError, match="a GGUF file cannot hold set"):
        write_gguf(tmp_path / "x.gguf", {"a": {1}}, {})
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_file(tmp_path, capsys):
    model = built("llama", dim=64, hidden=64, vocab=300)
    model.tokenizer = Tokenizer.train_bpe(TEXTS, 280)
    model.save(tmp_path / "folder")
    assert main(["convert", str(tmp_path / "folder"), str(tmp_path / "x.gguf"), "--to", "gguf", "--dtype", "q8_0"]) == 0
    assert "llama.cpp" in capsys.readouterr().out
    assert load(tmp_path / "x.gguf").recipe == model.recipe
    assert main(["convert", str(tmp_path / "folder"), str(tmp_path / "y"), "--dtype", "q8_0"]) != 0
    assert "--to gguf" in capsys.readouterr().err


LLAMA = """
import sys, json, numpy, torch, llama_cpp
path, ids = sys.argv[1], json.loads(sys.argv[2])
model = llama_cpp.Llama(path, n_ctx=512, n_batch=512, logits_all=True, verbose=False, n_threads=1)
assert model.tokenize(json.loads(sys.argv[3]).encode(), add_bos=False, special=True)[: len(ids)] == ids
model.eval(ids)
logs = torch.from_numpy(numpy.array(model.scores[: len(ids)])).float().log_softmax(-1)
print(-logs[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean().item())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float32", "float16", "q8_0", "q4_0"])
def test_llama_cpp_gives_real_text_the_same_perplexity(tmp_path, kind):
    """SmolLM2 on 256 tokens of Python's own help, and the same tokens for it.

    Beside weights in blocks llama.cpp rounds activations to 8 bits, too; written again as float32, the same weights
    give it the same perplexity.
    """
    from pydoc_data.topics import topics

    from anyformer.data.models import find

    where = os.environ.get("ANYFORMER_LLAMACPP", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([where, *filter(None, sys.path)])}
    if subprocess.run([sys.executable, "-c", "import llama_cpp"], env=environment, capture_output=True).returncode:
        pytest.skip("llama.cpp: left out: llama-cpp-python is not installed ($ANYFORMER_LLAMACPP names its folder)")
    path, text = tmp_path / "x.gguf", topics["assignment"]
    save_gguf(load(find("smollm2")), path, kind)  # type: ignore[arg-type]
    model = load(path)
    ids = model.tokenizer.encode(text)[:256]
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    ours = -logs[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean().item()

    def ratio() -> float:
        """Their perplexity over ours."""
        command = [sys.executable, "-c", LLAMA, str(path), str(ids), json.dumps(text)]
        made = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr[-2000:]
        return float(np.exp(float(made.stdout.split()[-1]) - ours))

    found = ratio()
    print(f"{kind}: perplexity {np.exp(ours):.3f}, in llama.cpp {found - 1:+.2%}")
    if "_" in kind:
        assert abs(found - 1) < 0.03
        save_gguf(model, path, "float32", overwrite=True)
        found = ratio()
    assert abs(found - 1) < 0.001
