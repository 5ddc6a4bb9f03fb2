"""Options of functions: written once, as the fields of a frozen dataclass, and read by their former names.

`anyformer.cli` makes command lines of such functions from source alone, so this module imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar, get_type_hints

import docstring_parser

P = ParamSpec("P")
Options = TypeVar("Options")
Result = TypeVar("Result")


def takes(options: Callable[P, Options]) -> Callable[[Callable[[Options], Result]], Callable[P, Result]]:
    """Decorator: a function of one options object becomes a function of the fields of its dataclass.

    Signature and docstring are those of the dataclass and its bases; type checkers see the types of the fields.
    """

    def decorate(function: Callable[[Options], Result]) -> Callable[P, Result]:
        def call(*values: P.args, **named: P.kwargs) -> Result:
            return function(options(*values, **named))

        call.__name__, call.__qualname__ = function.__name__, function.__qualname__
        call.__module__, call.__signature__ = function.__module__, _signature(options)  # type: ignore[attr-defined]
        bases = [c.__doc__ or "" for c in reversed(inspect.getmro(options)) if dataclasses.is_dataclass(c)]  # type: ignore[arg-type]
        call.__doc__ = documented(function.__doc__ or "", bases, call.__signature__.parameters)  # type: ignore[attr-defined]
        return call

    return decorate


def documented(function: str, classes: Iterable[str], names: Iterable[str]) -> str:
    """The docstring of a function with the descriptions of its parameters.

    Args:
        function: its docstring, without `Args:`.
        classes: docstrings of the dataclass and its bases, bases first: a later description replaces an earlier one.
        names: the parameters, in their order.
    """
    params = (p for text in classes for p in docstring_parser.google.parse(text).params)
    texts = {p.arg_name: p.description or "" for p in params}
    args = "\n".join(f"    {name}: {texts.get(name, '')}".replace("\n", "\n        ") for name in names)
    summary, returns, rest = inspect.cleandoc(function).partition("Returns:\n")
    return f"{summary.rstrip()}\n\nArgs:\n{args}\n\n{returns}{rest}"


def current(
    options: Mapping[str, Any], names: Mapping[str, str], values: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Options with their present names and values.

    Args:
        options: by former or present names.
        names: former name -> present one.
        values: present name -> former value -> present one.

    Raises:
        ValueError: if an option is there by two names.
    """
    present: dict[str, Any] = {}
    for name, value in options.items():
        new = names.get(name, name)
        if new in present:
            both = [n for n in options if names.get(n, n) == new]
            raise ValueError(f"{' and '.join(both)} are names of one option: keep {new}, and remove the other")
        table = values.get(new, {})
        present[new] = table.get(value, value) if isinstance(value, str) else value
    return present


def _signature(cls: Any) -> inspect.Signature:
    """The signature of the constructor, with evaluated annotations and defaults. Keyword-only fields: its own first,
    then those of its bases."""
    parameter, hints, missing = inspect.Parameter, get_type_hints(cls), dataclasses.MISSING
    order = list(dict.fromkeys(name for c in inspect.getmro(cls) for name in inspect.get_annotations(c)))
    fields = sorted(dataclasses.fields(cls), key=lambda f: (bool(f.kw_only), order.index(f.name)))
    return inspect.Signature([
        parameter(
            f.name,
            parameter.KEYWORD_ONLY if f.kw_only else parameter.POSITIONAL_OR_KEYWORD,
            default=parameter.empty if f.default is f.default_factory is missing
            else f.default if f.default_factory is missing else f.default_factory(),
            annotation=hints[f.name],
        )
        for f in fields
    ])  # fmt: skip
