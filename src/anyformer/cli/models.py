"""What MODEL means on the command line."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from anyformer.core import pages
from anyformer.core.recipe import nearest
from anyformer.data import sources


def find(name: str) -> Path | str:
    """What a MODEL names: a path, the path of real weights of `anyformer ls` (fetched once), or a hub id as it is.

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
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix != ".gguf":
        return name  # owner/name: `anyformer.load` asks huggingface_hub
    near = [str(path.parent / p.name) if path.parent != Path() else p.name for p in _beside(path)]
    hint = nearest(name, [*near, *sources.SOURCES, *pages.names()])
    raise FileNotFoundError(f"no model {name!r}{hint}; `anyformer ls` lists what there is")


def load(name: str, text: bool = True) -> Any:
    """The model of that name, ready to use; says on stderr what was loaded.

    Args:
        text: it must have a tokenizer.
    """
    import anyformer as af

    start = time.perf_counter()
    model = af.load(find(name))
    if text and model.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer, and this verb reads text; put its tokenizer.json into the folder")
    count = sum(p.numel() for p in model.parameters())
    took = time.perf_counter() - start
    print(f"{name}: {model.page or 'own recipe'}, {count:,} parameters, loaded in {took:.1f} s", file=sys.stderr)
    return model


def shape(name: str, size: str | None) -> Any:
    """The model of that name; of an architecture only its shapes, on the meta device.

    Raises:
        ValueError: for a size of what is no architecture. Others as `find`.
    """
    if name in pages.names():
        page = pages.page(name)
        config = page.at(size or "tiny")
        model = pages.empty(page.recipe(config))
        model.page, model.config = name, config
        return model
    if size is not None:
        raise ValueError(f"--size goes with an architecture ({', '.join(pages.names())}), and {name!r} is none")
    return load(name, text=False)


def _beside(path: Path) -> list[Path]:
    """What lies in the folder where that path should be."""
    return sorted(path.parent.iterdir()) if path.parent.is_dir() else []
