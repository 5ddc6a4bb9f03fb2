"""The common names of tensors and settings in files of LLaMA and its descendants, for their pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyformer.hub.tables.config import ACTS, Lens, key, keys
from anyformer.hub.tables.rope import rope
from anyformer.hub.tables.weights import Row, row, under

ATTENTION = [row(f"{n}_proj", n) for n in ("q", "k", "v", "o")]
GATED_MLP = [row(f"{n}_proj", n) for n in ("gate", "up", "down")]
NORMS = {"input_layernorm": "norm.mixer", "post_attention_layernorm": "norm.ffn"}
STACK = (
    *keys(hidden_size="dim", num_hidden_layers="depth", num_attention_heads="heads", intermediate_size="hidden"),
    *keys(vocab_size="vocab", rms_norm_eps="eps"),
    key("attention_dropout", "attention_dropout", default=0.0),
)


def llama_rows(
    task: str,
    norms: Mapping[str, str] = NORMS,
    attention: list[Row] = ATTENTION,
    ffn: list[Row] | None = None,
) -> list[Any]:
    """Rows of a decoder, with a head where the task is "lm".

    Args:
        norms: of a layer, their names to ours. attention: the rows of its projections and of tensors beside them.
        ffn: the rows of its second half; None = a gated MLP.
    """
    head = [row("lm_head", "head.proj", tied="embed.tokens")] if task == "lm" else []
    return [
        *head,
        row("model.embed_tokens", "embed.tokens"),
        row("model.norm", "norm"),
        under(
            "model.layers.{i}",
            "blocks.{i}",
            *(row(theirs, ours) for theirs, ours in norms.items()),
            under("self_attn", "mixer", *attention),
            under("mlp", "ffn", *GATED_MLP) if ffn is None else ffn,
        ),
    ]


def window_config(usual: int | None) -> Lens:
    """The entry for `window`: null means none, and `usual` is the default."""
    return Lens(
        ("sliding_window",),
        ("window",),
        lambda c: {"window": c.get("sliding_window", usual)},
        lambda c: {"sliding_window": c.window},
    )


def llama_config(theta: float = 10000.0) -> tuple[Lens, ...]:
    """Entries for the hyperparameters of LLaMA's relatives; `theta` is the default."""
    return (
        *STACK,
        *keys(max_position_embeddings="context"),
        key("hidden_act", "act", ACTS),
        rope(theta=theta),
        key("tie_word_embeddings", "tied", default=False),
    )
