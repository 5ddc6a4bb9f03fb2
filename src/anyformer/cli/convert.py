"""read any model and write it as a Hugging Face directory, or as a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer convert smollm2 runs/smollm2 --dtype bfloat16"

Dtype = Literal["float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_1"]
BLOCKS = ("q8_0", "q4_0", "q4_1")  # of GGUF files alone


def convert(
    source: str,
    dest: str | Path,
    *,
    to: Literal["folder", "gguf"] | None = None,
    dtype: Dtype | None = None,
    overwrite: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> str:
    """Loads a model and saves it as a Hugging Face directory or a GGUF file; says what was written.

    Args:
        source: a directory, a .gguf file, a hub id, or real weights by name.
        dest: the directory or the file to write.
        to: folder or gguf; by default a name that ends in .gguf is a GGUF file, which llama.cpp opens.
        dtype: of the written weights. A directory: as in the source by default (of a GGUF file: float32). A GGUF file:
            float16 by default; q8_0, q4_0 and q4_1 are blocks of 8 and 4 bits.
        overwrite: also replace another model that stands there.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.

    Returns:
        The model_type, or "gguf", that was written.

    Raises:
        ValueError: if the directory holds another model, and not `overwrite`; naming what a GGUF file cannot hold.
    """
    import torch

    from anyformer import hub
    from anyformer.hub.save import own_format_because

    path, gguf = models.find(source), (to or ("gguf" if str(dest).endswith(".gguf") else "folder")) == "gguf"
    if dtype in BLOCKS and not gguf:
        raise ValueError(f"--dtype {dtype} is a format of GGUF files: add --to gguf, or choose float16")
    wanted = None if dtype is None or gguf else getattr(torch, dtype)
    changes: dict[str, Any] = {} if task is None else {"task": task}
    model = hub.load(path, dtype=wanted, ignore=ignore, **changes)
    print(f"read {path}: {model.ledger.summary()}")
    if gguf:
        hub.save_gguf(model, dest, dtype or "float16", overwrite=overwrite)
        print(f"wrote {dest}  {plain.size(Path(dest).stat().st_size)}")
        print("GGUF: opens in anyformer and llama.cpp")
        return "gguf"
    kind = hub.save(model, dest, overwrite=overwrite)
    for file in sorted(Path(dest).iterdir()):
        print(f"wrote {file}  {plain.size(file.stat().st_size)}")
    why = own_format_because(model)
    print(f"model_type {kind}: opens in {f'anyformer alone: {why}' if why else 'anyformer and transformers'}")
    return kind


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(convert)


def run(args: Any) -> None:
    """Does it."""
    convert(**pick(args, convert))
