"""The meaning of MODEL, one for every verb: a path, real weights by name, a hub id."""

from __future__ import annotations

from pathlib import Path

from anyformer.core import pages
from anyformer.core.recipe import nearest
from anyformer.data import sources


def find(name: str) -> Path | str:
    """The path of a MODEL: one that exists, that of real weights of `anyformer ls` (fetched once); a hub id as it is.

    Raises:
        ValueError: if it names an architecture, which has no weights.
        FileNotFoundError: with the nearest names, if there is nothing of that name.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name in sources.SOURCES:
        return sources.get(name)
    if name in pages.names():
        raise ValueError(
            f"{name!r} is an architecture, without weights: `anyformer train --model {name}` trains one; "
            f"real weights by name are {', '.join(sources.SOURCES)}"
        )
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix not in (".gguf", ".json"):
        return name  # owner/name: `anyformer.load` asks huggingface_hub
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    near = [str(path.parent / p.name) if path.parent != Path() else p.name for p in beside]
    hint = nearest(name, [*near, *sources.SOURCES, *pages.names()])
    raise FileNotFoundError(f"no model {name!r}{hint}; `anyformer ls` lists what there is")
