"""The names of tensors and settings in files of EnCodec, alone and inside MusicGen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from anyformer.hub.tables.config import ONE_VALUE, Lens, key
from anyformer.hub.tables.weights import Row, row, under


def convolution(theirs: str, ours: str) -> list[Row]:
    """Rows of one convolution, of either norm."""
    return under(
        theirs,
        ours,
        row("conv", ""),
        row("conv.parametrizations.weight.original0", "gain", also="conv.weight_g"),
        row("conv.parametrizations.weight.original1", "direction", also="conv.weight_v"),
        row("norm", "norm"),
    )


def block(theirs: str, ours: str) -> list[Row]:
    """Rows of a residual block. Their layers without weights have numbers, too."""
    inner = {"block.1": "first", "block.3": "second", "shortcut": "shortcut"}
    return [r for name, mine in inner.items() for r in convolution(f"{theirs}.{name}", f"{ours}.{mine}")]


def lstm(theirs: str, ours: str) -> list[Row]:
    """Rows of an LSTM of any number of layers."""
    names = [f"{kind}_{side}_l{{j}}" for kind in ("weight", "bias") for side in ("ih", "hh")]
    return under(f"{theirs}.lstm", ours, *(row(name, name) for name in names))


def codec_rows(ratios: int, residual: int) -> list[Row]:
    """Rows of a codec of so many stages with so many residual blocks each."""
    rows, at = convolution("encoder.layers.0", "embed.first"), 1
    for stage in range(ratios):
        for i in range(residual):
            rows += block(f"encoder.layers.{at + i}", f"embed.stages.{stage}.blocks.{i}")
        at += residual + 1
        rows += convolution(f"encoder.layers.{at}", f"embed.stages.{stage}.scale")
        at += 1
    rows += [*lstm(f"encoder.layers.{at}", "embed.lstm"), *convolution(f"encoder.layers.{at + 2}", "embed.last")]
    rows += [*convolution("decoder.layers.0", "decoder.first"), *lstm("decoder.layers.1", "decoder.lstm")]
    at = 2
    for stage in range(ratios):
        rows += convolution(f"decoder.layers.{at + 1}", f"decoder.stages.{stage}.scale")
        at += 2
        for i in range(residual):
            rows += block(f"decoder.layers.{at + i}", f"decoder.stages.{stage}.blocks.{i}")
        at += residual
    rows += convolution(f"decoder.layers.{at + 1}", "decoder.last")
    book = {"embed": "table", "embed_avg": "sums", "cluster_size": "counts", "inited": "ready"}
    return rows + [row(f"quantizer.layers.{{i}}.codebook.{a}", f"codes.books.{{i}}.{b}") for a, b in book.items()]


def frame_rate(rate: int, ratios: tuple[int, ...]) -> int:
    """Frames a second, rounded up."""
    return math.ceil(rate / math.prod(ratios))


def book_count(rate: int, ratios: tuple[int, ...], codes: int, bandwidths: tuple[float, ...]) -> int:
    """The books that the largest bandwidth takes."""
    if not bandwidths or codes < 2 or codes & (codes - 1):
        raise ValueError(f"bandwidths has at least one number, and codes is a power of 2; got {bandwidths} and {codes}")
    return int(1000 * bandwidths[-1] // (frame_rate(rate, ratios) * (codes - 1).bit_length()))


def _derived(name: str, value: Any) -> Lens:
    """A key that follows from the others: compared when read, written back as it came."""

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        wanted = value(config)
        if config.get(name) is not None and config[name] != wanted:
            raise ValueError(f"config key {name!r} is {config[name]!r}; the other keys make it {wanted!r}")
        return {}

    return Lens((name,), (), get, lambda c: {}, ONE_VALUE)


_USUAL: dict[str, tuple[str, Any]] = {  # their key: ours, and the value of an absent one
    "hidden_size": ("dim", 128),
    "sampling_rate": ("rate", 24000),
    "audio_channels": ("channels", 1),
    "target_bandwidths": ("bandwidths", (1.5, 3.0, 6.0, 12.0, 24.0)),
    "normalize": ("normalise", False),
    "num_filters": ("filters", 32),
    "num_residual_layers": ("residual", 1),
    "upsampling_ratios": ("ratios", (8, 5, 4, 2)),
    "kernel_size": ("kernel", 7),
    "last_kernel_size": ("last_kernel", 7),
    "residual_kernel_size": ("residual_kernel", 3),
    "dilation_growth_rate": ("growth", 2),
    "use_causal_conv": ("causal", True),
    "compress": ("compress", 2),
    "num_lstm_layers": ("lstm", 2),
    "trim_right_ratio": ("trim", 1.0),
    "codebook_size": ("codes", 1024),
    "use_conv_shortcut": ("shortcut", True),
}
NORM = {"weight_norm": "weight", "time_group_norm": "group"}
PAD = {"reflect": "reflect", "constant": "constant", "replicate": "replicate"}


def _of(config: Mapping[str, Any], name: str) -> Any:
    value = config.get(name)
    return _USUAL[name][1] if value is None else value


def _rate(config: Mapping[str, Any]) -> int:
    return frame_rate(_of(config, "sampling_rate"), tuple(_of(config, "upsampling_ratios")))


def _books(config: Mapping[str, Any]) -> int:
    ratios, bandwidths = tuple(_of(config, "upsampling_ratios")), tuple(_of(config, "target_bandwidths"))
    return book_count(_of(config, "sampling_rate"), ratios, _of(config, "codebook_size"), bandwidths)


def _maybe(theirs: str, ours: str) -> Lens:
    """A number, or null."""
    return Lens((theirs,), (ours,), lambda c: {ours: c.get(theirs)}, lambda h: {theirs: getattr(h, ours)})


def _width(config: Mapping[str, Any]) -> dict[str, Any]:
    wide, dim = config.get("codebook_dim"), _of(config, "hidden_size")
    if wide not in (None, dim):
        raise ValueError(f"config key 'codebook_dim' is {wide!r}; the codes stand for vectors of hidden_size = {dim!r}")
    return {}


CONFIG = (
    *(key(theirs, ours, default=usual) for theirs, (ours, usual) in _USUAL.items()),
    key("norm_type", "norm", NORM, default="weight"),
    key("pad_mode", "pad", PAD, default="reflect"),
    _maybe("chunk_length_s", "chunk"),
    _maybe("overlap", "overlap"),
    Lens(("codebook_dim",), (), _width, lambda c: {"codebook_dim": c.dim}, ONE_VALUE),
    _derived("hop_length", lambda c: math.prod(_of(c, "upsampling_ratios"))),
    _derived("frame_rate", _rate),
    _derived("codebook_nbits", lambda c: (_of(c, "codebook_size") - 1).bit_length()),
    _derived("num_quantizers", _books),
)
