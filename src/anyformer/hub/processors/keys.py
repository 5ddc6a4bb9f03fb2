"""The keys of image processors: one table for each type, read in both directions, see `hub.tables.config`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.value import nearest
from anyformer.hub.formats.guard import short
from anyformer.hub.tables.config import Lens, quiet

WIDEST = 1 << 14  # pixels of an edge
CLASS = "names the class of transformers that joins it with a tokenizer"


@dataclass(frozen=True)
class Habits:
    """Defaults of absent keys for a type of image processor.

    Attributes:
        square: a `size` that is one number is height and width; else the shorter edge.
        side: a second name of `size`, or None.
        more: keys that only this type has.
    """

    square: bool
    resample: int
    rgb: bool
    crop: bool
    side: str | None = None
    more: tuple[Lens, ...] = ()


def _only(name: str, *values: Any) -> Lens:
    """A key that is accepted only with the values that this processor has anyway."""

    def get(content: Mapping[str, Any]) -> dict[str, Any]:
        if content.get(name) not in (None, *values):
            wanted = " or ".join(map(str, values or [None]))
            raise ValueError(f"{name!r} is {short(content[name])}; here it can be {wanted}")
        return {}

    return Lens((name,), (), get, lambda p: {}, "states the only way supported here")


KINDS = {
    "ViTImageProcessor": Habits(square=True, resample=2, rgb=False, crop=False),
    "CLIPImageProcessor": Habits(square=False, resample=3, rgb=True, crop=True),
    "Qwen2VLImageProcessor": Habits(square=False, resample=3, rgb=True, crop=False),
    "DPTImageProcessor": Habits(square=True, resample=3, rgb=False, crop=False),
    "DetrImageProcessor": Habits(square=False, resample=2, rgb=False, crop=False),
    "IdeficsImageProcessor": Habits(
        square=True, resample=3, rgb=True, crop=False, side="image_size", more=(_only("image_num_channels", 3),)
    ),
}


def known() -> str:
    return f"known are {', '.join(KINDS)}"


def kind_of(content: Mapping[str, Any], default: str | None) -> str:
    """The type of processor; its older and "Fast" names mean the same steps.

    Raises:
        ValueError: for an unknown type, or if neither the file nor the model names one.
    """
    name = content.get("image_processor_type") or content.get("feature_extractor_type") or default
    if name is None:
        raise ValueError(f"it lacks 'image_processor_type', which gives its keys their meaning; {known()}")
    if "auto_map" in content:
        raise ValueError("'auto_map' names code in the folder, and such code is never run")
    plain = str(name).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if plain not in KINDS:
        raise ValueError(f"'image_processor_type' is {short(name)}{nearest(plain, list(KINDS))}; {known()}")
    return plain


def entries(kind: str) -> tuple[Lens, ...]:
    """The keys of a type, in both directions."""
    habits = KINDS[kind]
    names = ("do_resize", "size", "resample", "default_to_square", *([habits.side] if habits.side else []))

    def size(content: Mapping[str, Any]) -> dict[str, Any]:
        resample = content.get("resample")
        if not _flag(content, "do_resize", True):
            return {"size": None, "resample": habits.resample if resample is None else resample}
        whole = _flag(content, "default_to_square", habits.square)
        sizes = [_size(n, content[n], whole) for n in ("size", habits.side) if n and content.get(n) is not None]
        if len(set(sizes)) > 1:
            raise ValueError(f"'size' and {habits.side!r} are names of one value, and are {sizes[0]} and {sizes[1]}")
        return {
            "size": sizes[0] if sizes else _size("size", None, whole),
            "resample": habits.resample if resample is None else _whole("resample", resample, 0, 5),
        }

    def put_size(p: Any) -> dict[str, Any]:
        if p.size is None:
            return {"do_resize": False}
        if isinstance(p.size, int):
            return {"do_resize": True, "size": {"shortest_edge": p.size}, "resample": p.resample}
        return {"do_resize": True, "size": _pair(p.size), "resample": p.resample}

    def crop(content: Mapping[str, Any]) -> dict[str, Any]:
        cut = _flag(content, "do_center_crop", habits.crop)
        return {"crop_size": _size("crop_size", content.get("crop_size"), True) if cut else None}

    def put_crop(p: Any) -> dict[str, Any]:
        if p.crop_size is not None:
            return {"do_center_crop": True, "crop_size": _pair(p.crop_size)}
        return {"do_center_crop": False} if habits.crop else {}

    def put_rgb(p: Any) -> dict[str, Any]:
        return {} if p.convert_rgb == habits.rgb else {"do_convert_rgb": p.convert_rgb}

    return (
        Lens(("image_processor_type", "feature_extractor_type"), ("kind",), lambda content: {"kind": kind},
             lambda p: {"image_processor_type": p.kind}),
        Lens(("do_convert_rgb",), ("convert_rgb",),
             lambda content: {"convert_rgb": _flag(content, "do_convert_rgb", habits.rgb)}, put_rgb),
        Lens(names, ("size", "resample"), size, put_size),
        Lens(("do_center_crop", "crop_size"), ("crop_size",), crop, put_crop),
        *_NUMBERS, *_NOTHING, *habits.more,
    )  # fmt: skip


def _scale(content: Mapping[str, Any]) -> dict[str, Any]:
    if not _flag(content, "do_rescale", True):
        return {"rescale_factor": None}
    value = content.get("rescale_factor")
    return {"rescale_factor": 1 / 255 if value is None else _number("rescale_factor", value, above=0.0)}


def _put_scale(p: Any) -> dict[str, Any]:
    if p.rescale_factor is None:
        return {"do_rescale": False}
    return {"do_rescale": True, "rescale_factor": p.rescale_factor}


def _normal(content: Mapping[str, Any]) -> dict[str, Any]:
    if not _flag(content, "do_normalize", True):
        return {"image_mean": None, "image_std": None}
    return {"image_mean": _channels(content, "image_mean"), "image_std": _channels(content, "image_std", 0.0)}


def _put_normal(p: Any) -> dict[str, Any]:
    if p.image_mean is None or p.image_std is None:
        return {"do_normalize": False}
    return {"do_normalize": True, "image_mean": list(p.image_mean), "image_std": list(p.image_std)}


_NUMBERS = (
    Lens(("do_rescale", "rescale_factor"), ("rescale_factor",), _scale, _put_scale),
    Lens(("do_normalize", "image_mean", "image_std"), ("image_mean", "image_std"), _normal, _put_normal),
)
_NOTHING = (
    _only("do_pad", False), _only("pad_size"), _only("data_format", "channels_first"), _only("input_data_format"),
    _only("image_seq_length"),
    quiet("processor_class", "_processor_class", why=CLASS),
    quiet("transformers_version", "_name_or_path", "_valid_processor_keys", why="records how the file was made"),
    quiet("device", "return_tensors", "disable_grouping", why="changes how it is computed, not the numbers"),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ values


def _flag(content: Mapping[str, Any], name: str, default: bool) -> bool:
    value = content.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name!r} is {short(value)}; expected true or false")
    return default if value is None else value


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name!r} is {short(value)}; expected a whole number from {least} to {most}")
    return value


def _number(name: str, value: Any, above: float = -math.inf) -> float:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not above < value < 1e30 or value < -1e30:
        raise ValueError(f"{name!r} is {short(value)}; expected a number{'' if above else ' above 0'}")
    return float(value)


def _channels(content: Mapping[str, Any], name: str, above: float = -math.inf) -> tuple[float, ...]:
    """One number a channel."""
    value = content.get(name)
    if value is None:
        raise ValueError(f"it lacks {name!r}, which has no default: another model's value would be a silent error")
    if not isinstance(value, list):
        return (_number(name, value, above),) * 3
    if len(value) not in (1, 3):
        raise ValueError(f"{name!r} has {len(value)} numbers; expected one a channel: 1 or 3")
    return tuple(_number(name, v, above) for v in value)


def _size(name: str, value: Any, square: bool) -> Any:
    """(height, width), or an int, the shorter edge."""
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        return tuple(_whole(f"{name}.{k}", value[k], 1, WIDEST) for k in ("height", "width"))
    if isinstance(value, dict) and set(value) == {"shortest_edge"} and name == "size":
        return _whole("size.shortest_edge", value["shortest_edge"], 1, WIDEST)
    if isinstance(value, list) and len(value) == 2:
        return tuple(_whole(name, v, 1, WIDEST) for v in value)
    if isinstance(value, int):
        edge = _whole(name, value, 1, WIDEST)
        return (edge, edge) if square else edge
    forms = "a number, or height and width" + (", or shortest_edge" if name == "size" else "")
    raise ValueError(f"{name!r} is {short(value)}; expected {forms}")


def _pair(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}
