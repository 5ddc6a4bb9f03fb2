"""What a command line says of options that hold names and values."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import Any

import pytest

from anyformer.cli import VERBS, verb
from anyformer.cli.options import Parser, _plain, label, pick
from anyformer.cli.signatures import Unread, _evaluated, _Names, _read, read


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


@pytest.mark.parametrize("name", VERBS)
def test_every_option_is_shown_with_hyphens_and_read_with_underscores(name: str) -> None:
    parser = Parser(name, "", "")
    verb(name).options(parser)
    own = [option for option in parser.options() if option != "--print_config"]  # the parser's
    assert not [option for option in own if "_" in option]
    for option in (option for option in own if "-" in option[2:]):
        written = f"--{option[2:].replace('-', '_')}"
        assert parser._spelt(written) == option == parser._spelt(option)
        assert parser._spelt(f"{written}.a-b=c-d_e") == f"{option}.a_b=c-d_e"


def test_both_spellings_give_the_same() -> None:
    parser = Parser("generate", "", "")
    verb("generate").options(parser)
    spelt = [parser.parse_args(["m", "p", option, "3"]) for option in ("--max-new-tokens", "--max_new_tokens")]
    assert spelt[0] == spelt[1] and spelt[0].max_new_tokens == 3


@pytest.mark.parametrize("name", [n for n in VERBS if hasattr(verb(n), "CALL")])
def test_a_signature_read_from_source_is_that_of_the_function(name: str) -> None:
    module, _, function = verb(name).CALL.partition(":")
    source, live = _read(module, function), read(getattr(importlib.import_module(module), function))
    assert source.names == live.names
    assert [p.default for p in source.parameters] == [p.default for p in live.parameters]
    kinds = [[label(_plain(p.annotation)) for p in signature.parameters] for signature in (source, live)]
    assert kinds[0] == kinds[1]
    assert inspect.cleandoc(source.doc) == live.doc


def test_a_default_that_must_be_computed_is_read_from_the_function() -> None:
    with pytest.raises(Unread):
        _evaluated(ast.parse("Path('.')", mode="eval").body, _Names("anyformer.cli.texts"))


def test_a_mapping_of_tokens_is_read_as_json(cli, decoder):
    plain, biased = (
        cli("generate", decoder, "a", "--max-new-tokens", 1, *more)[1] for more in ((), ("--logit-bias", '{"98": 100}'))
    )
    assert biased == "ab\n" and plain != biased
