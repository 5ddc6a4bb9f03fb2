"""From a typed function to the options of a command: names, types, defaults and help come from the function itself."""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import operator
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from anyformer.core.recipe import nearest


class Layout(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with types and defaults; the description keeps its lines, so that the example can be copied."""


class Parser(ArgumentParser):
    """The options of one verb. A mistake is one line with the nearest name, and exit code 2.

    Args:
        verb: its name. summary: what it does. example: a line that works as it stands.
    """

    def __init__(self, verb: str, summary: str, example: str):
        text = f"{summary}\n\nexample:\n  {example}"
        super().__init__(prog=f"anyformer {verb}", description=text, allow_abbrev=False, formatter_class=Layout)
        self.labels: dict[str, str] = {}
        every = self.add_argument_group("options of every verb")
        every.add_argument("--config", action="config", help="YAML file with options; those on the command line win")
        every.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_function(
        self,
        function: Callable[..., Any],
        skip: Sequence[str] = (),
        give: dict[str, Any] | None = None,
        like: Callable[..., Any] | None = None,
    ) -> None:
        """Adds the parameters of `function`: those without a default by place, the others by name.

        A `bool` that is False by default becomes a switch; a list of texts takes several words.

        Args:
            skip: parameters that the command does not offer.
            give: other defaults than the function's.
            like: another function, whose docstring explains what this one's leaves to it.
        """
        both = [docstring_parser.google.parse(f.__doc__ or "").params for f in (like, function) if f]
        docs = {p.arg_name: p.description for params in both for p in params}
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
            if name in skip:
                continue
            kind, default = parameter.annotation, (give or {}).get(name, parameter.default)
            self.labels[name], text = label(_plain(kind)), (docs.get(name) or "").replace("%", "%%")
            if kind is bool and default is False:
                self.add_argument(f"--{name}", action="store_true", help=text)
            elif default is inspect.Parameter.empty and _many(kind):
                self.add_argument(name, nargs="+", type=str, help=text)
            elif default is inspect.Parameter.empty:
                self.add_argument(name, type=_plain(kind), help=text)
            elif {bool, str} <= {*get_args(kind)}:  # `--resume` alone says true
                self.add_argument(f"--{name}", type=_plain(kind), nargs="?", const="true", default=default, help=text)
            elif _many(kind):
                self.add_argument(f"--{name}", nargs="*", type=str, default=default, help=text)
            else:
                self.add_argument(f"--{name}", type=_plain(kind), default=default, help=text)

    def parse_args(self, args: Sequence[str] | None = None, **rest: Any) -> Any:  # type: ignore[override]
        """As argparse; `--max-new-tokens` is `--max_new_tokens`."""
        given = list(sys.argv[1:] if args is None else args)
        end = given.index("--") if "--" in given else len(given)
        return super().parse_args(self._gathered([_underscored(a) for a in given[:end]]) + given[end:], **rest)

    def _gathered(self, given: list[str]) -> list[str]:
        """`--changes.text.dim 32 --changes.depth 6` as one `--changes {…}`: of several names with dots in them the
        parser would drop some."""
        known = {option for action in self._actions for option in action.option_strings}
        held: dict[str, dict[str, Any]] = {}
        left, words = [], iter(given)
        for word in words:
            option, equals, value = word.partition("=")
            name, _, rest = option.partition(".")
            if rest and name in known and option not in known:
                held.setdefault(name, {})[rest] = _value(value if equals else next(words, ""))
            else:
                left.append(word)
        if not any("." in rest for entries in held.values() for rest in entries):
            return given
        return left + [word for name, entries in held.items() for word in (name, json.dumps(entries))]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line: what is wrong, the nearest name, where to read on."""
        known = [o for a in self._actions for o in a.option_strings if o.startswith("--") and "+" not in o]
        if found := re.search(r"unrecognized arguments: .*?(--[\w.-]+)", message):
            message = f"no option {found[1]}{nearest(found[1], known, 1)}"
        elif found := re.search(r"Option '([\w.]+)' is not accepted", message):
            message = f"no option {found[1]!r}{nearest(found[1], [k[2:] for k in known], 1)}"
        elif (found := re.search(r"Parser key \"(\w+)\"", message)) and found[1] in self.labels:
            got = re.search(r"(?:Given|Got) value: (.*)", message)
            message = f"{found[1]}: expected {self.labels[found[1]]}" + (f", got {got[1]!r}" if got else "")
        message = " ".join(message.split())
        print(f"{self.prog}: {message}\n`{self.prog} --help` lists the options", file=sys.stderr)
        raise SystemExit(2)


def pick(args: Any, function: Callable[..., Any], skip: Sequence[str] = ()) -> dict[str, Any]:
    """What the command line gave for the parameters of `function`, by name."""
    return {name: args[name] for name in inspect.signature(function).parameters if name not in skip}


def _value(text: str) -> Any:
    """A value as YAML has it, and 1e-5 a number, which it is not in YAML."""
    found = yaml.safe_load(text)
    return float(found) if isinstance(found, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", found) else found


def label(kind: Any) -> str:
    """A type as a reader of an error message wants it: `int or nothing`, `one of a, b`."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(label(k) for k in get_args(kind))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is not None:
        return f"a list of {label(get_args(kind)[0])}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _many(kind: Any) -> bool:
    """Does the parameter take several texts?"""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return any(get_origin(k) in (list, tuple, Sequence) and get_args(k)[0] is str for k in kinds)


def _plain(kind: Any) -> Any:
    """What a command line can say: where a text will do, beside it no paths, recipes and other objects."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if str not in kinds:
        return kind
    plain = [k for k in kinds if get_origin(k) or k in (str, int, float, bool, type(None))]
    return functools.reduce(operator.or_, plain)


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    named = re.fullmatch(r"--[a-z][\w.-]*", name)
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if named else argument
