"""read any model and write it as a Hugging Face directory, a GGUF file, or a file for ONNX Runtime or ExecuTorch."""

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
    to: Literal["folder", "gguf", "onnx", "pte"] | None = None,
    dtype: Dtype | None = None,
    overwrite: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> str:
    """Loads a model and saves it as a Hugging Face directory or a file of another runtime; says what was written.

    Args:
        source: a directory, a .gguf file, a hub id, or real weights by name.
        dest: the directory or the file to write.
        to: folder, gguf, onnx or pte; by default a name that ends in .gguf is a GGUF file, which llama.cpp opens, one
            in .onnx an ONNX file with the MatMulNBits of ONNX Runtime, of a model that `compress --zeros whole` made,
            and one in .pte a file in float32 for one row of 64 tokens, which ExecuTorch runs on phones.
        dtype: of the written weights. A directory: as in the source by default (of a GGUF file: float32). A GGUF file:
            float16 by default; q8_0, q4_0 and q4_1 are blocks of 8 and 4 bits.
        overwrite: also replace another model that stands there.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.

    Returns:
        The model_type, "gguf", "onnx" or "pte", that was written.

    Raises:
        ValueError: if another model stands there, and not `overwrite`; naming what the file cannot hold.
    """
    import torch

    from anyformer import hub
    from anyformer.hub.save import own_format_because

    path, ending = models.find(source), Path(dest).suffix.removeprefix(".")
    kind = to or (ending if ending in ("gguf", "onnx", "pte") else "folder")
    gguf = kind == "gguf"
    if kind in ("onnx", "pte") and dtype is not None:
        raise ValueError(f"--dtype {dtype}: a .{kind} file has a type of its own; leave it out")
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
    if kind in ("onnx", "pte"):
        from anyformer.edge import nbits, pte

        if Path(dest).exists() and not overwrite:
            raise ValueError(f"{dest} exists: choose another file, or --overwrite to replace it")
        found = nbits.write(model, Path(dest)) if kind == "onnx" else pte.write(model, Path(dest))
        print(f"wrote {dest}  {plain.size(Path(dest).stat().st_size)}\n{found}")
        return kind
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
