"""The common names of tensors and settings in files of BERT and its descendants, for their pages."""

from __future__ import annotations

from typing import Any

from anyformer.hub.tables.config import ACTS, CLASSES, Lens, key, keys, must
from anyformer.hub.tables.weights import row, under

ATTENTION = [row("query", "q"), row("key", "k"), row("value", "v")]
EMBEDDINGS = [
    row("word_embeddings", "tokens"),
    row("position_embeddings", "positions"),
    row("token_type_embeddings", "types"),
    row("LayerNorm", "norm"),
]


def layer_rows(*inner: Any) -> list[Any]:
    """Rows of a layer; `inner` are more of its attention."""
    return [
        under("attention.self", "mixer", *ATTENTION, *inner),
        row("attention.output.dense", "mixer.o"),
        row("attention.output.LayerNorm", "norm.mixer"),
        row("intermediate.dense", "ffn.up"),
        row("output.dense", "ffn.down"),
        row("output.LayerNorm", "norm.ffn"),
    ]


def bert_rows(name: str, *inner: Any) -> list[Any]:
    """Rows of the front-end and the layers below the prefix `name`; `inner` are more of a layer's attention."""
    return [
        under(f"{name}.embeddings", "embed", *EMBEDDINGS),
        under(f"{name}.encoder.layer.{{i}}", "blocks.{i}", *layer_rows(*inner)),
    ]


def prediction_rows(mlm: str) -> list[Any]:
    """Rows of BERT's pre-training heads; `mlm` is the path of the masked one."""
    return [
        under("cls.predictions.transform", mlm, row("dense", "dense"), row("LayerNorm", "norm")),
        row("cls.predictions.bias", f"{mlm}.bias"),
        row("cls.predictions.decoder.bias", (), tied=f"{mlm}.bias"),
        row("cls.predictions.decoder.weight", f"{mlm}.proj.weight", tied="embed.tokens.weight"),
        row("cls.seq_relationship", "heads.nsp.proj"),
    ]


def lm_head_rows(mlm: str) -> list[Any]:
    """Rows of RoBERTa's head for masked tokens; `mlm` is its path."""
    return [
        under("lm_head", mlm, row("dense", "dense"), row("layer_norm", "norm"), row("bias", "bias")),
        row("lm_head.decoder.weight", f"{mlm}.proj.weight", tied="embed.tokens.weight"),
    ]


def encoder_config(dropout: float) -> tuple[Lens, ...]:
    """Entries for the hyperparameters of encoders of texts and of images; `dropout` is the default."""
    return (
        *keys(hidden_size="dim", num_hidden_layers="depth", num_attention_heads="heads", intermediate_size="hidden"),
        key("hidden_act", "act", ACTS),
        key("layer_norm_eps", "eps", default=1e-12),
        key("hidden_dropout_prob", "dropout", default=dropout),
        key("attention_probs_dropout_prob", "attention_dropout", default=dropout),
        CLASSES,
    )


def text_config() -> tuple[Lens, ...]:
    """Entries for the hyperparameters of encoders of texts."""
    return (
        *encoder_config(dropout=0.1),
        *keys(vocab_size="vocab", type_vocab_size="types"),
        must("tie_word_embeddings", True),
    )


def bert_config() -> tuple[Lens, ...]:
    """Entries for the hyperparameters of BERT: positions from 0, and a separate dropout before the classes."""
    return (
        *text_config(),
        key("max_position_embeddings", "context"),
        key("classifier_dropout", "classifier_dropout", default=None),
        must("is_decoder", False),
        must("add_cross_attention", False),
        must("position_embedding_type", "absolute"),
    )
