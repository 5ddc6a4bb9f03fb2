"""turn texts or pictures into vectors, or rank them by likeness to a query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick
from anyformer.cli.texts import items_of

EXAMPLE = 'anyformer embed minilm "A cat sleeps." "Stocks fell." --query "Where is the kitten?"'


def embed(
    model: str,
    text: list[str],
    *,
    query: str | None = None,
    out: str | None = None,
    batch: int = 32,
    prompt: str | None = None,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints one vector an item as JSON; with a query, the items by their likeness to it.

    Args:
        model: a directory, a .gguf file, a hub id, or real weights by name.
        text: the texts; the name of a .txt file, or - for standard input: a text in each line; a .jsonl, .csv or
            .parquet file: the text of each row. For a model of pictures their files. A model of both (CLIP) takes names
            of files that are there for pictures, all else for texts.
        query: rank the items by cosine similarity to this one instead: a text, or the file of a picture.
        out: write the vectors to this .npy file (items x width, float32) instead of printing them.
        batch: items that are embedded at once.
        prompt: the name of what the model's files put in front of the texts; their default if left out.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    import numpy as np

    from anyformer.generate import embed as vectors

    if out is not None and Path(out).suffix != ".npy":
        raise ValueError(f"--out {out}: vectors are written in NumPy's format; use a name that ends in .npy")
    loaded = models.load(model, text=False, task=task, ignore=ignore)
    names, items = items_of(loaded, text)
    embedded = vectors(loaded, items, batch=batch, prompt=prompt)  # (N, D)
    if out is not None:
        np.save(out, embedded.float().cpu().numpy())
        print(f"wrote {out}: {embedded.shape[0]} x {embedded.shape[1]}, float32")
    if query is not None:
        wanted = items_of(loaded, [query])[1]
        if len(wanted) > 1:
            raise ValueError(f"--query {query}: expected one text or picture; this file has {len(wanted)} texts")
        scores = ranked(vectors(loaded, wanted), embedded, names)
        print(plain.table((f"{score:+.3f}", line) for score, line in scores))
    elif out is None:
        print(plain.dump([{"text": t, "vector": v} for t, v in zip(names, embedded.tolist(), strict=True)]))


def ranked(query: Any, vectors: Any, texts: list[str]) -> list[tuple[float, str]]:
    """(cosine similarity, text), the most alike first. Shapes: query (1, D), vectors (N, D)."""
    from torch.nn import functional as F

    scores = F.cosine_similarity(query.float(), vectors.float())  # (N,)
    return sorted(zip(scores.tolist(), texts, strict=True), reverse=True)


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(embed)


def run(args: Any) -> None:
    """Does it."""
    embed(**pick(args, embed))
