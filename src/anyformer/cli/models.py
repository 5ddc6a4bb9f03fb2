"""Models on the command line; `data.models` has the meaning of MODEL."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anyformer.core.listing import names
from anyformer.data.models import find, kind


def load(name: str, text: bool = True, task: str | None = None, ignore: Sequence[str] = ()) -> Any:
    """The model of that name, ready to use; says on stderr what was loaded.

    Args:
        text: it must have a tokenizer. task, ignore: as of `anyformer.load`.
    """
    import anyformer as af

    start = time.perf_counter()
    chosen: dict[str, Any] = {} if task is None else {"task": task}
    place = find(name)
    model = af.load(place, ignore=ignore, **chosen)
    if text and model.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer, which this verb needs; add its tokenizer.json to the folder")
    count = sum(p.numel() for p in model.parameters())
    took = time.perf_counter() - start
    shown = place if Path(name).is_dir() else name  # of a run, which checkpoint
    print(f"{shown}: {model.page or 'own recipe'}, {count:,} parameters, loaded in {took:.1f} s", file=sys.stderr)
    return model


def shape(
    name: str,
    size: str | None,
    task: str | None = None,
    ignore: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """The model of that name; of an architecture, a recipe or a config.json alone, only its shapes, on the meta device.

    Args:
        overrides: hyperparameters of an architecture that differ from those of the size.

    Raises:
        ValueError: for a size or overrides of what is no architecture. Others as `find`.
    """
    from anyformer.core import pages
    from anyformer.core.recipe import Recipe
    from anyformer.hub.formats.guard import read_json
    from anyformer.hub.load import outline

    form = kind(name)
    if form == "architecture":
        page = pages.page(name)
        config = page.at(size or "tiny", **({} if task is None else {"task": task}), **(overrides or {}))
        model = pages.empty(page.recipe(config))
        model.page, model.config = name, config
        return model
    if size is not None or overrides:
        option = "size" if size is not None else "overrides"
        raise ValueError(f"--{option} is for an architecture ({', '.join(names())}); {name!r} is not one")
    if form == "recipe":
        if task is not None or ignore:
            raise ValueError(f"task and ignore are for published files, and {name} is a recipe; change it instead")
        return pages.empty(Recipe.from_json(read_json(Path(name).expanduser())))
    if form == "config":
        return outline(name, ignore=ignore, **({} if task is None else {"task": task}))
    return load(name, False, task, ignore)


def outline(
    name: str,
    size: str | None,
    task: str | None = None,
    ignore: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """The model of that name as `shape`, of a folder too: its weights are not read. A GGUF file is."""
    from anyformer.hub.load import outline as read

    if kind(name) != "weights" or size is not None or overrides:
        return shape(name, size, task, ignore, overrides)
    place = find(name)
    if not Path(place).is_dir() or not (Path(place) / "config.json").exists():
        return load(name, False, task, ignore)
    return read(place, ignore=ignore, **({} if task is None else {"task": task}))
