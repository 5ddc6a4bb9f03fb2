"""From a typed function to the options of a command: names, types, defaults and help come from the function itself.

The option of the parameter `max_new_tokens` is `--max-new-tokens`; `--max_new_tokens` is read as well.
"""

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
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from anyformer.cli.signatures import constant, read
from anyformer.core.options import current
from anyformer.core.value import nearest


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
        self.renamed: dict[str, str] = {}  # former name -> present one
        self.values: dict[str, dict[str, str]] = {}  # option -> former value -> present one
        every = self.add_argument_group("options of every verb")
        every.add_argument("--config", action="config", help="YAML file with options; those on the command line win")
        every.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_function(
        self,
        function: Callable[..., Any] | str,
        skip: Sequence[str] = (),
        give: dict[str, Any] | None = None,
    ) -> None:
        """Adds the parameters of a function: those without a default by place, the others by name. One that is by name
        alone and has no default must be written.

        A `bool` that is False by default becomes a switch; a list of texts takes several words.

        Args:
            function: the function, or "module:name", whose module is not imported (`signatures`).
            skip: parameters that the command does not offer.
            give: other defaults than the function's.
        """
        signature = read(function)
        docs = {p.arg_name: p.description for p in docstring_parser.google.parse(signature.doc).params}
        for parameter in signature.parameters:
            name = parameter.name
            if name in skip:
                continue
            kind, default = parameter.annotation, (give or {}).get(name, parameter.default)
            option, text = f"--{name.replace('_', '-')}", (docs.get(name) or "").replace("%", "%%")
            self.labels[name] = label(_plain(kind))
            if kind is bool and default is False:
                self.add_argument(option, action="store_true", help=text)
            elif default is inspect.Parameter.empty and _many(kind):
                self.add_argument(name, nargs="+", type=str, help=text)
            elif default is inspect.Parameter.empty and parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                self.add_argument(option, type=_plain(kind), required=True, help=text)
            elif default is inspect.Parameter.empty:
                self.add_argument(name, type=_plain(kind), help=text)
            elif {bool, str} <= {*get_args(kind)}:  # `--resume` alone says true
                self.add_argument(option, type=_plain(kind), nargs="?", const="true", default=default, help=text)
            elif _many(kind):
                self.add_argument(option, nargs="*", type=str, default=default, help=text)
            else:
                self.add_argument(option, type=_plain(kind), default=default, help=text)

    def parse_args(self, args: Sequence[str] | None = None, **rest: Any) -> Any:  # type: ignore[override]
        """As argparse; `--max_new_tokens` is `--max-new-tokens`."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        present = self._present([self._spelt(a) for a in words[:end]])
        return super().parse_args(self._gathered(present) + words[end:], **rest)

    def accept_former(self, module: str) -> None:
        """Reads former names and values of the options added so far: RENAMED and VALUES of a module, not imported."""
        names, self.values = constant(f"{module}:RENAMED"), constant(f"{module}:VALUES")
        self.renamed = {old: new for old, new in names.items() if old not in self.labels and new in self.labels}

    def options(self) -> list[str]:
        """The options as they are shown, `--max-new-tokens`."""
        return [o for a in self._actions for o in a.option_strings if o.startswith("--") and "+" not in o]

    def _spelt(self, word: str) -> str:
        """An option with the hyphens of its own; the names behind a dot, `--overrides.kv-heads`, have underscores."""
        name, equals, value = word.partition("=")
        option, dot, rest = name.partition(".")
        own = {o.replace("_", "-"): o for o in self.options()}.get(option.replace("_", "-"))
        return word if own is None else f"{own}{dot}{rest.replace('-', '_')}{equals}{value}"

    def _present(self, arguments: list[str]) -> list[str]:
        """The words with the present names of options and values, in files of `--config` as well; says what changed."""
        words: list[str] = []
        for word in arguments:
            option, equals, value = word.partition("=")
            name, dot, rest = option.partition(".")
            new = self._new_name(name[2:].replace("-", "_")) if name.startswith("--") else None
            before = words[-1][2:].partition("=")[0] if words else ""
            if new is not None:
                name = f"--{new.replace('_', '-')}"
            if name == "--config" and equals:
                value = self._present_file(value)
            elif equals and name.startswith("--"):
                value = self.values.get(name[2:], {}).get(value, value)
            elif before == "config":
                name, dot, rest = self._present_file(word), "", ""
            elif word in self.values.get(before, {}):
                name = self.values[before][word]
            words.append(f"{name}{dot}{rest}{equals}{value}")
        return words

    def _new_name(self, name: str) -> str | None:
        """The present name of an option that was renamed, with a note on stderr; None for any other."""
        new = self.renamed.get(name)
        if new is not None:
            print(f"{self.prog}: the option {name} is now called {new}", file=sys.stderr)
        return new

    def _present_file(self, path: str) -> str:
        """The path of a file of options, or, where it has former names, its content with the present ones."""
        try:
            options = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):  # the parser says what is wrong
            return path
        if not isinstance(options, dict) or not self.renamed.keys() & options.keys():
            return path
        for name in options:
            self._new_name(str(name))
        try:
            present = current(options, self.renamed, self.values)
        except ValueError as error:
            self.error(f"{path}: {error}")
        return yaml.safe_dump(present, sort_keys=False, allow_unicode=True)

    def _gathered(self, arguments: list[str]) -> list[str]:
        """`--overrides.text.dim 32 --overrides.depth 6` as one `--overrides {…}`: of several names with dots in them
        the parser would drop some."""
        known = {option for action in self._actions for option in action.option_strings}
        entries_of: dict[str, dict[str, Any]] = {}
        left, words = [], iter(arguments)
        for word in words:
            option, equals, value = word.partition("=")
            name, _, rest = option.partition(".")
            if rest and name in known and option not in known:
                entries_of.setdefault(name, {})[rest] = _value(value if equals else next(words, ""))
            else:
                left.append(word)
        if not any("." in rest for entries in entries_of.values() for rest in entries):
            return arguments
        return left + [word for name, entries in entries_of.items() for word in (name, json.dumps(entries))]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line: what is wrong, the nearest name, where to read on."""
        known = self.options()
        if unknown := re.search(r"unrecognized arguments: .*?(--[\w.-]+)", message):
            message = _unknown(unknown[1], known, unknown[1].replace("_", "-"))
        elif unknown := re.search(r"Option '([\w.]+)' is not accepted", message):
            message = _unknown(unknown[1], [o[2:].replace("-", "_") for o in known])
        elif (wrong := re.search(r"Parser key \"(\w+)\"", message)) and wrong[1] in self.labels:
            got = re.search(r"(?:Given|Got) value: (.*)", message)
            named = next((o for o in known if o[2:].replace("-", "_") == wrong[1]), wrong[1])
            message = f"{named}: expected {self.labels[wrong[1]]}" + (f", got {got[1]!r}" if got else "")
        message = " ".join(message.split())
        print(f"{self.prog}: {message}\n`{self.prog} --help` lists the options", file=sys.stderr)
        raise SystemExit(2)


def pick(args: Any, function: Callable[..., Any] | str, skip: Sequence[str] = ()) -> dict[str, Any]:
    """The values of the command line for the parameters of a function, by name."""
    return {name: args[name] for name in read(function).names if name not in skip}


def _unknown(name: str, known: Sequence[str], spelt: str = "") -> str:
    """The message for an option that there is not: `--stpes: unknown, did you mean --steps?`"""
    near = nearest(spelt or name, list(known), 1).strip(" ()")
    return f"{name}: unknown, {near}" if near else f"{name}: unknown"


def _value(text: str) -> Any:
    """A value as YAML has it, and 1e-5 a number, which it is not in YAML."""
    value = yaml.safe_load(text)
    return float(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) else value


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
