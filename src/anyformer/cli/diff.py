"""show what differs between two models or architectures"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyformer.cli import models, plain
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer diff llama qwen2"


def diff(
    one: str,
    other: str,
    *,
    size: str | None = None,
    other_size: str | None = None,
    json: bool = False,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Prints where the recipes of two models differ: first how they are built, then numbers alone.

    Args:
        one: an architecture (no weights are made), a directory, a .gguf file, a hub id, or real weights by name.
        other: what it is compared with, likewise.
        size: of the first architecture, e.g. 7b; tiny by default.
        other_size: of the second one.
        json: as JSON.
        task: read another class of both, e.g. none for hidden states alone.
        ignore: keys of the files of both that are read as if they were not there.
    """
    from anyformer.explain.diff import differences

    both = (models.shape(name, s, task, ignore).recipe for name, s in ((one, size), (other, other_size)))
    differing = differences(*both)
    if json:
        print(plain.dump([vars(d) for d in differing]))
        return
    sections = []
    for title, sizes in (("built differently", False), ("of another size", True)):
        if rows := [(d.path, _cut(d.one), _cut(d.other)) for d in differing if d.size is sizes]:
            sections.append(f"{title}\n" + plain.table([("", one, other), *rows]))
    print("\n\n".join(sections) or f"{one} and {other} have the same recipe")


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(diff)


def run(args: Any) -> None:
    """Does it."""
    diff(**pick(args, diff))
