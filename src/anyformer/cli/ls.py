"""list the architectures with their sizes, and real weights to try."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from anyformer.cli import plain
from anyformer.cli.options import Parser, pick
from anyformer.core.listing import entry, names
from anyformer.data import sources

EXAMPLE = "anyformer ls --json"


def ls(*, json: bool = False) -> None:
    """Prints every architecture, its sizes with their parameter counts, and the real weights that have a short name.

    Args:
        json: the same for machines.
    """
    listed = listing()
    print(plain.dump(listed) if json else text(listed))


def listing() -> dict[str, list[dict[str, Any]]]:
    """All architectures and all named weights, as plain dictionaries."""
    return {
        "architectures": [asdict(entry(name)) for name in names()],
        "weights": [
            {name: getattr(s, name) for name in ("name", "what", "download", "licence", "package", "version")}
            for s in sources.SOURCES.values()
        ],
    }


def text(listed: dict[str, list[dict[str, Any]]]) -> str:
    """The listing for a terminal."""
    lines = ["architectures (anyformer inspect NAME --size SIZE)"]
    width = max(len(page["name"]) for page in listed["architectures"])
    for page in listed["architectures"]:
        sizes = "  ".join(f"{name} {_short(count)}" for name, count in page["sizes"].items())
        lines += [f"  {page['name']:<{width}} {page['summary']}", f"  {'':<{width}} {sizes}"]
    rows = [(w["name"], f"{w['download'] / 1e6:.0f} MB", w["what"], w["licence"]) for w in listed["weights"]]
    return "\n".join([*lines, "", "real weights by name (fetched on first use)", plain.table(rows, right=(1,))])


def _short(count: int) -> str:
    """124439808 -> 124M"""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * scale:  # 999.9 M is 1 B
            return f"{count / scale:.3g}{unit}"
    return str(count)


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(ls)


def run(args: Any) -> None:
    """Does it."""
    ls(**pick(args, ls))
