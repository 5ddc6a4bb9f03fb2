"""Writing a model: in its published format if that can express the model, else in our own, always as a Hugging Face
directory."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.core import pages
from anyformer.hub.choose import of_diffusers
from anyformer.hub.formats.guard import atomic_write, read_json
from anyformer.hub.formats.safetensors import DIFFUSERS, MODEL, write_safetensors
from anyformer.hub.load import NATIVE, WRITTEN, around_of
from anyformer.hub.noising import write_noising
from anyformer.hub.pooling import write_pooling
from anyformer.hub.processors import write_processor
from anyformer.hub.tables import config as tables
from anyformer.hub.tables.weights import COUNTER, RUNNING, Hub, links
from anyformer.parts.factored import KEY as FACTORS
from anyformer.parts.factored import described_factors
from anyformer.parts.quantised import KEY as GRIDS
from anyformer.parts.quantised import described

VERSION = "0.35.0"  # of diffusers, whose layout and keys are written


def save(
    model: Any,
    folder: str | Path,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    weights: Mapping[str, Tensor] | None = None,
) -> str:
    """Writes config.json, the weights as safetensors, and the tokenizer and the processor if there are any.

    A model that a page describes is written in its published format, and opens in `transformers`; any other one
    (`recipe.but(...)`) with its recipe and our names. Each file is written under a temporary name and renamed when
    complete; the weights change with one rename. A model of the same kind in the folder is replaced.

    Args:
        max_shard_bytes: a larger model is written in several files.
        overwrite: also replace another model.
        weights: written instead of the model's own, by the same names: whole tensors where it holds shards.

    Returns:
        The format: a `model_type`, "anyformer" for our own; a `_class_name` of diffusers.

    Raises:
        ValueError: if the folder holds a model with another config, and not `overwrite`; for a model with adapters or
            int8 parts, with advice.
        OSError: if the disk is full or the folder cannot be written; its old content is intact.
    """
    folder = Path(folder)
    for path, module in model.named_modules():
        if hint := getattr(module, "unsaved", None):
            raise ValueError(f"{path} is a {type(module).__name__}, which model files cannot describe; {hint}")
    why = own_format_because(model)
    if why and model.page is not None and pages.page(model.page).module.HUBS:
        warnings.warn(f"written in anyformer's own format, which transformers does not open: {why}", stacklevel=2)
    config, tensors = _words(model, model.state_dict() if weights is None else weights)
    _check_other(folder, config, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder, tensors, max_shard_bytes, DIFFUSERS if of_diffusers(config) else MODEL)
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
    published = hub_for(model)
    write_processor(folder, model.processor, None if published is None else around_of(published[0], model))
    write_noising(folder, model.noising)
    if generation := (model.origin or {}).get("generation"):
        atomic_write(folder / "generation_config.json", _json(generation))
    write_pooling(folder, (model.origin or {}).get("pooling", {}))
    atomic_write(folder / "config.json", _json(config))
    return config["_class_name"] if of_diffusers(config) else config["model_type"]


def _words(model: Any, ours: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of the new files."""
    origin = model.origin or {}
    published = hub_for(model)
    tensors: dict[str, Tensor] = {}
    if published is None:
        tensors = dict(ours)
        config: dict[str, Any] = {"model_type": NATIVE, "recipe": model.recipe.to_json()}
        config |= {GRIDS: grids} if (grids := described(model)) else {}
        config |= {FACTORS: thin} if (thin := described_factors(model)) else {}
    else:
        hub, architecture, config = published
        for link in links(hub.weights(model.config), ours):
            tensors |= {} if link.tied else link.write(ours)
        if (hub.name, hub.format) == (origin.get("hub"), origin.get("format")):
            tensors = as_it_came(tensors, origin)
        if architecture in hub.bare:
            tensors = {k.removeprefix(hub.base): v for k, v in tensors.items()}
        config |= _names(hub, architecture, origin.get("config", {}))
        type_keys = [k for k in ("dtype", "torch_dtype") if k in config] or ["dtype"] * (
            hub.format == "hf" and not origin.get("config")
        )
        config.update(
            dict.fromkeys(type_keys, str(stored_type(ours))[6:])
        )  # the type of these weights, not of those read
    names = origin.get("classes") or list(origin.get("config", {}).get("id2label", {}).values())
    unnamed = bool(origin.get("classes")) and "id2label" not in config  # answers of LXMERT
    apart = published is None or published[0].format == "diffusers" or unnamed  # no names in their config's table
    if names and (apart or len(config.get("id2label", ())) == len(names)):
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    if model.tokenizer is not None and not origin.get("config"):
        config.update({name: ids for name, ids in model.tokenizer.ids().items() if config.get(name) is None})
    return dict(sorted(config.items())), tensors


