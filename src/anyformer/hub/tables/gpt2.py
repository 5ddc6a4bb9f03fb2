"""The common names of tensors and keys in files of GPT-2 and models with its layers, for their pages."""

from __future__ import annotations

from typing import Any

from anyformer.hub.tables.config import ACTS, key, keys, must, quiet
from anyformer.hub.tables.weights import Split, Transpose, row, under


def layer_rows(name: str) -> list[Any]:
    """Rows of the layers and of the last norm below the prefix `name`; matrices are stored transposed."""
    return [
        under(
            f"{name}.h.{{i}}",
            "blocks.{i}",
            row("ln_1", "norm.mixer"),
            row("attn.c_attn", ("mixer.q", "mixer.k", "mixer.v"), Transpose(), Split()),
            row("attn.c_proj", "mixer.o", Transpose()),
            row("ln_2", "norm.ffn"),
            row("mlp.c_fc", "ffn.up", Transpose()),
            row("mlp.c_proj", "ffn.down", Transpose()),
        ),
        row(f"{name}.ln_f", "norm"),
    ]


def layer_config(act: str) -> tuple[Any, ...]:
    """The keys of the layers; `act` is the default activation."""
    return (
        *keys(n_layer="depth", n_head="heads", layer_norm_epsilon="eps"),
        key("n_inner", "hidden", default=None),
        key("activation_function", "act", ACTS, default=act),
        key("resid_pdrop", "dropout", default=0.1),
        key("embd_pdrop", "embed_dropout", default=0.1),
        key("attn_pdrop", "attention_dropout", default=0.1),
        must("scale_attn_weights", True),
        must("scale_attn_by_inverse_layer_idx", False),
        must("add_cross_attention", False),
        quiet("reorder_and_upcast_attn", why="against overflow in half precision"),
        quiet(
            *(f"summary_{n}" for n in ("activation", "first_dropout", "proj_to_labels", "type", "use_proj")),
            why="for a head that the file does not have",
        ),
    )


def stored_masks(name: str) -> dict[str, str]:
    """Tensors of old files that carry nothing."""
    return {f"{name}.h.{{i}}.attn.{tensor}": "the causal mask" for tensor in ("bias", "masked_bias")}
