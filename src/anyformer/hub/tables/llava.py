"""Keys and tensors of LLaVA's files: a text model of LLaMA, Mistral or Qwen2, a picture tower of CLIP, a projector."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.value import nearest
from anyformer.hub.tables import clip
from anyformer.hub.tables.config import ACTS, Lens, Line, Same, key, must, quiet, read, write
from anyformer.hub.tables.llama import llama_rows, window_config
from anyformer.hub.tables.nested import Within
from anyformer.hub.tables.qwen2 import HEAD_DIM, WINDOW
from anyformer.hub.tables.rope import rope
from anyformer.hub.tables.weights import Row, row, under

TIE = "tie_word_embeddings"


def _text(
    family: str, depth: int, kv_heads: Any, hidden: int, vocab: int, context: int, *more: Lens
) -> tuple[Lens, ...]:
    """The keys of a text model, with the defaults of its family."""
    return (
        Lens(("model_type",), ("family",), lambda config: {"family": family}, lambda text: {"model_type": family}),
        key("hidden_size", "dim", default=4096),
        key("num_hidden_layers", "depth", default=depth),
        key("num_attention_heads", "heads", default=32),
        key("num_key_value_heads", "kv_heads", default=kv_heads),
        key("intermediate_size", "hidden", default=hidden),
        key("hidden_act", "act", ACTS, default="silu"),
        key("vocab_size", "vocab", default=vocab),
        key("max_position_embeddings", "context", default=context),
        key("rms_norm_eps", "eps", default=1e-6),
        key("attention_dropout", "attention_dropout", default=0.0),
        rope(theta=10000.0),
        key(TIE, "tied", default=False),
        *more,
    )


TEXTS = {  # by model_type
    "llama": _text(
        "llama", 32, Same("heads"), 11008, 32000, 2048, key("head_dim", "head_dim", default=None),
        key("attention_bias", "bias", default=False), key("mlp_bias", "ffn_bias", default=False),
        quiet("pretraining_tp", why="splits the same sums over devices"),
    ),
    "mistral": _text(
        "mistral", 32, 8, 14336, 32000, 131072, key("head_dim", "head_dim", default=None), window_config(4096)
    ),
    "qwen2": _text("qwen2", 32, 32, 22016, 151936, 32768, HEAD_DIM, WINDOW),
}  # fmt: skip
IMAGE = (
    *clip.IMAGE,
    clip.WIDTH_ABOVE,
    must("model_type", "clip_vision_model"),
    quiet("vocab_size", why="a tower of pictures has no vocabulary"),
)


@dataclass(frozen=True)
class Language(Within):
    """The entry for the text model: its family decides the table of keys, and the token table is tied if either level
    says so."""

    def lines(self, config: Mapping[str, Any], where: str) -> list[Line]:
        above = [Line(where + TIE, config[TIE], "used", f"{self.fields[0]}.tied")] if TIE in config else []
        return above + super().lines(config, where)

    def words(self, hyper: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
        inner, before = getattr(hyper, self.fields[0]), origin.get(self.names[0]) or {}
        levels = {TIE: inner.tied}
        if origin and bool(origin.get(TIE)) | bool(before.get(TIE)) == inner.tied:  # each level keeps its word
            levels = {TIE: origin[TIE]} if TIE in origin else {}
        words = write(TEXTS[inner.family], inner, {}, before)
        if before and levels.get(TIE) == origin.get(TIE):
            words |= {TIE: before[TIE]} if TIE in before else {}
            words = words if TIE in before else {k: v for k, v in words.items() if k != TIE}
        return {self.names[0]: words} | levels

    def tables(self) -> tuple[Lens, ...]:
        return tuple(entry for entries in TEXTS.values() for entry in entries)

    def _read(self, inner: Mapping[str, Any], path: str) -> tuple[Any, list[Line]]:
        family = inner.get("model_type", "llama")
        if family not in TEXTS:
            raise ValueError(
                f"config key {path + 'model_type'!r} is {family!r}{nearest(str(family), list(TEXTS))}; this page reads "
                f"texts of {', '.join(TEXTS)}"
            )
        return read(TEXTS[family], inner, self.cls, {}, where=path)

    def _inner(self, config: Mapping[str, Any], where: str) -> list[tuple[str, Mapping[str, Any], str]]:
        name = self.names[0]
        ((_, inner, path),) = super()._inner({name: config.get(name)}, where)
        tied = bool(config.get(TIE)) or bool(inner.get(TIE))
        return [(name, {**inner, TIE: tied} if TIE in inner or tied else inner, path)]


def language(ours: str, cls: type) -> Lens:
    """`text_config` and the word about tied tables above it."""
    return Language(("text_config", TIE), (ours,), dict, dict, cls=cls)


def _write_token(c: Any) -> dict[str, Any]:
    if c.token >= c.text.vocab:
        raise ValueError(
            f"token={c.token} cannot be written: transformers looks it up, and the table has {c.text.vocab} rows"
        )
    return {"image_token_index": c.token}


TOKEN = dataclasses.replace(
    key("image_token_index", "token", default=32000, also=("image_token_id",)), put=_write_token
)


def count(image: int, patch: int, cls: bool) -> int:
    """The positions that a picture takes."""
    return (image // patch) ** 2 + cls


def _length(config: Mapping[str, Any]) -> dict[str, Any]:
    stored, vision = config.get("image_seq_length"), config.get("vision_config")
    if stored is None or not isinstance(vision, Mapping):
        return {}
    image, patch = (vision.get(name) or usual for name, usual in (("image_size", 224), ("patch_size", 32)))
    cls = config.get("vision_feature_select_strategy", "default") == "full"
    if isinstance(image, int) and isinstance(patch, int) and patch > 0 and stored != (made := count(image, patch, cls)):
        raise ValueError(
            f"'image_seq_length' is {stored!r}, and the tower makes {made} positions of a picture; correct the file, "
            "or load(..., ignore=['image_seq_length']), if the tower is right"
        )
    return {}


def _layer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The blocks behind the hidden states that are read: the index, which counts those before the first block, too, is
    from either end."""
    layer, vision = config.get("vision_feature_layer", -2), config.get("vision_config") or {}
    if isinstance(layer, list):
        raise ValueError(f"'vision_feature_layer' is {layer}; this page reads the hidden states of one layer")
    depth = vision.get("num_hidden_layers", 12)
    unread = -1 - layer if layer < 0 else depth - layer
    if not 0 <= unread <= depth:
        raise ValueError(f"'vision_feature_layer' is {layer}; a tower of {depth} blocks has {-depth - 1} to {depth}")
    return {"unread": unread}


