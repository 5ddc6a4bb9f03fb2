"""The common names of tensors and settings in files of Mamba and its descendants, for their pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from anyformer.hub.tables.config import Lens, key, keys, must, quiet
from anyformer.hub.tables.weights import Row, row, under

SHARED = {"in_proj": "into", "conv1d": "conv", "A_log": "A_log", "D": "skip", "out_proj": "out"}
MAMBA = {**SHARED, "x_proj": "select", "dt_proj": "step"}
MAMBA2 = {**SHARED, "dt_bias": "step", "norm": "norm"}


def mixer_rows(names: Mapping[str, str]) -> list[Row]:
    """Rows of one mixer, their names to ours: `MAMBA` or `MAMBA2`."""
    return [row(theirs, ours) for theirs, ours in names.items()]


def mamba_rows(names: Mapping[str, str]) -> list[Any]:
    """Rows of a model in which each layer is one mixer."""
    return [
        row("backbone.embeddings", "embed.tokens", also="backbone.embedding"),
        row("backbone.norm_f", "norm"),
        row("lm_head", "head.proj", tied="embed.tokens"),
        under(
            "backbone.layers.{i}",
            "blocks.{i}",
            row("norm", "norm.mixer"),
            under("mixer", "mixer", *mixer_rows(names)),
        ),
    ]


def mamba_config(tied: bool) -> tuple[Lens, ...]:
    """Entries for the hyperparameters of both versions; `tied` is the default."""
    return (
        *keys(hidden_size="dim", num_hidden_layers="depth", vocab_size="vocab", layer_norm_epsilon="eps"),
        *keys(state_size="state", conv_kernel="conv_kernel", use_bias="bias", use_conv_bias="conv_bias"),
        key("tie_word_embeddings", "tied", default=tied),
        must("hidden_act", "silu"),
        must("rms_norm", True),
        quiet("residual_in_fp32", why="for half precision; here the stream has the type of the weights"),
        quiet(
            "rescale_prenorm_residual",
            "time_step_floor",
            "time_step_max",
            "time_step_min",
            why="first weights, before training",
        ),
    )


def step_rank(name: str) -> Lens:
    """The entry for `rank` under their key `name`; "auto" is a sixteenth of the width, rounded up."""

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        rank = config.get(name, "auto")
        return {"rank": None if rank in ("auto", math.ceil(config.get("hidden_size", 0) / 16)) else rank}

    return Lens((name,), ("rank",), get, lambda c: {name: c.rank or math.ceil(c.dim / 16)})
