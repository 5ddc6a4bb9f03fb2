"""Keys and tensors of Qwen2.5-Omni's files: a text model of Qwen2, a tower of pictures and videos, one of sounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.hub.formats.guard import short
from anyformer.hub.tables.config import ACTS, Lens, key, must, quiet, square, write
from anyformer.hub.tables.llama import llama_rows
from anyformer.hub.tables.nested import Within
from anyformer.hub.tables.qwen2 import AXES, NO_WINDOW
from anyformer.hub.tables.weights import Split, row, under


def text(dim: int, depth: int, heads: int, kv_heads: int, hidden: int, eps: float) -> tuple[Lens, ...]:
    """The keys of the text model, with their defaults."""
    return (
        key("hidden_size", "dim", default=dim),
        key("num_hidden_layers", "depth", default=depth),
        key("num_attention_heads", "heads", default=heads),
        key("num_key_value_heads", "kv_heads", default=kv_heads),
        key("intermediate_size", "hidden", default=hidden),
        key("hidden_act", "act", ACTS, default="silu"),
        key("vocab_size", "vocab", default=152064),
        key("max_position_embeddings", "context", default=32768),
        key("rms_norm_eps", "eps", default=eps),
        key("attention_dropout", "attention_dropout", default=0.0),
        AXES,
        NO_WINDOW,
        quiet("tie_word_embeddings", why="the word one level above decides, as in transformers"),
    )


TEXT = text(3584, 28, 28, 4, 18944, 1e-6)
LARGE = text(8192, 80, 64, 8, 29568, 1e-5)  # of Qwen2.5-VL: those of its size 72B


def _full(config: Mapping[str, Any]) -> dict[str, Any]:
    layers = config.get("fullatt_block_indexes", (7, 15, 23, 31))
    depth = config.get("depth", 32)
    if not isinstance(layers, list | tuple) or any(type(i) is not int or not i >= 0 for i in layers):
        raise ValueError(f"'fullatt_block_indexes' is {short(layers)}; expected numbers of layers")
    return {"full": tuple(i for i in sorted(set(layers)) if i < depth)}


AXIAL = {"rope_type": "axial", "rope_theta": 10000.0}


def _axial(config: Mapping[str, Any]) -> dict[str, Any]:
    words = config.get("rope_parameters")
    if words is not None and {**AXIAL, **words} != AXIAL:
        raise ValueError(f"'rope_parameters' is {short(words)}; this page supports only {AXIAL}")
    return {}


VIEW = (
    key("depth", "depth", default=32),
    key("hidden_size", "dim", default=3584, also=("embed_dim",)),
    key("hidden_act", "act", ACTS, default="silu"),
    key("intermediate_size", "hidden", default=3420),
    key("num_heads", "heads", default=16),
    must("in_channels", 3),
    must("in_chans", 3),
    square("patch_size", "patch", default=14),
    key("spatial_merge_size", "merge", default=2),
    square("temporal_patch_size", "frames", default=2),
    key("window_size", "window", default=112),
    Lens(("fullatt_block_indexes",), ("full",), _full, lambda c: {"fullatt_block_indexes": list(c.full)}),
    Lens(("rope_parameters",), (), _axial, lambda c: {"rope_parameters": AXIAL}, "has the only supported value"),
    quiet("out_hidden_size", why="must be the width of the text"),
    quiet("spatial_patch_size", why="repeats patch_size"),
    quiet("tokens_per_second", why="the places of a second: in Qwen2.5-VL the rate, in Omni unread"),
)  # fmt: skip


def _places(config: Mapping[str, Any]) -> dict[str, Any]:
    most, window = config.get("max_source_positions", 1500), config.get("n_window", 100)
    if isinstance(most, int) and isinstance(window, int) and most < window:
        raise ValueError(f"'max_source_positions' is {most}, below the {window} places of a chunk ('n_window')")
    return {}


SOUND = (
    key("num_mel_bins", "mels", default=128),
    key("encoder_layers", "depth", default=32, also=("num_hidden_layers",)),
    key("encoder_attention_heads", "heads", default=20),
    key("encoder_ffn_dim", "hidden", default=5120),
    key("d_model", "dim", default=1280),
    key("activation_function", "act", ACTS, default="gelu"),
    key("n_window", "window", default=100),
    Lens(("max_source_positions",), (), _places, lambda c: {}, "places are computed; at least those of a chunk"),
    must("scale_embedding", False),
    quiet("output_dim", why="must be the width of the text"),
    quiet("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop",
          why="no published code applies it in this tower"),
)  # fmt: skip


@dataclass(frozen=True)
class Tower(Within):
    """The entry for a tower, whose vectors have the width of the text, `usual` where a file does not say it."""

    width: str = ""
    usual: int = 3584

    def values(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        made = super().values(config, where)
        text = config.get("text_config")
        wanted = (text if isinstance(text, Mapping) else config).get("hidden_size", self.usual)
        said = (config.get(self.names[0]) or {}).get(self.width, 3584)
        if said != wanted:
            raise ValueError(f"'{self.names[0]}.{self.width}' is {short(said)}, and the text is {short(wanted)} wide")
        return made

    def words(self, hyper: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
        (inner,) = super().words(hyper, origin).values()
        return {self.names[0]: inner | {self.width: hyper.text.dim}}


def tower(theirs: str, ours: str, cls: type, width: str, *entries: Lens) -> Lens:
    """As `within`; `width`: their key for the width of the tower's vectors."""
    return Tower((theirs,), (ours,), dict, dict, cls=cls, entries=entries, width=width)