LAYER = Lens(("vision_feature_layer",), ("unread",), _layer, lambda c: {"vision_feature_layer": -1 - c.unread})
LENGTH = Lens(
    ("image_seq_length",), (), _length, lambda c: {"image_seq_length": count(c.image.image, c.image.patch, c.cls)},
    "the positions of a picture, which the tower decides; checked against it",
)  # fmt: skip
LOSS = quiet("ignore_index", why="the label that the loss of transformers passes over")
VOCAB = quiet("vocab_size", why="repeats text_config.vocab_size, which decides")
PLACES = {
    f"vision_tower.{prefix}embeddings.position_ids": "the numbers of the positions, which are computed"
    for prefix in ("", "vision_model.")
}


def weights(c: Any) -> list[Any]:
    """The rows of all three parts; published files have one more name in front of the tower's."""
    return [
        *(_tower(r) for r in clip.image("media.image.tower.") if r.theirs != ("visual_projection",)),
        under("multi_modal_projector", "media.image.project", row("linear_1", "first"), row("linear_2", "second")),
        *under("language_model", "", llama_rows("lm")),
    ]


def _tower(r: Row) -> Row:
    names = tuple(name.removeprefix("vision_model.") for name in r.theirs)
    older = tuple(f"vision_tower.vision_model.{name}" for name in names)
    return dataclasses.replace(r, theirs=tuple(f"vision_tower.{name}" for name in names), also=(older,))


def around(c: Any) -> dict[str, Any]:
    """The keys of processor_config.json beside the steps, which must agree with the model."""
    return {
        "processor_class": "LlavaProcessor",
        "patch_size": c.image.patch,
        "vision_feature_select_strategy": "full" if c.cls else "default",
        "num_additional_image_tokens": 1,
    }
