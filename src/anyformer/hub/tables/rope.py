"""Rotary positions in published configs: `rope_parameters` as written today, `rope_theta` and `rope_scaling` as
written before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from anyformer.core.value import nearest
from anyformer.hub.tables.config import Lens
from anyformer.parts.positions import Dynamic, Linear, Llama3, LongRope, Scaling, YaRN

NAMES = ("rope_parameters", "rope_theta", "rope_scaling")
KINDS = ("full_attention", "sliding_attention")  # of layers
_FROM = ("factor", "original_max_position_embeddings")
TYPES = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (*_FROM, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": (*_FROM, "attention_factor", "short_factor", "long_factor"),
    "llama3": (*_FROM, "low_freq_factor", "high_freq_factor"),
}


def rope(theta: float = 10000.0) -> Lens:
    """The entry of a config table for the hyperparameters `theta` and `scaling`; `theta` here is the
    default."""

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        parameters = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        base = parameters.pop("rope_theta", None) or config.get("rope_theta") or theta
        kind = parameters.pop("rope_type", None) or parameters.get("type") or "default"
        parameters.pop("type", None)
        if kind not in TYPES:
            raise ValueError(
                f"rope type {kind!r} is unknown{nearest(str(kind), list(TYPES))}; expected one of {', '.join(TYPES)}"
            )
        if unknown := sorted(set(parameters) - set(TYPES[kind])):
            raise ValueError(
                f"rope type {kind!r} has no parameter {unknown[0]!r}; it has {', '.join(TYPES[kind]) or 'none'}"
            )
        return {"theta": float(base), "scaling": _scaling(kind, parameters, config.get("max_position_embeddings"))}

    def put(hyper: Any) -> dict[str, Any]:
        return {"rope_parameters": {"rope_theta": hyper.theta, **_words(hyper.scaling)}}

    return Lens(NAMES, ("theta", "scaling"), get, put)


def two_ropes(far: tuple[str, float], near: tuple[str, float], stretches: bool) -> Lens:
    """The entry for `theta` of layers with full attention and `local_theta` of those with a window: `rope_parameters`
    has keys for each kind of layer.

    Args:
        far, near: the older key of each theta, and its default.
        stretches: also for `scaling` of the former; without it, any scaling is refused.
    """
    fields = ("theta", "local_theta", *(["scaling"] if stretches else []))

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        both = config.get("rope_parameters") or {}
        if strange := {k: v for k, v in both.items() if k not in KINDS}:
            raise ValueError(f"'rope_parameters' is for {KINDS[0]!r} and {KINDS[1]!r}; got {strange}")
        wide = {**config, "rope_theta": config.get(far[0]), "rope_parameters": both.get(KINDS[0])}
        local = {"rope_theta": config.get(near[0]), "rope_parameters": both.get(KINDS[1])}
        ropes = [rope(far[1]).get(wide), rope(near[1]).get(local)]
        for kind, scaling in zip(KINDS[stretches:], (f["scaling"] for f in ropes[stretches:]), strict=True):
            if scaling is not None:
                raise ValueError(
                    f"'rope_parameters' or 'rope_scaling' scales {kind!r} by {scaling}, which this page does not "
                    "support"
                )
        values = {"theta": ropes[0]["theta"], "local_theta": ropes[1]["theta"], "scaling": ropes[0]["scaling"]}
        return {name: values[name] for name in fields}

    def put(hyper: Any) -> dict[str, Any]:
        wide = {"rope_theta": hyper.theta, **_words(hyper.scaling if stretches else None)}
        local = {"rope_theta": hyper.local_theta, **_words(None)}
        return {"rope_parameters": dict(zip(KINDS, (wide, local), strict=True))}

    names = dict.fromkeys(("rope_parameters", "rope_scaling", far[0], near[0]))
    return Lens(tuple(names), fields, get, put)


def layer_kinds(older: tuple[str, ...], usual: int, first: bool) -> Lens:
    """The entry for `every`: one of so many layers has full attention, the others a window.

    Args:
        older: older keys for the number. usual: the default.
        first: it is the first of so many, else the last.
    """

    def kinds(every: int, depth: int) -> list[str]:
        return [KINDS[(i if first else i + 1) % every != 0] for i in range(depth)]

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        depth, listed = config["num_hidden_layers"], config.get("layer_types")
        every = next((config[n] for n in older if config.get(n)), usual)
        if listed is not None and len(listed) != depth:
            raise ValueError(f"config key 'layer_types' names {len(listed)} layers, and num_hidden_layers is {depth}")
        if listed not in (None, kinds(every, depth)):
            full_layers = [i for i, kind in enumerate(listed) if kind == KINDS[0] and (i or not first)]
            every = (full_layers[0] if full_layers else depth) + (not first)
            if listed != kinds(every, depth):
                raise ValueError(
                    f"config key 'layer_types' is {listed!r}; this page supports {KINDS[0]!r} in every n-th layer only"
                )
        return {"every": every}

    return Lens(("layer_types", *older), ("every",), get, lambda c: {"layer_types": kinds(c.every, c.depth)})


def _scaling(kind: str, p: Mapping[str, Any], context: int | None) -> Scaling | None:
    """Their keys as one of our scalings; `context` is the length that the model accepts, stretch included."""

    def need(name: str) -> Any:
        if p.get(name) is None:
            raise ValueError(f"rope type {kind!r} lacks its parameter {name!r}")
        return p[name]

    if kind == "default":
        return None
    if kind == "linear":
        return Linear(need("factor"))
    if context is None and (kind == "dynamic" or p.get("original_max_position_embeddings") is None):
        raise ValueError(f"rope type {kind!r} needs 'max_position_embeddings'")
    if kind == "dynamic":
        return Dynamic(need("factor"), int(context or 0))
    trained = p.get("original_max_position_embeddings") or int(context or 0)
    factor: float = p["factor"] if p.get("factor") is not None else (context or trained) / trained
    if kind == "llama3":
        return Llama3(need("factor"), need("low_freq_factor"), need("high_freq_factor"), trained)
    if kind == "yarn":
        fast, slow = p.get("beta_fast") or 32.0, p.get("beta_slow") or 1.0
        attention, truncate = p.get("attention_factor"), p.get("truncate", True)
        return YaRN(factor, trained, fast, slow, attention, p.get("mscale"), p.get("mscale_all_dim"), truncate)
    attention = p.get("attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return LongRope(tuple(need("short_factor")), tuple(need("long_factor")), trained, attention)


def _words(s: Scaling | None) -> dict[str, Any]:
    """One of our scalings as their keys."""
    words: dict[str, Any]
    match s:
        case None:
            return {"rope_type": "default"}
        case Linear():
            return {"rope_type": "linear", "factor": s.factor}
        case Dynamic():
            return {"rope_type": "dynamic", "factor": s.factor}
        case Llama3():
            words = {"factor": s.factor, "low_freq_factor": s.low, "high_freq_factor": s.high}
        case YaRN():
            words = {"factor": s.factor, "beta_fast": s.fast, "beta_slow": s.slow, "attention_factor": s.attention}
            words |= {"mscale": s.mscale, "mscale_all_dim": s.mscale_all, "truncate": s.truncate}
        case LongRope():
            words = {"short_factor": list(s.short), "long_factor": list(s.long), "attention_factor": s.attention}
        case _:
            raise ValueError(f"the rotary scaling {s!r} has no published name")
    words = {"rope_type": type(s).__name__.lower(), "original_max_position_embeddings": s.trained, **words}
    return {k: v for k, v in words.items() if v is not None}
