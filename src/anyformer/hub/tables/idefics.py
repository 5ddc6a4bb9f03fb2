"""Keys and tensors of IDEFICS, the published Flamingo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyformer.hub.tables.config import ACTS, Lens, key, keys, quiet, square
from anyformer.hub.tables.llama import ATTENTION, GATED_MLP
from anyformer.hub.tables.rope import rope
from anyformer.hub.tables.several import Join
from anyformer.hub.tables.weights import Bare, Resample, Thin, row, under

HABIT = "a habit of training: freeze by path, model.get_submodule(path).requires_grad_(False)"


def _trains(name: str) -> Lens:
    """A key of theirs that freezes weights when the model is made; a new model is written without it."""
    return Lens((name,), (), lambda config: {}, lambda c: {name: False}, HABIT)


def _usual(vocab: int, extra: int) -> int | None:
    """The id of `<image>` in published files, which no key names: the additional one after the first."""
    return vocab + 1 if extra > 1 else None


def _placeholder(config: Mapping[str, Any]) -> dict[str, Any]:
    named = config.get("image_token_id")
    return {
        "placeholder": _usual(config["vocab_size"], config.get("additional_vocab_size") or 0)
        if named is None
        else named
    }


def _write_placeholder(c: Any) -> dict[str, Any]:
    usual = _usual(c.vocab, c.extra)
    if c.placeholder is None and usual is not None:
        raise ValueError(
            f"placeholder=None with {c.extra} additional ids cannot be written: files mean id {usual} then"
        )
    return {} if c.placeholder == usual else {"image_token_id": c.placeholder}


IMAGE = (
    key("embed_dim", "dim", default=768, also=("hidden_size",)),
    key("num_hidden_layers", "depth", default=32),
    key("num_attention_heads", "heads", default=16),
    key("intermediate_size", "hidden", default=5120),
    key("hidden_act", "act", ACTS, default="gelu"),
    key("layer_norm_eps", "eps", default=1e-5),
    key("attention_dropout", "attention_dropout", default=0.0),
    square("image_size", "image", default=224),
    square("patch_size", "patch", default=14),
    key("num_channels", "channels", default=3),
    quiet("vision_model_name", why="names the model from which the tower was taken"),
)
LATENTS = (
    key("resampler_n_latents", "latents", default=64),
    key("resampler_depth", "depth", default=6),
    key("resampler_n_heads", "heads", default=16),
    key("resampler_head_dim", "head_dim", default=96),
    key("qk_layer_norms_perceiver", "qk_norm", default=False),
    quiet("use_resampler", why="the key of this name one level above counts"),
)
TEXT = (
    *keys(hidden_size="dim", num_hidden_layers="depth", num_attention_heads="heads", intermediate_size="hidden"),
    *keys(vocab_size="vocab", max_position_embeddings="context"),
    key("additional_vocab_size", "extra", default=0),
    Lens(("image_token_id",), ("placeholder",), _placeholder, _write_placeholder),
    key("hidden_act", "act", ACTS, default="silu"),
    key("rms_norm_eps", "eps", default=1e-6),
    key("dropout", "dropout", default=0.0),
    rope(),
    key("tie_word_embeddings", "tied", default=False),
    key("cross_layer_interval", "every", default=1),
    key("qk_layer_norms", "qk_norm", default=False),
    key("alpha_type", "each", {"float": False, "vector": True}, default=False),
    quiet("alpha_initializer", "alphas_initializer_range", why="first weights, before training"),
    *map(_trains, ("freeze_text_layers", "freeze_vision_layers", "freeze_lm_head")),
    quiet("freeze_text_module_exceptions", "freeze_vision_module_exceptions", why=HABIT),
    quiet("cross_layer_activation_function", "ffn_dim", "word_embed_proj_dim", why="no published code reads it"),
    quiet("max_new_tokens", why="for `generate`: pass it there"),
)


def weights(c: Any) -> list[Any]:
    """The rows of a model with these hyperparameters."""
    gate = (Thin(0), Thin(0)) if c.each else ()
    return [
        *_vocabulary("model.embed_tokens", "additional_embedding", "embed.tokens", c),
        *_vocabulary("lm_head", "additional_fc", "head.proj", c, tied="embed.tokens"),
        row("model.norm", "norm"),
        under(
            "model.layers.{i}",
            "blocks.{i}",
            row("input_layernorm", "norm.mixer"),
            row("post_attention_layernorm", "norm.ffn"),
            under("self_attn", "mixer", *ATTENTION),
            under("mlp", "ffn", *GATED_MLP),
        ),
        under(
            "model.gated_cross_attn_layers.{i}",
            "gated.{i}",
            row("alpha_cross_attn", "scale.cross.weight", *gate),
            row("alpha_dense", "scale.ffn.weight", *gate),
            row("input_layernorm", "norm.cross"),
            row("post_attention_layernorm", "norm.ffn"),
            under("cross_attn", "cross", *ATTENTION, *(row(f"{n}_layer_norm", f"norm.{n}") for n in "qk")),
            under("mlp", "ffn", *GATED_MLP),
        ),
        *under("model.vision_model", "images.tower", *_tower()),
        *under("model.perceiver_resampler", "images.resampler", *_resampler()),
    ]


def _vocabulary(theirs: str, more: str, ours: str, c: Any, tied: str | None = None) -> list[Any]:
    """A table of ours that is two of theirs: the language model's, and additional ids after them."""
    names: Any = (theirs, f"{theirs}.{more}") if c.extra else theirs
    return [row(names, ours, *([Join((c.vocab, c.extra))] if c.extra else []), tied=tied)]


def _tower() -> list[Any]:
    return [
        row("embeddings.class_embedding", "embed.cls", Bare(2)),
        row("embeddings.patch_embedding", "embed.project"),
        row("embeddings.position_embedding.weight", "embed.positions", Bare(1), Resample()),
        row("pre_layrnorm", "entry.norm"),
        row("post_layernorm", "norm"),
        under(
            "encoder.layers.{i}",
            "blocks.{i}",
            row("layer_norm1", "norm.mixer"),
            row("layer_norm2", "norm.ffn"),
            under("self_attn", "mixer", *(row(f"{n}_proj", n) for n in "qkv"), row("out_proj", "o")),
            under("mlp", "ffn", row("fc1", "up"), row("fc2", "down")),
        ),
    ]


def _resampler() -> list[Any]:
    return [
        row("latents", "latents"),
        row("layer_norm", "norm"),
        under(
            "blocks.{i}",
            "blocks.{i}",
            row("0.context_layer_norm", "mixer.context"),
            row("0.latents_layer_norm", "norm.mixer"),
            under("0", "mixer", *(row(f"{n}_proj", n) for n in "qkv"), row("output_proj", "o")),
            under("0", "mixer", *(row(f"{n}_layer_norm", f"norm.{n}") for n in "qk")),
            under("1", "", row("ln", "norm.ffn"), row("fc", "ffn.up"), row("c_proj", "ffn.down")),
        ),
    ]
