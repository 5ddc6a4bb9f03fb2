"""Keys that Qwen2's files share: layers with a window, and rotary positions on three axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyformer.hub.tables.config import Lens
from anyformer.hub.tables.rope import NAMES, rope

FIRST = 28  # of files that do not say from which layer on there is a window


def _get_window(config: Mapping[str, Any]) -> dict[str, Any]:
    """The window of a config: an optional `layer_types` overrides `max_window_layers`, as in transformers."""
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
    first = FIRST if config.get("max_window_layers") is None else config["max_window_layers"]
    near, wide = "sliding_attention", "full_attention"
    depth, types = config["num_hidden_layers"], config.get("layer_types")

    def kinds(first: int) -> list[str]:
        return [wide if window is None or i < first else near for i in range(depth)]

    if types is not None and types != kinds(first):
        first = types.index(near) if isinstance(types, list) and near in types else depth
        if types != kinds(first):
            raise ValueError(
                f"config key 'layer_types' is {types!r}; of {depth} layers this page supports {wide!r} in the lower "
                f"ones and, where 'use_sliding_window' is true and there is a 'sliding_window', {near!r} in all above "
                "them"
            )
    return {"window": window, "window_from": first}


def _put_window(c: Any) -> dict[str, Any]:
    return {
        "use_sliding_window": c.window is not None,
        "sliding_window": c.window,
        "max_window_layers": c.window_from,
    }


WINDOW = Lens(
    ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"), ("window", "window_from"),
    _get_window, _put_window,
)  # fmt: skip


HEAD_DIM = Lens(
    ("head_dim",),
    ("head_dim",),
    lambda c: {"head_dim": c.get("head_dim")},  # null is not valid there
    lambda c: {} if c.head_dim is None else {"head_dim": c.head_dim},
)


def _no_window(config: Mapping[str, Any]) -> dict[str, Any]:
    if (window := _get_window(config)["window"]) is not None:
        raise ValueError(f"'use_sliding_window' is true, of {window} tokens; this page has full attention only")
    return {}


NO_WINDOW = Lens(WINDOW.names, (), _no_window, lambda c: {"use_sliding_window": False}, "no layer has a window")


def _get_axes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sections stand beside the other words; older files call the type "mrope"."""
    words, sections = dict(config), None
    for name in ("rope_scaling", "rope_parameters"):
        inner = dict(config.get(name) or {})
        sections = inner.pop("mrope_section", sections)
        words[name] = {k: "default" if k in ("type", "rope_type") and v == "mrope" else v for k, v in inner.items()}
    found = rope(theta=1e6).get(words)
    if found["scaling"] is not None:
        raise ValueError(f"'rope_parameters' or 'rope_scaling' scales by {found['scaling']}; this page does not")
    if sections is not None and not (isinstance(sections, list | tuple) and all(type(n) is int for n in sections)):
        raise ValueError(f"'mrope_section' is {sections!r}; expected three numbers of pairs: time, row, column")
    return {"theta": found["theta"], "sections": tuple(sections or (16, 24, 24))}


def _put_axes(hyper: Any) -> dict[str, Any]:
    words = {"rope_theta": hyper.theta, "rope_type": "default", "mrope_section": list(hyper.sections)}
    return {"rope_parameters": words}


AXES = Lens(NAMES, ("theta", "sections"), _get_axes, _put_axes)
