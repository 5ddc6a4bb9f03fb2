"""An index by its folder: its encoder is the one that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anyformer.data.models import find
from anyformer.hub import load
from anyformer.know.encoder import Encoder
from anyformer.know.searching import Searcher
from anyformer.know.store import FILE, Store


def is_index(place: str) -> bool:
    """True if there is an index in this folder."""
    return (Path(place).expanduser() / FILE).is_file()


def opened(folder: str, model: Any = None) -> Searcher:
    """An index, ready to be searched.

    Args:
        model: its encoder, if that is loaded already.

    Raises:
        FileNotFoundError: without an index there, or without its encoder. ValueError: if its encoder has changed.
    """
    place = Path(folder).expanduser()
    store = Store(place)
    name = store.meta("encoder")
    store.close()
    if name is None:
        raise ValueError(
            f"{place} is an index that nothing has been written to: `anyformer index FOLDER --out {place}`"
        )
    if model is None:
        model = load(find(name))
    return Searcher(place, Encoder(model, name))
