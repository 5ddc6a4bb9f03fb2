"""The common names of tensors and settings of decoders in GGUF files, for their pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anyformer.hub.tables.config import Lens, Same, key, quiet
from anyformer.hub.tables.weights import Op, Row, Shape, row, under
from anyformer.parts.positions import Linear, Scaling, YaRN


class PlusOne(Op):
    """Norms that multiply by 1 + weight (Gemma): GGUF files hold the sum."""

    def read(self, tensors: list[Tensor], shapes: list[Shape]) -> list[Tensor]:
        return [t - 1 for t in tensors]

    def write(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t + 1 for t in tensors]


def decoder_rows(q: Op | None = None, k: Op | None = None) -> list[Any]:
    """Rows of a pre-norm decoder with a gated MLP; `q` and `k` are ops on those projections."""

    def projection(theirs: str, ours: str, op: Op | None) -> Row:
        return row(theirs, ours, *([] if op is None else [op]))

    return [
        row("token_embd", "embed.tokens"),
        row("output_norm", "norm"),
        row("output", "head.proj", tied="embed.tokens"),
        under(
            "blk.{i}",
            "blocks.{i}",
            row("attn_norm", "norm.mixer"),
            row("ffn_norm", "norm.ffn"),
            projection("attn_q", "mixer.q", q),
            projection("attn_k", "mixer.k", k),
            row("attn_v", "mixer.v"),
            row("attn_output", "mixer.o"),
            row("ffn_gate", "ffn.gate"),
            row("ffn_up", "ffn.up"),
            row("ffn_down", "ffn.down"),
        ),
    ]


def decoder_config(name: str) -> tuple[Lens, ...]:
    """Entries for the hyperparameters of such a decoder, whose settings begin with `name`."""
    wide = (f"{name}.attention.key_length", f"{name}.attention.value_length", f"{name}.rope.dimension_count")

    def head_dim(config: Mapping[str, Any]) -> dict[str, Any]:
        widths = {config[n] for n in wide if n in config}
        if len(widths) > 1:
            raise ValueError(f"metadata {', '.join(wide)} must agree; got {sorted(widths)}")
        plain = config.get(f"{name}.embedding_length", 0) // max(1, config.get(f"{name}.attention.head_count", 1))
        return {"head_dim": next((w for w in widths if w != plain), None)}

    return (
        key(f"{name}.embedding_length", "dim"),
        key(f"{name}.block_count", "depth"),
        key(f"{name}.attention.head_count", "heads"),
        key(f"{name}.attention.head_count_kv", "kv_heads", default=Same("heads")),
        key(f"{name}.feed_forward_length", "hidden"),
        key(f"{name}.context_length", "context"),
        key(f"{name}.attention.layer_norm_rms_epsilon", "eps"),
        key(f"{name}.vocab_size", "vocab"),
        key("tied", "tied"),
        Lens(wide, ("head_dim",), head_dim, lambda h: dict.fromkeys(wide, h.head_dim or h.dim // h.heads)),
        _rope(name),
        quiet(f"{name}.rope.scaling.finetuned", why="records how the file was made"),
    )


def _rope(name: str) -> Lens:
    ours = f"{name}.rope.scaling"
    names = (f"{name}.rope.freq_base", f"{ours}.type", f"{ours}.factor", f"{ours}.original_context_length")

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        theta, kind, factor, trained = [config.get(n) for n in names]
        if kind not in (None, "none", "linear", "yarn"):
            raise ValueError(f"metadata {names[1]!r} is {kind!r}; expected none, linear or yarn")
        if kind in ("linear", "yarn") and (factor is None or (kind == "yarn" and trained is None)):
            raise ValueError(f"metadata {names[1]!r} is {kind!r}, but {names[2]!r} or {names[3]!r} is missing")
        scaling: Scaling | None = None
        if kind in ("linear", "yarn"):
            assert factor is not None
            scaling = Linear(factor) if kind == "linear" else YaRN(factor, int(trained or 0))
        return {"theta": float(theta or 10000.0), "scaling": scaling}

    def put(hyper: Any) -> dict[str, Any]:
        made, scaling = {names[0]: float(hyper.theta)}, hyper.scaling
        if type(scaling) is Linear:
            return {**made, names[1]: "linear", names[2]: float(scaling.factor)}
        if scaling == YaRN(getattr(scaling, "factor", 1.0), getattr(scaling, "trained", 1)):
            return {**made, names[1]: "yarn", names[2]: float(scaling.factor), names[3]: scaling.trained}
        if scaling is not None:
            raise ValueError(
                f"scaling={scaling!r} cannot be written: a GGUF file has linear, and yarn with its defaults"
            )
        return made

    return Lens(names, ("theta", "scaling"), get, put)
