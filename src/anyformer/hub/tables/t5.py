"""Files of T5 and of what grew out of it name tensors and settings alike; pages take their maps from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from anyformer.hub.tables.config import ACTS, Same, key, keys, must, quiet
from anyformer.hub.tables.weights import row, under

NO_BIAS = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias": "cross-attention has no bias"}
CONFIG = (
    *keys(d_model="dim", num_layers="depth", num_heads="heads", d_kv="head_dim", d_ff="hidden"),
    *keys(vocab_size="vocab", relative_attention_num_buckets="buckets", layer_norm_epsilon="eps"),
    key("dropout_rate", "dropout", default=0.1),
    key("decoder_start_token_id", "begin_id", default=0),
    key("num_decoder_layers", "decoder_depth", default=Same("depth")),
    key("relative_attention_max_distance", "far", default=128),
    quiet("is_encoder_decoder", why="goes with the class"),
    must("is_decoder", False),
    quiet("classifier_dropout", "n_positions", "output_past", why="for what this file does not have"),
)
FFN = ("feed_forward_proj", "dense_act_fn", "is_gated_act")


def side(name: str, ours: str, layers: dict[str, str], gated: bool) -> list:
    """Rows of one stack, which is `ours` here; `layers` are its branches in their order, our name to theirs."""
    ffn = [row("wi_0", "gate"), row("wi_1", "up")] if gated else [row("wi", "up")]
    rows = []
    for j, (branch, theirs) in enumerate(layers.items()):
        inner = [*ffn, row("wo", "down")] if branch == "ffn" else [row(n, n) for n in ("q", "k", "v", "o")]
        rows += [row(f"layer.{j}.layer_norm", f"norm.{branch}"), *under(f"layer.{j}.{theirs}", branch, *inner)]
    bias = row("block.0.layer.0.SelfAttention.relative_attention_bias", "bias.table")
    return [
        row(f"{name}.embed_tokens", (), tied="embed.tokens"),
        *under(name, ours, row("final_layer_norm", "norm"), bias, under("block.{i}", "blocks.{i}", *rows)),
    ]


def get_ffn(usual: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Their words for the MLP as ours; `usual` is what absent ones mean."""

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        gate, _, word = str(config.get("feed_forward_proj", usual)).rpartition("-")
        word = "gelu_new" if (gate, word) == ("gated", "gelu") else word
        act, gated = config.get("dense_act_fn", word), config.get("is_gated_act", gate == "gated")  # these win there
        if gate not in ("", "gated") or word not in ACTS or act not in ACTS:
            raise ValueError(
                f"config keys 'feed_forward_proj' and 'dense_act_fn' are {config.get('feed_forward_proj')!r} and "
                f"{act!r}; known are ACT and gated-ACT with {', '.join(ACTS)}"
            )
        return {"act": ACTS[act], "gated": gated}

    return get


def put_ffn(c: Any) -> dict[str, Any]:
    theirs = next(t for t, ours in ACTS.items() if ours == c.act)
    name = "gelu" if c.gated and c.act == "gelu_tanh" else theirs
    return {"feed_forward_proj": f"gated-{name}" if c.gated else name, "dense_act_fn": theirs, "is_gated_act": c.gated}


def get_head(config: Mapping[str, Any]) -> dict[str, Any]:
    tied = config.get("tie_word_embeddings", True)  # before transformers 5 False meant v1.1, which does not scale
    return {"tied": tied, "scaled": config.get("scale_decoder_outputs", tied)}
