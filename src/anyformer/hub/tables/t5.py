"""The common names of tensors and settings in files of T5 and its descendants, for their pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyformer.hub.tables.config import ACTS, Lens, key, keys, must, quiet
from anyformer.hub.tables.weights import Row, row, under

NO_BIAS = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias": "cross-attention has no bias"}
CONFIG = (
    *keys(d_model="dim", num_layers="depth", num_heads="heads", d_kv="head_dim", d_ff="hidden"),
    *keys(vocab_size="vocab", relative_attention_num_buckets="buckets", layer_norm_epsilon="eps"),
    key("dropout_rate", "dropout", default=0.1),
    key("decoder_start_token_id", "begin_id", default=0),
    key("relative_attention_max_distance", "far", default=128),
    must("is_decoder", False),
    quiet("n_positions", "output_past", why="for parts that the file does not have"),
)
BRANCHES = {  # of a layer of each stack, in their order: our name to theirs
    "encoder": {"mixer": "SelfAttention", "ffn": ""},
    "decoder": {"mixer": "SelfAttention", "cross": "EncDecAttention", "ffn": ""},
}


def mlp_rows(gated: bool) -> list[Row]:
    """Rows of an MLP."""
    up = [row("wi_0", "gate"), row("wi_1", "up")] if gated else [row("wi", "up")]
    return [*up, row("wo", "down")]


def stack_rows(name: str, ours: str, mlp: str, ffn: list[Row]) -> list[Row]:
    """Rows of one stack with the token table that it reads.

    Args:
        name: "encoder" or "decoder". ours: its path here.
        mlp: their name for a layer's last branch. ffn: the rows of that branch.
    """
    attention = [row(n, n) for n in ("q", "k", "v", "o")]
    layer = []
    for j, (branch, theirs) in enumerate(BRANCHES[name].items()):
        inner = ffn if branch == "ffn" else attention
        layer += [row(f"layer.{j}.layer_norm", f"norm.{branch}")]
        layer += under(f"layer.{j}.{theirs or mlp}", branch, *inner)
    return [
        row(f"{name}.embed_tokens", (), tied="embed.tokens"),
        *under(
            name,
            ours,
            row("final_layer_norm", "norm"),
            row("block.0.layer.0.SelfAttention.relative_attention_bias", "bias.table"),
            under("block.{i}", "blocks.{i}", *layer),
        ),
    ]


def ffn_config(usual: str) -> Lens:
    """The entry for `act` and `gated`; `usual` is the default of `feed_forward_proj`."""

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        gate, _, word = str(config.get("feed_forward_proj", usual)).rpartition("-")
        word = "gelu_new" if (gate, word) == ("gated", "gelu") else word
        act, gated = config.get("dense_act_fn", word), config.get("is_gated_act", gate == "gated")  # take precedence
        if gate not in ("", "gated") or word not in ACTS or act not in ACTS:
            raise ValueError(
                f"config keys 'feed_forward_proj' and 'dense_act_fn' are {config.get('feed_forward_proj')!r} and "
                f"{act!r}; expected ACT or gated-ACT with {', '.join(ACTS)}"
            )
        return {"act": ACTS[act], "gated": gated}

    return Lens(("feed_forward_proj", "dense_act_fn", "is_gated_act"), ("act", "gated"), get, _put_ffn)


def _put_ffn(c: Any) -> dict[str, Any]:
    theirs = next(t for t, ours in ACTS.items() if ours == c.act)
    name = "gelu" if c.gated and c.act == "gelu_tanh" else theirs
    return {"feed_forward_proj": f"gated-{name}" if c.gated else name, "dense_act_fn": theirs, "is_gated_act": c.gated}


def head_config() -> Lens:
    """The entry for `tied` and `scaled`: before transformers 5 an untied table meant v1.1, which does not scale."""

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        tied = config.get("tie_word_embeddings", True)
        return {"tied": tied, "scaled": config.get("scale_decoder_outputs", tied)}

    def put(c: Any) -> dict[str, Any]:
        return {"tie_word_embeddings": c.tied, "scale_decoder_outputs": c.scaled}

    return Lens(("tie_word_embeddings", "scale_decoder_outputs"), ("tied", "scaled"), get, put)
