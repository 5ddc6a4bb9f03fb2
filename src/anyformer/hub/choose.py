"""The page and the map for a config.json: by its `model_type`, else by the class it names, else by its keys; for a
config of diffusers by its `_class_name`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyformer.core import pages
from anyformer.core.value import nearest
from anyformer.hub.tables import config as tables
from anyformer.hub.tables.weights import Hub

Known = tuple[pages.Page, Hub]
WHAT = {
    "hf": "model_type",
    "gguf": "architecture",
    "diffusers": "_class_name",
    "ct2": "kind",
}  # the key that names an architecture


def architecture(config: Mapping[str, Any]) -> str | None:
    """The class that a config names (the first of several), or None.

    Raises:
        ValueError: if `architectures` is not a list of names.
    """
    named = config.get("architectures") or config.get("_class_name") or []
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(n, str) for n in named):
        raise ValueError(f"config key 'architectures' is {named!r}; it must be a list of class names")
    return named[0] if named else None


def of_diffusers(config: Mapping[str, Any]) -> bool:
    """True for a config.json as diffusers writes it."""
    return "_class_name" in config and "model_type" not in config


def by_name(name: str, form: str) -> Known:
    """The page and the map of files of that `model_type` (form "hf"), GGUF architecture ("gguf"), class of
    diffusers ("diffusers"), or kind of CTranslate2 ("ct2").

    Raises:
        ValueError: with the nearest names, if there is none.
    """
    for own in _own(name, form):
        if name in _called(own[1]):
            return own
    known = {name: (page, hub) for page, hub in _every(form) for name in _called(hub)}
    if name not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise ValueError(
            f"no page reads the {WHAT[form]} {name!r}{nearest(name, list(known))}; pages read {listed}. "
            "docs/adding-an-architecture.md shows how to add one"
        )
    return known[name]


def by_config(config: Mapping[str, Any]) -> Known:
    """The page and the map for a config.json.

    Raises:
        ValueError: naming the `model_type`, if it is unknown; without one, if not exactly one page can read the keys.
    """
    kind, named = config.get("model_type"), architecture(config)
    if of_diffusers(config):
        return by_name(str(named), "diffusers")
    for known in _own(str(kind), "hf"):
        if named in known[1].architectures and kind in (known[1].name, *known[1].types):
            return known
    holds = [known for known in _every("hf") if named in known[1].architectures]
    for known in holds:
        if kind in (known[1].name, *known[1].types):
            return known
    if kind is not None:
        return by_name(str(kind), "hf")
    if len(holds) == 1:
        return holds[0]
    if named is not None:
        names = sorted(name for _, hub in _every("hf") for name in hub.architectures)
        raise ValueError(
            f"the config has no 'model_type', and no page reads its class {named!r}{nearest(named, names)}"
        )
    reads = [known for known in _every("hf") if _reads(known, config)]
    if len(reads) != 1:
        able = f"several pages can read its keys: {', '.join(hub.name for _, hub in reads)}" if reads else ""
        raise ValueError(
            f"the config has no 'model_type' and names no class, and {able or 'no page can read its keys'}; "
            "add the right 'model_type' to it"
        )
    return reads[0]


def implied(hub: Hub, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The hyperparameters that the named class implies; without a name, those of the map's first class.

    Raises:
        ValueError: naming the class, if the map has no such class.
    """
    named = architecture(config) or next(iter(hub.architectures), None)
    if named is None:
        return {}
    if named not in hub.architectures:
        known = list(hub.architectures)
        raise ValueError(
            f"the file holds a {named!r}{nearest(named, known)}, as its 'architectures' say; for {hub.name!r} "
            f"anyformer reads {', '.join(known)}"
        )
    return hub.architectures[named]


def _called(hub: Hub) -> tuple[str, ...]:
    """The names by which files of a map are found; for diffusers, class names."""
    return tuple(hub.architectures) if hub.format == "diffusers" else (hub.name,)


def _own(name: str, form: str) -> list[Known]:
    """The maps of the page of this name: most files are found there, and the other pages need not be imported."""
    page = pages.page(name) if name in pages.names() else None
    return [] if page is None else [(page, hub) for hub in page.module.HUBS if hub.format == form]


def _every(form: str) -> list[Known]:
    return [(page, hub) for page in pages.pages() for hub in page.module.HUBS if hub.format == form]


def _reads(known: Known, config: Mapping[str, Any]) -> bool:
    """True if this page can read all of these keys."""
    page, hub = known
    try:
        tables.read(hub.config, config, page.config, implied(hub, config))
    except (ValueError, TypeError):
        return False
    return True
