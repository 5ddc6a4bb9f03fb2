"""read any model and write it as a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from anyformer.cli import models, show
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer convert smollm2 runs/smollm2 --dtype bfloat16"

Dtype = Literal["float32", "float16", "bfloat16"]


def convert(
    source: str,
    dest: str | Path,
    *,
    dtype: Dtype | None = None,
    overwrite: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> str:
    """Loads a model and saves it as a Hugging Face directory; says what was written.

    Args:
        source: a directory, a .gguf file, a hub id, or real weights by name.
        dest: the directory to write.
        dtype: of the written weights; as in the source by default (GGUF: float32).
        overwrite: also replace another model that stands there.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.

    Returns:
        The model_type that was written.

    Raises:
        ValueError: if the directory holds another model, and not `overwrite`.
    """
    import torch

    from anyformer import hub
    from anyformer.hub.save import own_format_because

    path = models.find(source)
    wanted = None if dtype is None else getattr(torch, dtype)
    changes: dict[str, Any] = {} if task is None else {"task": task}
    model = hub.load(path, dtype=wanted, ignore=ignore, **changes)
    print(f"read {path}: {model.ledger.summary()}")
    kind = hub.save(model, dest, overwrite=overwrite)
    for file in sorted(Path(dest).iterdir()):
        print(f"wrote {file}  {show.size(file.stat().st_size)}")
    why = own_format_because(model)
    print(f"model_type {kind}: opens in {f'anyformer alone: {why}' if why else 'anyformer and transformers'}")
    return kind


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(convert)


def run(args: Any) -> None:
    """Does it."""
    convert(**pick(args, convert))
