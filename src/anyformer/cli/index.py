"""make the documents of a folder searchable; again, only what has changed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from anyformer.cli import models
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer index docs --out idx"
SHOWN = 20  # files of a reason


def index(
    folder: str,
    *,
    out: str,
    model: str = "minilm",
    megabytes: float = 20.0,
    batch: int = 16,
    precision: Literal["fp32", "bf16"] = "fp32",
    vectors: str | None = None,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints the files that were read and those that were not, with the reason, passages, and tokens lost.

    Args:
        folder: txt, md, rst, html, py and pdf files in it are read; pdf needs `pip install 'anyformer[know]'`.
        out: the folder of the index, which `ask`, and `--tools search=` of `chat` and `serve`, take.
        model: the encoder that gives the vectors: a directory, a hub id, or real weights by name.
        megabytes: larger files are skipped.
        batch: passages that are embedded at once.
        precision: of the vectors; bf16 is quicker where the processor computes it, and off by about 0.001.
        vectors: where they are searched: exact, all in memory; faiss, or faiss:FACTORY such as faiss:HNSW32; qdrant, in
            the folder of the index, or qdrant:URL, a server. By default as before, of a new index exact.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.know import Encoder, index

    encoder = Encoder(models.load(model, task=task, ignore=ignore), model, precision)
    done = index(Path(folder), Path(out).expanduser(), encoder, megabytes, batch, _progress, vectors)
    for path, why in done.skipped[:SHOWN]:
        print(f"skipped {path}: {why}")
    if len(done.skipped) > SHOWN:
        print(f"skipped {len(done.skipped) - SHOWN} more")
    for path, note in done.notes:
        print(f"{path}: {note}")
    for old, new in done.renamed:
        print(f"renamed {old}: {new}")
    print(
        f"{len(done.read)} files read, {len(done.unchanged)} unchanged, {len(done.renamed)} renamed, "
        f"{len(done.removed)} removed, {len(done.skipped)} skipped\n"
        f"{out}: {done.passages:,} passages of at most {encoder.limit} tokens, {done.tokens:,} tokens, {done.lost} lost"
        + (f"; {done.unknown:,} words are unknown to {model}, and found by their letters alone" if done.unknown else "")
        + f"; {done.seconds:.1f} s"
    )
    if done.lost:
        raise ValueError(f"{done.lost} tokens have no vector")


def _progress(done: int, files: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {files} files", end="\n" if done == files else "", file=sys.stderr, flush=True)


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(index)


def run(args: Any) -> None:
    """Does it."""
    index(**pick(args, index))
