"""The meaning of MODEL, one for every verb: an architecture, the file of a recipe, a config.json, a model directory, a
run, a GGUF file, real weights by name, a hub id."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

from anyformer.core.listing import names
from anyformer.core.value import nearest

MODEL, CONFIG = "model", "config.json"
Kind = Literal["architecture", "recipe", "config", "weights"]


def kind(name: str) -> Kind:
    """The kind of a MODEL: the first three have no weights. The file of a recipe has the key `part`."""
    if name in names():
        return "architecture"
    path = Path(name).expanduser()
    if path.suffix != ".json" or not path.is_file():
        return "weights"
    try:
        return "recipe" if "part" in json.loads(path.read_text(encoding="utf-8")) else "config"
    except (ValueError, TypeError):
        return "config"  # its reader raises the error


def find(name: str) -> Path | str:
    """The path of a MODEL: one that exists, the last model of a run's folder, that of real weights of `anyformer ls`
    (fetched once); a hub id is unchanged.

    Raises:
        ValueError: if it names an architecture, a recipe or a config.json, which have no weights.
        FileNotFoundError: with the nearest names, if there is nothing of that name.
    """
    from anyformer.data import sources  # not at the top: the help of a verb does not need it

    path = Path(name).expanduser()
    if name in names():
        here = f"; the folder here is ./{name}" if path.exists() else ""
        raise ValueError(
            f"{name!r} is an architecture, without weights: `anyformer train --model {name}` trains one; "
            f"real weights by name are {', '.join(sources.SOURCES)}{here}"
        )
    if kind(name) == "recipe":
        raise ValueError(f"{name} is a recipe, without weights: `anyformer train --model {name}` trains it")
    if kind(name) == "config":
        raise ValueError(f"{name} describes a model without weights; pass the folder that holds both")
    if path.exists():
        return last(path)
    if name in sources.SOURCES:
        return sources.get(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix not in (".gguf", ".json"):
        return name  # owner/name: `anyformer.load` asks huggingface_hub
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    near = [str(path.parent / p.name) if path.parent != Path() else p.name for p in beside]
    hint = nearest(name, [*near, *sources.SOURCES, *names()])
    raise FileNotFoundError(f"no model {name!r}{hint}; `anyformer ls` lists models")


def last(path: Path) -> Path:
    """The model of a run's folder: the merged one (`model`), else the newest checkpoint that is a model directory; any
    other path is unchanged."""
    if not path.is_dir() or (path / CONFIG).exists():
        return path
    if (path / MODEL / CONFIG).exists():
        return path / MODEL
    steps = [p for p in path.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name) and (p / CONFIG).exists()]
    return max(steps, key=lambda p: int(p.name[5:]), default=path)
