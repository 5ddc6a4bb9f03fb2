"""The common names of tensors and settings in files of encoder-decoders from fairseq and Marian, for their pages."""

from __future__ import annotations

from typing import Any

from anyformer.hub.tables.config import ACTS, Lens, alike, key, keys, must, quiet
from anyformer.hub.tables.weights import row, under


def layers() -> dict[str, list[Any]]:
    """Rows of a layer of each side."""
    attention = [row(f"{n}_proj", n) for n in "qkv"] + [row("out_proj", "o")]
    mixer = [*under("self_attn", "mixer", *attention), row("self_attn_layer_norm", "norm.mixer")]
    cross = [*under("encoder_attn", "cross", *attention), row("encoder_attn_layer_norm", "norm.cross")]
    ffn = [row("fc1", "ffn.up"), row("fc2", "ffn.down"), row("final_layer_norm", "norm.ffn")]
    return {"encoder": [*mixer, *ffn], "decoder": [*mixer, *cross, *ffn]}


def sides(*front: Any) -> list[Any]:
    """Rows of both sides; `front` are rows of each side's front-end, `entry` on ours."""
    return [
        under(
            f"model.{side}",
            side,
            row("embed_tokens", (), tied="embed.tokens"),
            under("", "entry", *front),
            under("layers.{i}", "blocks.{i}", *rows),
        )
        for side, rows in layers().items()
    ]


def seq2seq_rows(*front: Any) -> list[Any]:
    """Rows of a whole model with one token table for both sides and the logits."""
    return [
        row("model.shared", "embed.tokens"),
        sides(*front),
        row("lm_head", "head.proj", tied="embed.tokens"),
        row("final_logits_bias", "head.offset"),
    ]


_TEXTS = ("max_length", "min_length", "num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size")
_FORCED = ("forced_bos_token_id", "force_bos_token_to_be_generated", "forced_eos_token_id", "bad_words_ids", "prefix")


def seq2seq_config() -> tuple[Lens, ...]:
    """Entries for the model's hyperparameters except `vocab` and `begin_id`."""
    return (
        *keys(d_model="dim", max_position_embeddings="context", decoder_layers="decoder_depth"),
        key("encoder_layers", "depth", also=("num_hidden_layers",)),
        alike("heads", "encoder_attention_heads", "decoder_attention_heads"),
        alike("hidden", "encoder_ffn_dim", "decoder_ffn_dim"),
        key("activation_function", "act", ACTS, default="gelu"),
        key("scale_embedding", "scaled", default=False),
        key("dropout", "dropout", default=0.1),
        key("attention_dropout", "attention_dropout", default=0.0),
        key("activation_dropout", "hidden_dropout", default=0.0),
        must("encoder_layerdrop", 0.0),
        must("decoder_layerdrop", 0.0),
        must("tie_word_embeddings", True),
        must("is_encoder_decoder", True),
        must("is_decoder", False),
        must("add_cross_attention", False),
        must("add_bias_logits", False),
        must("add_final_layer_norm", False),
        must("normalize_before", False),
        quiet("init_std", "total_flos", why="first weights and their training"),
        quiet(*_TEXTS, *_FORCED, why="defaults of generation; options of `generate` here"),
        quiet("classif_dropout", "classifier_dropout", "_num_labels", why="for a head that the file does not have"),
        quiet("output_past", why="requests outputs or memory, not other numbers"),
    )
