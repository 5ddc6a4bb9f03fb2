"""Tensors and config keys of ESMFold, three configs deep, for its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer.hub.tables.bert import ATTENTION
from anyformer.hub.tables.config import Lens, key, must, quiet
from anyformer.hub.tables.nested import beside, within
from anyformer.hub.tables.weights import Op, Row, Shape, Split, row, under

TURNS = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"
IGNORED = {
    "esm.embeddings.position_ids": "0, 1, 2, …",
    "esm.embeddings.position_embeddings.weight": "of ESM-1b; with rotary positions nothing reads it",
    TURNS.format("{i}"): "the first layer's, which all have",
}
OUTPUTS = {
    "s_s": "hidden",
    "s_z": "beside.pair",
    "frames": "beside.frames",
    "unnormalized_angles": "beside.raw_angles",
    "angles": "beside.angles",
    "positions": "beside.positions",
    "lm_logits": "heads.residues",
    "distogram_logits": "heads.distogram",
    "ptm_logits": "heads.ptm",
    "lddt_head": "heads.lddt",
}


@dataclass(frozen=True)
class HeadByHead(Op):
    """Their matrix has the rows of q, k and v of the first head, then those of the second …; ours are three."""

    heads: int

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        rows = sum(s[0] for s in shapes)
        if tensors[0].shape[0] != rows:
            raise ValueError(f"it has {tensors[0].shape[0]} rows, and {rows} are expected")
        return [t.flatten(0, 1) for t in tensors[0].unflatten(0, (self.heads, 3, -1)).unbind(1)]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack([t.unflatten(0, (self.heads, -1)) for t in tensors], 1).flatten(0, 2)]


def weights(c: Any) -> list[Any]:
    """The rows of all tensors."""
    return [
        _stem(),
        row("af2_to_esm", "embed.ids"),
        row("esm_s_combine", "embed.mix"),
        under("esm_s_mlp", "embed", row("0", "norm"), row("1", "up"), row("3", "o")),
        row("embedding", "embed.table"),
        under("trunk", "", *_trunk(c.fold.trunk)),
        row("distogram_head", "heads.distogram.proj"),
        row("ptm_head", "heads.ptm.proj"),
        row("lm_head", "heads.residues.proj"),
        under("lddt_head", "heads.lddt", row("0", "norm"), row("1", "first"), row("2", "second"), row("3", "proj")),
    ]


def _stem() -> list[Row]:
    layer: list[Any] = [
        under("attention.self", "mixer", *ATTENTION),
        row("attention.output.dense", "mixer.o"),
        row("attention.LayerNorm", "norm.mixer"),
        row("LayerNorm", "norm.ffn"),
        row("intermediate.dense", "ffn.up"),
        row("output.dense", "ffn.down"),
    ]
    return under(
        "esm",
        "embed.model",
        under("embeddings", "embed", row("word_embeddings", "tokens"), row("layer_norm", "norm")),
        under("encoder.layer.{i}", "blocks.{i}", *layer),
        row("encoder.emb_layer_norm_after", "norm"),
        row(
            "rotary_embeddings.inv_freq",
            "embed.frequencies",
            also="encoder.layer.0.attention.self.rotary_embeddings.inv_freq",
        ),
        row("contact_head.regression", "heads.contacts"),
    )


def _trunk(c: Any) -> list[Any]:
    mlp = [row("mlp.0", "norm"), row("mlp.1", "up"), row("mlp.3", "o")]
    sequence = [
        row("layernorm_1", "norm"),
        row("pair_to_sequence.layernorm", "norm_pair"),
        row("pair_to_sequence.linear", "bias"),
        row("seq_attention.proj", tuple(f"attention.{n}" for n in "qkv"), HeadByHead(c.dim // c.head_dim)),
        row("seq_attention.o_proj", "attention.o"),
        row("seq_attention.g_proj", "attention.gate"),
    ]
    pair = [
        under("tri_mul_out", "outgoing", *_product()),
        under("tri_mul_in", "incoming", *_product()),
        under("tri_att_start", "starting", *_triangle()),
        under("tri_att_end", "ending", *_triangle()),
        under("mlp_pair", "transition", *mlp),
    ]
    to_pair = [row("layernorm", "norm"), row("proj", ("q", "k"), Split()), row("o_proj", "o")]
    return [
        row("pairwise_positional_embedding.embedding", "positions.table"),
        row("recycle_s_norm", "recycling.norm"),
        row("recycle_z_norm", "recycling.norm_pair"),
        row("recycle_disto", "recycling.distances"),
        under(
            "blocks.{i}",
            "blocks.{i}",
            under("", "rows", *sequence),
            under("mlp_seq", "transition", *mlp),
            under("sequence_to_pair", "to_pair", *to_pair),
            under("", "pairs", *pair),
        ),
        row("trunk2sm_s", "structure.single"),
        row("trunk2sm_z", "structure.pair"),
        under("structure_module", "structure", *_structure()),
    ]


def _product() -> list[Row]:
    names = {"a_p": "a", "a_g": "a_gate", "b_p": "b", "b_g": "b_gate", "g": "gate", "z": "o"}
    rows = [row(f"linear_{theirs}", ours) for theirs, ours in names.items()]
    return [*rows, row("layer_norm_in", "norm_in"), row("layer_norm_out", "norm_out")]


def _triangle() -> list[Row]:
    names = {"q": "q", "k": "k", "v": "v", "o": "o", "g": "gate"}
    inner = [row(f"mha.linear_{theirs}", f"attention.{ours}") for theirs, ours in names.items()]
    return [row("layer_norm", "norm"), row("linear", "bias"), *inner]


def _structure() -> list[Any]:
    names = {
        "q": "q",
        "kv": "kv",
        "q_points": "q_points",
        "kv_points": "kv_points",
        "b": "bias",
        "out": "o",
    }
    return [
        row("layer_norm_s", "norm"),
        row("layer_norm_z", "norm_pair"),
        row("linear_in", "enter"),
        under("ipa", "attention", *(row(f"linear_{t}", o) for t, o in names.items()), row("head_weights", "weights")),
        row("layer_norm_ipa", "norm_attention"),
        under(
            "transition.layers.{i}",
            "transition.{i}",
            row("linear_1", "first"),
            row("linear_2", "second"),
            row("linear_3", "o"),
        ),
        row("transition.layer_norm", "norm_transition"),
        row("bb_update.linear", "update"),
        under(
            "angle_resnet",
            "angles",
            row("linear_in", "enter"),
            row("linear_initial", "enter_first"),
            row("layers.{i}.linear_1", "layers.{i}.0"),
            row("layers.{i}.linear_2", "layers.{i}.1"),
            row("linear_out", "o"),
        ),
    ]


def config(language: type, fold: type, trunk: type, structure: type) -> tuple[Lens, ...]:
    """The entries of config.json: ESM-2's keys, and `esmfold_config` with `trunk` with `structure_module` in it."""
    return (
        beside("stem", language, *_language()),
        within("esmfold_config", "fold", fold, *_fold(trunk, structure)),
        must("is_folding_model", True, absent=False),
        ALPHABET,
        must("vocab_size", 33, absent=False),
        must("position_embedding_type", "rotary", absent=False),
        must("is_decoder", False),
        must("add_cross_attention", False),
        quiet("tie_word_embeddings", why="a folding model has no scores of the language model's tokens"),
        quiet("max_position_embeddings", why="rotary positions have no limit"),
        Lens(("pad_token_id",), (), lambda config: {}, lambda c: {"pad_token_id": 1}, "the one of the alphabet"),
        quiet("hidden_act", "classifier_dropout", why="no class of this family reads it"),
    )


