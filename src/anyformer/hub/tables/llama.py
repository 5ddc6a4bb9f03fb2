"""Files of LLaMA and of what grew out of it name tensors and settings alike; pages take their maps from here."""

from __future__ import annotations

from typing import Any

from anyformer.hub.tables.config import ACTS, Lens, key, keys
from anyformer.hub.tables.rope import rope
from anyformer.hub.tables.weights import row, under

GATED = under("mlp", "ffn", *(row(f"{n}_proj", n) for n in ("gate", "up", "down")))


def llama_rows(task: str, ffn: Any = GATED) -> list[Any]:
    """Rows of a pre-norm decoder, with a head where the task is "lm"; `ffn` are those of a layer's second half."""
    head = [row("lm_head", "head.proj", tied="embed.tokens")] if task == "lm" else []
    return [
        *head,
        row("model.embed_tokens", "embed.tokens"),
        row("model.norm", "norm"),
        under(
            "model.layers.{i}", "blocks.{i}",
            row("input_layernorm", "norm.mixer"), row("post_attention_layernorm", "norm.ffn"),
            under("self_attn", "mixer", *(row(f"{n}_proj", n) for n in "qkvo")), ffn,
        ),
    ]  # fmt: skip


def llama_config(theta: float = 10000.0) -> tuple[Lens, ...]:
    """Entries for the hyperparameters that they all have; `theta` where a file says none."""
    return (
        *keys(hidden_size="dim", num_hidden_layers="depth", num_attention_heads="heads", intermediate_size="hidden"),
        *keys(vocab_size="vocab", max_position_embeddings="context", rms_norm_eps="eps"),
        key("hidden_act", "act", ACTS), rope(theta=theta), key("tie_word_embeddings", "tied", default=False),
        key("attention_dropout", "attention_dropout", default=0.0),
    )  # fmt: skip
