"""Models on the command line; `data.models.find` says what MODEL means."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer.core import pages
from anyformer.data.models import find


def load(name: str, text: bool = True, task: str | None = None, ignore: Sequence[str] = ()) -> Any:
    """The model of that name, ready to use; says on stderr what was loaded.

    Args:
        text: it must have a tokenizer. task, ignore: as of `anyformer.load`.
    """
    import anyformer as af

    start = time.perf_counter()
    chosen: dict[str, Any] = {} if task is None else {"task": task}
    model = af.load(find(name), ignore=ignore, **chosen)
    if text and model.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer, and this verb reads text; put its tokenizer.json into the folder")
    count = sum(p.numel() for p in model.parameters())
    took = time.perf_counter() - start
    print(f"{name}: {model.page or 'own recipe'}, {count:,} parameters, loaded in {took:.1f} s", file=sys.stderr)
    return model


def shape(name: str, size: str | None, task: str | None = None, ignore: Sequence[str] = ()) -> Any:
    """The model of that name; of an architecture, or of a config.json alone, only its shapes, on the meta device.

    Raises:
        ValueError: for a size of what is no architecture. Others as `find`.
    """
    if name in pages.names():
        page = pages.page(name)
        config = page.at(size or "tiny", **({} if task is None else {"task": task}))
        model = pages.empty(page.recipe(config))
        model.page, model.config = name, config
        return model
    if size is not None:
        raise ValueError(f"--size goes with an architecture ({', '.join(pages.names())}), and {name!r} is none")
    if name.endswith(".json") and Path(name).expanduser().is_file():
        from anyformer.hub.load import outline

        return outline(name, ignore=ignore, **({} if task is None else {"task": task}))
    return load(name, False, task, ignore)
