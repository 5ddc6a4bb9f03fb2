"""The common names of tensors and settings in files of wav2vec 2.0 and its descendants, for their pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyformer.hub.tables.config import ACTS, CLASSES, ONE_VALUE, Lens, key, keys, must, quiet
from anyformer.hub.tables.weights import Row, Thin, row, under

ATTENTION = [row("q_proj", "q"), row("k_proj", "k"), row("v_proj", "v"), row("out_proj", "o")]
MLP = [row("intermediate_dense", "up"), row("output_dense", "down")]
POSITIONS = [
    row("bias", "bias"),
    row("parametrizations.weight.original0", "gain", Thin(0), Thin(0), also="weight_g"),
    row("parametrizations.weight.original1", "direction", also="weight_v"),
]
FRONT: list[Any] = [
    row("masked_spec_embed", "embed.hidden"),
    under("feature_extractor.conv_layers.{i}", "embed.layers.{i}", row("conv", "conv"), row("layer_norm", "norm")),
    row("feature_projection.layer_norm", "embed.norm"),
    row("feature_projection.projection", "embed.project"),
]
HEADS = [
    row("lm_head", "heads.ctc.proj"),
    row("projector", "heads.classes.project"),
    row("classifier", "heads.classes.proj"),
]
QUANTISER = [
    row("project_hid", "heads.context.proj"),
    row("project_q", "heads.target.proj"),
    row("quantizer.weight_proj", "heads.target.quantiser.scores"),
    row("quantizer.codevectors", "heads.target.quantiser.vectors"),
]


def layer_rows(name: str, stable: bool, *places: Row) -> list[Row]:
    """Rows of the front-end and the stack below the prefix `name`.

    Args:
        stable: norms are before the branches, and `encoder.layer_norm` is the last one; else it is the first.
        places: of the convolution of positions.
    """
    layer = under(
        "encoder.layers.{i}",
        "blocks.{i}",
        under("attention", "mixer", *ATTENTION),
        under("feed_forward", "ffn", *MLP),
        row("layer_norm", "norm.mixer"),
        row("final_layer_norm", "norm.ffn"),
    )
    return under(
        name,
        "",
        *FRONT,
        under("encoder.pos_conv_embed", "", *places),
        row("encoder.layer_norm", "norm" if stable else "entry.norm"),
        layer,
    )


def _hides(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"hides": config.get("mask_time_prob", 0.05) > 0 or config.get("mask_feature_prob", 0.0) > 0}


def _put_hides(c: Any) -> dict[str, Any]:
    return {} if c.hides else {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}


def _derived(name: str, value: Any) -> Lens:
    """A key that follows from our hyperparameters: written, and compared when read."""

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        if config.get(name) is not None and config[name] != value(config):
            raise ValueError(f"config key {name!r} is {config[name]!r}; the other keys make it {value(config)!r}")
        return {}

    return Lens((name,), (), get, lambda c: {}, ONE_VALUE)


TRAINING = "how its training hid frames; here the data say what is hidden"
CONVOLUTIONS = {
    "conv_dim": ("widths", (512,) * 7),
    "conv_kernel": ("kernels", (10, 3, 3, 3, 3, 2, 2)),
    "conv_stride": ("strides", (5, 2, 2, 2, 2, 2, 2)),
}
CONFIG = (
    *keys(hidden_size="dim", num_hidden_layers="depth", num_attention_heads="heads", intermediate_size="hidden"),
    key("hidden_act", "act", ACTS, default="gelu"),
    key("layer_norm_eps", "eps", default=1e-5),
    *(key(theirs, ours, default=usual) for theirs, (ours, usual) in CONVOLUTIONS.items()),
    _derived("num_feat_extract_layers", lambda c: len(c.get("conv_dim", range(7)))),
    key("conv_bias", "conv_bias", default=False),
    key("feat_extract_norm", "conv_norm", {"group": "group", "layer": "layer"}, default="group"),
    key("feat_extract_activation", "conv_act", ACTS, default="gelu"),
    key("num_conv_pos_embeddings", "position_width", default=128),
    key("num_conv_pos_embedding_groups", "position_groups", default=16),
    Lens(("mask_time_prob", "mask_feature_prob"), ("hides",), _hides, _put_hides),
    key("hidden_dropout", "dropout", default=0.1),
    key("activation_dropout", "hidden_dropout", default=0.1),
    key("attention_dropout", "attention_dropout", default=0.1),
    key("feat_proj_dropout", "project_dropout", default=0.0),
    key("final_dropout", "final_dropout", default=0.1),
    key("vocab_size", "vocab", default=32),
    key("pad_token_id", "blank", default=0),
    key("classifier_proj_size", "class_width", default=256),
    CLASSES,
    must("use_weighted_layer_sum", False),
    Lens(
        ("layerdrop",),
        (),
        lambda config: {},
        lambda c: {"layerdrop": 0.0},
        "layers that its training left out; `fit` leaves out none",
    ),
    quiet("apply_spec_augment", "mask_time_length", "mask_time_min_masks", "mask_feature_length", why=TRAINING),
    quiet("mask_feature_min_masks", "mask_time_other", "mask_time_selection", "mask_channel_other", why=TRAINING),
    quiet("mask_channel_length", "mask_channel_min_space", "mask_channel_prob", "mask_channel_selection", why=TRAINING),
    quiet("no_mask_channel_overlap", "no_mask_time_overlap", "mask_time_min_space", why=TRAINING),
    quiet("freeze_feat_extract_train", "feat_extract_dropout", why="what its training changed; `frozen` says it here"),
    quiet("ctc_loss_reduction", "ctc_zero_infinity", why="of another loss; here it is a mean over label tokens"),
    quiet("do_ctc", "tokenizer_class", "num_ctc_classes", why="for other programs"),
)
BESIDE = (  # heads and parts that other classes of these files have
    must("add_adapter", False),
    _derived("output_hidden_size", lambda c: c["hidden_size"]),
    quiet("adapter_kernel_size", "adapter_stride", "num_adapter_layers", why="of an adapter, which the file lacks"),
    quiet("tdnn_dim", "tdnn_kernel", "tdnn_dilation", "xvector_output_dim", why="of a head that the file lacks"),
)
CODES = (
    key("num_codevector_groups", "groups", default=2),
    key("num_codevectors_per_group", "codes", default=320),
    key("codevector_dim", "code_width", default=256),
    key("proj_codevector_dim", "out_width", default=256),
    key("diversity_loss_weight", "diversity", default=0.1),
    key("feat_quantizer_dropout", "quantiser_dropout", default=0.0),
    quiet("contrastive_logits_temperature", "num_negatives", why="for the objective of pre-training, as its options"),
)
