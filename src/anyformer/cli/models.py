"""Models on the command line; `data.models.find` says what MODEL means."""

from __future__ import annotations

import sys
import time
from typing import Any

from anyformer.core import pages
from anyformer.data.models import find


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