def _alphabet(config: Mapping[str, Any]) -> dict[str, Any]:
    from anyformer.parts.folding.front import ALPHABET

    listed = config.get("vocab_list")
    if listed is not None and tuple(listed) != ALPHABET:
        raise ValueError("config key 'vocab_list' is another alphabet than ESM-2's, which this page reads only")
    return {}


def _listed(c: Any) -> dict[str, Any]:
    from anyformer.parts.folding.front import ALPHABET

    return {"vocab_list": list(ALPHABET)}


ALPHABET = Lens(("vocab_list",), (), _alphabet, _listed, "has the only supported value")


def _language() -> tuple[Lens, ...]:
    return (
        key("hidden_size", "dim"),
        key("num_hidden_layers", "depth"),
        key("num_attention_heads", "heads"),
        key("intermediate_size", "hidden"),
        key("layer_norm_eps", "eps", default=1e-12),
        key("hidden_dropout_prob", "dropout", default=0.1),
        key("attention_probs_dropout_prob", "attention_dropout", default=0.1),
        key("mask_token_id", "mask"),
        key("token_dropout", "dropped", default=False),
        key("emb_layer_norm_before", "entry_norm", default=False),
        key("rope_theta", "theta", default=10000.0),
    )


def _fold(trunk: type, structure: type) -> tuple[Lens, ...]:
    halved = Lens(
        ("fp16_esm",),
        (),
        lambda config: {},
        lambda c: {"fp16_esm": False},
        "the stem computes in the type of its weights",
    )
    return (
        key("embed_aa", "table", default=True),
        key("lddt_head_hid_dim", "hidden", default=128),
        within("trunk", "trunk", trunk, *_trunk_config(structure)),
        must("bypass_lm", False),
        must("use_esm_attn_map", False),
        must("esm_ablate_sequence", False),
        must("esm_ablate_pairwise", False),
        halved,
        quiet("esm_type", "esm_input_dropout", why="no published model reads it"),
    )


def _trunk_config(structure: type) -> tuple[Lens, ...]:
    return (
        key("num_blocks", "depth", default=48),
        key("sequence_state_dim", "dim", default=1024),
        key("pairwise_state_dim", "pair_dim", default=128),
        key("sequence_head_width", "head_dim", default=32),
        key("pairwise_head_width", "pair_head_dim", default=32),
        key("position_bins", "far", default=32),
        key("dropout", "dropout", default=0.0),
        key("max_recycles", "passes", default=4),
        key("chunk_size", "lines", default=None),
        must("layer_drop", 0.0),
        quiet("cpu_grad_checkpoint", why="how training saves memory"),
        within("structure_module", "structure", structure, *_structure_config()),
    )


def _structure_config() -> tuple[Lens, ...]:
    return (
        key("sequence_dim", "width", default=384),
        key("pairwise_dim", "pair_width", default=128),
        key("ipa_dim", "head_dim", default=16),
        key("resnet_dim", "hidden", default=128),
        key("num_heads_ipa", "heads", default=12),
        key("num_qk_points", "queries", default=4),
        key("num_v_points", "points", default=8),
        key("dropout_rate", "dropout", default=0.1),
        key("num_blocks", "layers", default=8),
        key("num_transition_layers", "transitions", default=1),
        key("num_resnet_blocks", "depth", default=2),
        key("trans_scale_factor", "scale", default=10),
        key("epsilon", "eps", default=1e-8),
        must("num_angles", 7),
        quiet("inf", why="a large number for hidden scores; here they are left out"),
    )
