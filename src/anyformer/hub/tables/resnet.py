"""Keys and tensors of ResNet backbones, in the form of transformers and in that of timm.

A config names a backbone in one of two ways: a dictionary `backbone_config`, or timm's name of a network, as in the
first published files. A file is written back with the names that it had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from anyformer.core.check import shown
from anyformer.core.value import nearest
from anyformer.hub.tables.config import Lens, Line, key, must, quiet
from anyformer.hub.tables.nested import Within
from anyformer.hub.tables.weights import Row, row

TIMM = ("use_timm_backbone", "backbone", "backbone_kwargs", "use_pretrained_backbone", "num_channels", "dilation")
BASIC, WIDE = (64, 128, 256, 512), (256, 512, 1024, 2048)
NETWORKS = {  # timm's names
    "resnet18": ("basic", BASIC, (2, 2, 2, 2)),
    "resnet34": ("basic", BASIC, (3, 4, 6, 3)),
    "resnet50": ("bottleneck", WIDE, (3, 4, 6, 3)),
    "resnet101": ("bottleneck", WIDE, (3, 4, 23, 3)),
    "resnet152": ("bottleneck", WIDE, (3, 8, 36, 3)),
}
RETURNED = "the stages that a backbone returns; the last one is read"


def _last(config: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError unless the last stage is returned last."""
    count = len(config.get("depths") or (3, 4, 6, 3))
    for name, last in (("out_features", f"stage{count}"), ("out_indices", count)):
        value = config.get(name)
        if value is not None and (not value or value[-1] != last):
            raise ValueError(f"config key {name!r} is {shown(value)}; this page reads the last stage, {last!r}")
    return {}


KEYS = (
    must("model_type", "resnet", absent=False),
    key("embedding_size", "stem", default=64),
    key("hidden_sizes", "widths", default=WIDE),
    key("depths", "depths", default=(3, 4, 6, 3)),
    key("layer_type", "kind", {"bottleneck": "bottleneck", "basic": "basic"}, default="bottleneck"),
    must("hidden_act", "relu"),
    key("downsample_in_first_stage", "first_stride", default=False),
    key("downsample_in_bottleneck", "early", default=False),
    key("num_channels", "channels", default=3),
    Lens(("out_features", "out_indices"), (), _last, lambda c: {"out_features": [f"stage{len(c.depths)}"]}, RETURNED),
    quiet("stage_names", why="follows from 'depths'"),
)


def _dilated(config: Mapping[str, Any], where: str) -> bool:
    """The last stage looks at every second cell (DC5): `dilation` beside timm's name of a network, `output_stride` in a
    config of timm's kind.

    Raises:
        ValueError: for other values, or where transformers would not read it.
    """
    wide, nested = config.get("dilation", False), config.get("backbone_config")
    if not isinstance(wide, bool):
        raise ValueError(f"config key {where + 'dilation'!r}: expected true or false, got {shown(wide)}")
    if nested is None:
        return wide
    stride = nested.get("output_stride") if nested.get("model_type") == "timm_backbone" else None
    if stride not in (None, 16, 32):
        raise ValueError(f"config key {where}backbone_config.output_stride: expected 16 or 32, got {shown(stride)}")
    if wide and stride != 16:
        raise ValueError(
            f"config key {where + 'dilation'!r} is True, which transformers does not read beside this backbone_config; "
            "remove it, or name a network of timm's as 'backbone'"
        )
    return bool(stride == 16)


class Backbone(Within):
    """The entry for a ResNet: `backbone_config`, or timm's name of it among the keys of the model, which alone goes
    with `dilation` (DC5)."""

    def values(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        name = self.fields[0]
        net = super().values(config, where)[name]
        return {name: dataclasses.replace(net, dilated=_dilated(config, where))}

    def hyperparameters(self) -> set[str]:
        return super().hyperparameters() | {f"{self.fields[0]}.dilated"}

    def words(self, hyper: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
        before = {name: origin[name] for name in self.names if name in origin}
        if before and self.values(origin, "")[self.fields[0]] == getattr(hyper, self.fields[0]):
            return before
        if getattr(hyper, self.fields[0]).dilated:
            raise ValueError(f"{self.fields[0]}.dilated is written for files that had timm's name of a network alone")
        return {**super().words(hyper, {}), "use_timm_backbone": False, "num_channels": hyper.net.channels}

    def lines(self, config: Mapping[str, Any], where: str) -> list[Line]:
        nested = config.get("backbone_config") is not None
        lines = super().lines(config, where) if nested else []
        detail = "with backbone_config, which says it all" if nested else self.fields[0]
        rest = [name for name in self.names if name in config and not (nested and name == "backbone_config")]
        return lines + [Line(where + n, config[n], "ignored" if nested else "used", detail) for n in rest]

    def _inner(self, config: Mapping[str, Any], where: str) -> list[tuple[str, Mapping[str, Any], str]]:
        nested = config.get("backbone_config")
        if isinstance(nested, Mapping) and nested.get("model_type") == "timm_backbone":
            return [("backbone_config", self._named(nested.get("backbone"), config, where), f"{where}backbone_config.")]
        if nested is None:
            return [("backbone", self._named(config.get("backbone", "resnet50"), config, where), f"{where}backbone.")]
        return super()._inner({"backbone_config": nested}, where)

    def _named(self, name: Any, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The keys of a network with timm's name."""
        plain = str(name).partition(".")[0]
        if plain not in NETWORKS:
            raise ValueError(
                f"config key {where + 'backbone'!r} is {shown(name)}{nearest(plain, list(NETWORKS))}; this page "
                f"supports {', '.join(NETWORKS)}"
            )
        kind, widths, depths = NETWORKS[plain]
        channels = (config.get("backbone_kwargs") or {}).get("in_chans", config.get("num_channels", 3))
        return {
            "model_type": "resnet", "layer_type": kind, "hidden_sizes": widths, "depths": depths,
            "num_channels": channels,
        }  # fmt: skip


def rows(theirs: str, ours: str, depths: Sequence[int], kind: str) -> list[Row]:
    """The rows of a ResNet, each with timm's names as older ones."""
    units = 3 if kind == "bottleneck" else 2
    made = _unit(theirs, ours, "embedder.embedder", "stem", ("conv1", "bn1"))
    for stage in range(len(depths)):
        there, here, old = f"encoder.stages.{stage}.layers.{{i}}", f"stages.{stage}.{{i}}", f"layer{stage + 1}.{{i}}"
        for i in range(units):
            names = (f"{old}.conv{i + 1}", f"{old}.bn{i + 1}")
            made += _unit(theirs, ours, f"{there}.layer.{i}", f"{here}.units.{i}", names)
        names = (f"{old}.downsample.0", f"{old}.downsample.1")
        made += _unit(theirs, ours, f"{there}.shortcut", f"{here}.shortcut", names)
    return made


def _unit(theirs: str, ours: str, there: str, here: str, old: tuple[str, str]) -> list[Row]:
    return [
        row(f"{theirs}.{there}.convolution", f"{ours}.{here}.conv", also=f"{theirs}.{old[0]}"),
        row(f"{theirs}.{there}.normalization", f"{ours}.{here}.norm", also=f"{theirs}.{old[1]}"),
    ]