def _around(ours: str, first: str, last: str, usual: tuple[int, int]) -> Lens:
    """The ids in front of a medium and behind it."""

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        said = zip((config.get(first), config.get(last)), usual, strict=True)
        ids = tuple(default if value is None else value for value, default in said)
        if any(type(i) is not int or i < 0 for i in ids):
            raise ValueError(f"{first!r} and {last!r} are {ids}; expected ids of tokens")
        return {ours: ids}

    return Lens((first, last), (ours,), get, lambda c: dict(zip((first, last), getattr(c, ours), strict=True)))


def _token(kind: str, ours: str, usual: int, theirs: str = "") -> Lens:
    """The id of a placeholder."""
    other = f"{kind}_token_id"
    theirs = theirs or f"{kind}_token_index"

    def put(c: Any) -> dict[str, Any]:
        if getattr(c, ours) >= c.text.vocab:
            raise ValueError(
                f"{ours}={getattr(c, ours)} cannot be written: transformers looks it up, and the table has "
                f"{c.text.vocab} rows"
            )
        return {theirs: getattr(c, ours)}

    return dataclasses.replace(key(theirs, ours, default=usual, also=() if theirs == other else (other,)), put=put)


IDS = (
    _token("image", "image_token", 151655),
    _token("video", "video_token", 151656),
    _token("audio", "sound_token", 151646),
    _around("view_around", "vision_start_token_id", "vision_end_token_id", (151652, 151653)),
    _around("sound_around", "audio_start_token_id", "audio_end_token_id", (151647, 151648)),
)


@dataclass(frozen=True)
class Language(Within):
    """The entry for the text model: `text_config`, or in older files the same keys one level up."""

    def _inner(self, config: Mapping[str, Any], where: str) -> list[tuple[str, Mapping[str, Any], str]]:
        name = self.names[0]
        if config.get(name) is not None:
            return super()._inner(config, where)
        return [(name, {key: config[key] for key in self.names[1:] if key in config}, where)]

    def words(self, hyper: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
        if origin and origin.get(self.names[0]) is None:
            inner = {key: origin[key] for key in self.names[1:] if key in origin}
            return write(self.entries, getattr(hyper, self.fields[0]), {}, inner)
        return super().words(hyper, origin)


def language(ours: str, cls: type) -> Lens:
    """As `within("text_config", …)`, also for files that have its keys beside the others."""
    names = tuple(name for entry in LARGE[:-1] for name in entry.names)
    return Language(("text_config", *names), (ours,), dict, dict, cls=cls, entries=LARGE)


def _rate(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"rate": (config.get("vision_config") or {}).get("tokens_per_second", 4)}


@dataclass(frozen=True)
class Seeing(Tower):
    """The tower of Qwen2.5-VL, whose dictionary also says how many places a second of a video has."""

    def values(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        return super().values(config, where) | _rate(config)

    def words(self, hyper: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
        (inner,) = super().words(hyper, origin).values()
        return {self.names[0]: inner | {"tokens_per_second": hyper.rate}}

    def hyperparameters(self) -> set[str]:
        return super().hyperparameters() | {"rate"}


def seeing(ours: str, cls: type) -> Lens:
    """The entry for that tower."""
    return Seeing(
        ("vision_config",), (ours, "rate"), dict, dict, cls=cls, entries=VIEW, width="out_hidden_size", usual=8192
    )


SEEING_IDS = (
    _token("image", "image_token", 151655, "image_token_id"),
    _token("video", "video_token", 151656, "video_token_id"),
    IDS[3],
)
NOTHING = quiet("user_token_id", "seconds_per_chunk", "ignore_index", "vision_token_id",
                why="for preparing texts, or for sound inside a video")  # fmt: skip


def weights(c: Any, joined: bool = False) -> list[Any]:
    """The rows of all parts. `joined`: q, k and v of the tower of pictures are one tensor."""
    apart = [row("qkv", ("q", "k", "v"), Split())] if joined else [row(name, name) for name in "qkv"]
    attention = [*apart, row("proj", "o")]
    view: list[Any] = [
        row("patch_embed.proj", "tower.embed.project"),
        under(
            "blocks.{i}", "tower.blocks.{i}", row("norm1", "norm.mixer"), row("norm2", "norm.ffn"),
            under("attn", "mixer.inside", *attention),
            under("mlp", "ffn", *(row(f"{name}_proj", name) for name in ("gate", "up", "down"))),
        ),
        under("merger", "project", row("ln_q", "norm"), row("mlp.0", "first"), row("mlp.2", "second")),
    ]  # fmt: skip
    sound: list[Any] = [
        row("conv1", "tower.embed.first"),
        row("conv2", "tower.embed.second"),
        under(
            "layers.{i}", "tower.blocks.{i}",
            row("self_attn_layer_norm", "norm.mixer"), row("final_layer_norm", "norm.ffn"),
            under("self_attn", "mixer", *(row(f"{n}_proj", n) for n in "qkv"), row("out_proj", "o")),
            row("fc1", "ffn.up"), row("fc2", "ffn.down"),
        ),
        row("ln_post", "project.norm"), row("proj", "project.second"), row("audio_bos_eos_token", "project.unread"),
    ]  # fmt: skip
    media = [
        under("visual", "media.image", *view),
        *([] if c.sound is None else [under("audio_tower", "media.sound", *sound)]),
    ]
    return [*llama_rows("lm"), *media]