def _names(hub: Hub, architecture: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """The keys by which a reader of the format finds the class: `model_type`, `architectures` …"""
    if hub.format == "diffusers":
        return {"_class_name": architecture, "_diffusers_version": before.get("_diffusers_version", VERSION)}
    return {"model_type": hub.name, "architectures": [architecture]}


def as_it_came(tensors: dict[str, Tensor], origin: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors under the older names of the file that was read, with its counters of batches."""
    names, counters = origin.get("names", {}), origin.get("counters", {})
    counted = {n: torch.tensor(v) for n, v in counters.items() if n.removesuffix(COUNTER) + RUNNING in tensors}
    return {names.get(name, name): tensor for name, tensor in (tensors | counted).items()}


def stored_type(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The floating type of most values: a config names one, even if a buffer or a norm has another."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        counts[tensor.dtype] += tensor.numel() if tensor.is_floating_point() else 0
    return counts.most_common(1)[0][0]


def hub_for(model: Any) -> tuple[Hub, str, dict[str, Any]] | None:
    """The map that can express this model, the name of its architecture, and its config; None if only our own format
    can."""
    published = _published(model)
    return None if isinstance(published, str) else published


def own_format_because(model: Any) -> str | None:
    """The reason why a model is written in anyformer's own format; None if it is written in a published one."""
    published = _published(model)
    return published if isinstance(published, str) else None


def _published(model: Any) -> tuple[Hub, str, dict[str, Any]] | str:
    """The result of `hub_for`, or the reason why no published format can express this model."""
    if described(model):
        return "its matrices are in few bits"
    if described_factors(model):
        return "its matrices are products of thin ones"
    if model.page is None:
        return "no page describes it"
    page = pages.page(model.page)
    if page.recipe(model.config) != model.recipe:
        return f"its recipe differs from that of {model.page}"
    origin, why = model.origin or {}, list[str]()
    hubs = [h for h in page.module.HUBS if h.format in WRITTEN]
    for hub in sorted(hubs, key=lambda h: h.name != origin.get("hub")):  # the format that was read comes first
        words = origin.get("config", {}) if hub.name == origin.get("hub") else {}
        for architecture, fixed in hub.architectures.items():
            try:
                config = tables.write(hub.config, model.config, fixed, words)
                _check_back(hub, page, config | _names(hub, architecture, {}), fixed, model)
                return hub, architecture, config
            except ValueError as error:
                why.append(f"{hub.name}, {architecture}: {error}")
    return "; ".join(why) or f"{model.page} has no published format"


def _check_back(hub: Hub, page: pages.Page, config: dict[str, Any], fixed: Mapping[str, Any], model: Any) -> None:
    """Raises ValueError, naming the hyperparameter, if a written config is read back as another value."""
    back, _ = tables.read(hub.config, config, page.config, fixed)
    if page.recipe(back) == model.recipe:
        return  # the hyperparameters differ in spelling only (None for dim / heads)
    for f in dataclasses.fields(back):
        ours, again = getattr(model.config, f.name), getattr(back, f.name)
        if ours is not None and ours != again:
            raise ValueError(f"{f.name}={ours!r} would be read as {again!r}")


def _check_other(folder: Path, config: dict[str, Any], overwrite: bool) -> None:
    if overwrite or not (folder / "config.json").exists():
        return
    there = read_json(folder / "config.json")
    if not isinstance(there, dict) or there == config:
        return
    differs = sorted(k for k in {*there, *config} if there.get(k) != config.get(k))
    if differs:
        keys = ", ".join(differs[:5])
        raise ValueError(
            f"{folder} holds another model (its config differs in {keys}); choose another, or overwrite=True"
        )


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()
