"""Encoders for long texts: configs as they were published, and texts far beyond what the contract draws."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.contract.oracle import Oracle, meet
from anyformer.contract.probe import close, draw
from anyformer.contract.subjects import Subject, hubs
from anyformer.hub.formats.safetensors import open_weights
from anyformer.hub.tables import config as tables
from anyformer.hub.text.tokenizer import Tokenizer

MODERNBERT = {  # answerdotai/ModernBERT-base, 2024: the keys of its day
    "architectures": ["ModernBertForMaskedLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 50281, "classifier_activation": "gelu", "classifier_bias": False, "classifier_dropout": 0.0,
    "classifier_pooling": "mean", "cls_token_id": 50281, "decoder_bias": True, "deterministic_flash_attn": False,
    "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
    "gradient_checkpointing": False, "hidden_activation": "gelu", "hidden_size": 768,
    "initializer_cutoff_factor": 2.0, "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05,
    "local_attention": 128, "local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": False,
    "mlp_dropout": 0.0, "model_type": "modernbert", "norm_bias": False, "norm_eps": 1e-05, "num_attention_heads": 12,
    "num_hidden_layers": 22, "pad_token_id": 50283, "position_embedding_type": "absolute", "sep_token_id": 50282,
    "tie_word_embeddings": True, "torch_dtype": "float32", "transformers_version": "4.47.0.dev0", "vocab_size": 50368,
}  # fmt: skip


def read(page: str, config: dict[str, Any]) -> Any:
    """The hyperparameters that a config file means."""
    hub = af.page(page).module.HUBS[0]
    fixed = hub.architectures[config["architectures"][0]]
    return tables.read(hub.config, config, af.page(page).config, fixed)[0]


def side(page: str, **changes: Any) -> tuple[Subject, Oracle]:
    """A page at `tiny` with changes, and the same in transformers, loaded from one folder."""
    config = af.page(page).at("tiny", **changes)
    subject = Subject(f"{page}/{changes}", af.page(page).recipe(config), page, config)
    return subject, meet(subject, hubs(subject)[0])


def same_as_theirs(page: str, length: int, **changes: Any) -> dict[str, Tensor]:
    """Compares all outputs for one padded batch of that length with those of transformers, and returns them."""
    subject, oracle = side(page, **changes)
    batch = draw(subject, random.Random(1), [length, length // 2], "right")
    with torch.no_grad():
        theirs, ours = oracle.run(batch), {"logits": oracle.ours(**batch.inputs).logits}
    (name,) = (n for n in theirs if n.startswith("heads."))
    for i in range(2):
        close(batch.real("hidden", ours["logits"], i), batch.real("hidden", theirs[name], i), f"{page}, row {i}")
    return ours


def test_modernbert_as_published() -> None:
    assert read("modernbert", MODERNBERT) == af.page("modernbert").at("base", pool="mean")
    new = {k: v for k, v in MODERNBERT.items() if not k.startswith("global_") and k != "local_rope_theta"}
    kinds = ["sliding_attention" if i % 3 else "full_attention" for i in range(22)]
    rope = {"full_attention": {"rope_theta": 160000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}  # fmt: skip
    assert read("modernbert", {**new, "layer_types": kinds, "rope_parameters": rope}) == read("modernbert", MODERNBERT)


def test_modernbert_refuses_what_its_page_cannot_do() -> None:
    kinds = ["sliding_attention"] * 21 + ["full_attention"]
    with pytest.raises(ValueError, match="layer_types"):
        read("modernbert", {**MODERNBERT, "layer_types": kinds})
    with pytest.raises(ValueError, match="scales 'full_attention'"):
        read("modernbert", {**MODERNBERT, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    far = {"full_attention": {"rope_theta": 1.0, "rope_type": "linear", "factor": 2.0}}
    with pytest.raises(ValueError, match="scales 'full_attention'"):
        read("modernbert", {**MODERNBERT, "rope_parameters": far})


def test_modernbert_in_long_texts() -> None:
    same_as_theirs("modernbert", 700, context=700, window=16)  # so long that windows are worked in chunks


def test_the_tokenizer_says_what_padding_is(tmp_path: Path) -> None:
    model = af.build("modernbert", "tiny", vocab=300)
    model.save(tmp_path / "without")
    assert af.load(tmp_path / "without").origin["config"]["pad_token_id"] is None
    model.tokenizer = Tokenizer.bytes_level()
    model.save(tmp_path / "with")
    ids = model.tokenizer.ids()
    assert {k: af.load(tmp_path / "with").origin["config"][k] for k in ids} == ids and ids["pad_token_id"] is not None


LONGFORMER = {  # allenai/longformer-base-4096, 2020
    "attention_mode": "longformer", "attention_probs_dropout_prob": 0.1, "attention_window": [512] * 12,
    "bos_token_id": 0, "eos_token_id": 2, "gradient_checkpointing": False, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "ignore_attention_mask": False, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 4098, "model_type": "longformer",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "sep_token_id": 2, "type_vocab_size": 1,
    "vocab_size": 50265, "architectures": ["LongformerModel"],
}  # fmt: skip


def test_longformer_as_published() -> None:
    found = read("longformer", LONGFORMER)
    assert found == af.page("longformer").at("base", dropout=0.1, attention_dropout=0.1)
    assert read("longformer", {**LONGFORMER, "attention_window": [32, 64] * 6}).window == (32, 64) * 6
    assert read("longformer", {**LONGFORMER, "attention_dilation": [1] * 12}) == found
    with pytest.raises(ValueError, match="attention_dilation"):
        read("longformer", {**LONGFORMER, "attention_dilation": [1] * 11 + [2]})


@pytest.mark.parametrize("window", [6, (64, 16)])
def test_longformer_in_long_texts(window: Any) -> None:
    same_as_theirs("longformer", 700, places=702, window=window)  # so long that windows are worked in chunks


def test_longformer_as_a_user_calls_it() -> None:
    """Neither places nor global tokens are given: for classes the first token is global, on both sides."""
    ids = torch.randint(3, 128, (2, 13), generator=torch.Generator().manual_seed(0))  # 1 is padding, by its id
    for task in ("masked", "classify"):
        _, oracle = side("longformer", task=task, window=4)
        with torch.no_grad():
            close(oracle.ours(ids).logits, oracle.theirs(ids).logits, task)
            first = torch.zeros_like(ids).index_fill(1, torch.tensor([0]), 1)
            named = oracle.ours(ids, global_attention_mask=first).logits
        assert torch.equal(named, oracle.ours(ids).logits) == (task == "classify")


BIGBIRD = {  # google/bigbird-roberta-base, 2021
    "architectures": ["BigBirdForPreTraining"], "attention_probs_dropout_prob": 0.1, "attention_type": "block_sparse",
    "block_size": 64, "bos_token_id": 1, "eos_token_id": 2, "gradient_checkpointing": False, "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 4096, "model_type": "big_bird", "num_attention_heads": 12,
    "num_hidden_layers": 12, "num_random_blocks": 3, "pad_token_id": 0, "position_embedding_type": "absolute",
    "rescale_embeddings": False, "sep_token_id": 66, "transformers_version": "4.6.0.dev0", "type_vocab_size": 2,
    "use_bias": True, "use_cache": True, "vocab_size": 50358,
}  # fmt: skip


def test_bigbird_as_published() -> None:
    expected = af.page("bigbird").at("base", task="pretraining", dropout=0.1, attention_dropout=0.1)
    assert read("bigbird", BIGBIRD) == expected


def test_bigbird_in_training_on_a_text_of_1024_tokens() -> None:
    """The random blocks of each layer and head are theirs, also where they are drawn in the older way."""
    _, oracle = side("bigbird", task="masked", context=2048, block=64, random=3, depth=3)
    ids = torch.randint(128, (1, 1024), generator=torch.Generator().manual_seed(0))
    evaluated = oracle.ours(ids).logits
    close(evaluated, oracle.theirs(ids).logits, "evaluation")
    trained = oracle.ours.train()(ids).logits
    close(trained, oracle.theirs.train()(ids).logits, "training")
    assert not torch.allclose(evaluated, trained, atol=1e-3), "no blocks were drawn"


def test_the_pooler_that_nobody_reads_comes_back(tmp_path: Path) -> None:
    _, oracle = side("bigbird", task="masked")
    oracle.ours.save(tmp_path)
    theirs, again = (open_weights(folder) for folder in (oracle.folder, tmp_path))
    assert torch.equal(theirs.get("bert.pooler.weight"), again.get("bert.pooler.weight"))
    assert "heads.mlm.first.weight" not in dict(oracle.ours.named_parameters()), "it would be trained"
