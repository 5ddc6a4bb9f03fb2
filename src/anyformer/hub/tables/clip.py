"""Keys and tensors of CLIP's towers, which other families share. `ours` is the path of the tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyformer.hub.tables.config import ACTS, Lens, key, quiet, square
from anyformer.hub.tables.weights import Bare, Resample, row, under


def _end(config: Mapping[str, Any]) -> dict[str, Any]:
    """The end id; 2, in older files, stands for the largest id."""
    end = config.get("eos_token_id")
    return {"end": 49407 if end is None else None if end == 2 else end}


def _write_end(c: Any) -> dict[str, Any]:
    if c.end == 2:
        raise ValueError("end=2 cannot be written: as 'eos_token_id' it means the largest id")
    return {"eos_token_id": 2 if c.end is None else c.end}


def _dropout(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("dropout"):
        raise ValueError(f"config key 'dropout' is {config['dropout']!r}; no published code reads it; 0 is expected")
    return {}


def _encoder(dim: int, heads: int, hidden: int) -> tuple[Lens, ...]:
    """The keys of both towers, with their defaults."""
    return (
        key("hidden_size", "dim", default=dim),
        key("num_hidden_layers", "depth", default=12),
        key("num_attention_heads", "heads", default=heads),
        key("intermediate_size", "hidden", default=hidden),
        key("hidden_act", "act", ACTS, default="quick_gelu"),
        key("layer_norm_eps", "eps", default=1e-5),
        key("attention_dropout", "attention_dropout", default=0.0),
        Lens(("dropout",), (), _dropout, lambda c: {}, "published files have 0, and transformers does not read it"),
    )


IMAGE = (
    *_encoder(768, 12, 3072),
    square("image_size", "image", default=224),
    square("patch_size", "patch", default=32),
    key("num_channels", "channels", default=3),
)
TEXT = (
    *_encoder(512, 8, 2048),
    key("vocab_size", "vocab", default=49408),
    key("max_position_embeddings", "context", default=77),
    Lens(("eos_token_id",), ("end",), _end, _write_end),
)
WIDTH_ABOVE = quiet("projection_dim", why="the width of both towers' output stands one level above")
PLACES = {
    "text_model.embeddings.position_ids": "the numbers of the positions, which are computed",
    "vision_model.embeddings.position_ids": "the numbers of the positions, which are computed",
}


def _blocks(theirs: str, ours: str) -> list[Any]:
    return under(
        f"{theirs}.encoder.layers.{{i}}",
        f"{ours}blocks.{{i}}",
        row("layer_norm1", "norm.mixer"),
        row("layer_norm2", "norm.ffn"),
        under("self_attn", "mixer", row("q_proj", "q"), row("k_proj", "k"), row("v_proj", "v"), row("out_proj", "o")),
        under("mlp", "ffn", row("fc1", "up"), row("fc2", "down")),
    )


def image(ours: str = "") -> list[Any]:
    """The rows of an image tower with its projection."""
    return [
        row("vision_model.embeddings.class_embedding", f"{ours}embed.cls", Bare(2)),
        row("vision_model.embeddings.patch_embedding", f"{ours}embed.project"),
        row("vision_model.embeddings.position_embedding.weight", f"{ours}embed.positions", Bare(1), Resample()),
        row("vision_model.pre_layrnorm", f"{ours}entry.norm"),
        row("vision_model.post_layernorm", f"{ours}pool.norm"),
        row("visual_projection", f"{ours}heads.image.proj"),
        *_blocks("vision_model", ours),
    ]


def text(ours: str = "") -> list[Any]:
    """The rows of a text tower with its projection."""
    return [
        row("text_model.embeddings.token_embedding", f"{ours}embed.tokens"),
        row("text_model.embeddings.position_embedding", f"{ours}embed.positions"),
        row("text_model.final_layer_norm", f"{ours}norm"),
        row("text_projection", f"{ours}heads.text.proj"),
        *_blocks("text_model", ours),
    ]
