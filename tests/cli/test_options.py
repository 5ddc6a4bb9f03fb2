"""What a command line says of options that hold names and values."""

from __future__ import annotations

from typing import Any

import pytest

from anyformer.cli.options import Parser, pick


def command(model: str, steps: int = 1, changes: dict[str, Any] | None = None) -> None:
    """A verb.

    Args:
        model: a name.
        steps: a number.
        changes: names and values.
    """


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("--changes.depth 6", {"depth": 6}),
        ("--changes.depth 6 --changes.heads 7", {"depth": 6, "heads": 7}),
        ("--changes.text.dim 32", {"text.dim": 32}),
        ("--changes.depth 6 --changes.text.dim 32 --changes.text.act a", {"depth": 6, "text.dim": 32, "text.act": "a"}),
        ("--changes.text.eps 1e-5 --changes.text.bias -1.5", {"text.eps": 1e-5, "text.bias": -1.5}),
        ("--changes.text.tied true --changes.image.sizes [1,2]", {"text.tied": True, "image.sizes": [1, 2]}),
        ("--changes.text.dim=32 --steps 3 --changes.blocks.*.ffn.hidden=2", {"text.dim": 32, "blocks.*.ffn.hidden": 2}),
        ("--steps 3", None),
    ],
)  # fmt: skip
def test_names_with_dots_are_all_kept(words, changes):
    parser = Parser("verb", "summary", "example")
    parser.add_function(command)
    found = pick(parser.parse_args(["llama", *words.split()]), command)
    assert found == {"model": "llama", "steps": 3 if "steps" in words else 1, "changes": changes}
