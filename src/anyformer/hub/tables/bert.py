"""Files of BERT and of what grew out of it name tensors alike; pages take their rows from here."""

from __future__ import annotations

from typing import Any

from anyformer.hub.tables.weights import row, under


def bert_rows(name: str, *inner: Any) -> list[Any]:
    """Rows of the front-end and the layers below the prefix `name`; `inner` are more of a layer's attention."""
    return [
        under(
            f"{name}.embeddings", "embed",
            row("word_embeddings", "tokens"), row("position_embeddings", "positions"),
            row("token_type_embeddings", "types"), row("LayerNorm", "norm"),
        ),
        under(
            f"{name}.encoder.layer.{{i}}", "blocks.{i}",
            under("attention.self", "mixer", row("query", "q"), row("key", "k"), row("value", "v"), *inner),
            row("attention.output.dense", "mixer.o"), row("attention.output.LayerNorm", "norm.mixer"),
            row("intermediate.dense", "ffn.up"), row("output.dense", "ffn.down"), row("output.LayerNorm", "norm.ffn"),
        ),
    ]  # fmt: skip


def prediction_rows(mlm: str) -> list[Any]:
    """Rows of the heads that BERT is pre-trained with; `mlm` is the path of the masked one."""
    return [
        under("cls.predictions.transform", mlm, row("dense", "dense"), row("LayerNorm", "norm")),
        row("cls.predictions.bias", f"{mlm}.bias"),
        row("cls.predictions.decoder.bias", (), tied=f"{mlm}.bias"),
        row("cls.predictions.decoder.weight", f"{mlm}.proj.weight", tied="embed.tokens.weight"),
        row("cls.seq_relationship", "heads.nsp.proj"),
    ]
