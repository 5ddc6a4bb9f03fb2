"""The parameters of a function, read from its source: nothing is imported, so that `--help` is answered at once.

`read("anyformer.train:train")` follows the imports of `anyformer/train/__init__.py` to the file that defines `train`.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core.options import documented

ROOT = Path(__file__).parent.parent  # the folder of the package `anyformer`


_EMPTY, _BY_PLACE = inspect.Parameter.empty, inspect.Parameter.POSITIONAL_OR_KEYWORD


class Unread(Exception):
    """An expression that cannot be evaluated without an import."""


class Unknown(type):
    """A class whose name alone is known: an annotation that no command line can give a value of."""


@dataclass(frozen=True)
class Signature:
    """The parameters of a function with annotations and defaults that are evaluated, and its docstring."""

    parameters: tuple[inspect.Parameter, ...]
    doc: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(p.name for p in self.parameters)


def read(function: Callable[..., Any] | str) -> Signature:
    """The signature of a function, or of "module:name", whose module is not imported if its source suffices."""
    if not isinstance(function, str):
        known = inspect.signature(function, eval_str=True)
        return Signature(tuple(known.parameters.values()), inspect.getdoc(function) or "")
    module, _, name = function.partition(":")
    try:
        return _read(module, name)
    except Unread:
        return read(getattr(importlib.import_module(module), name))


@functools.cache
def _read(module: str, name: str) -> Signature:
    home, node = _definition(module, name)
    if not isinstance(node, ast.FunctionDef):
        raise Unread(f"{module}:{name} is no function")
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "takes":  # `core.options.takes`
            return _options(home, ast.unparse(decorator.args[0]), ast.get_docstring(node) or "")
    names, args, parameters = _Names(home), node.args, []
    if args.vararg or args.kwarg:
        raise Unread(f"{module}:{name} takes any number of arguments")
    by_place = [*args.posonlyargs, *args.args]
    defaults = [*[None] * (len(by_place) - len(args.defaults)), *args.defaults, *args.kw_defaults]
    for i, (arg, default) in enumerate(zip([*by_place, *args.kwonlyargs], defaults, strict=True)):
        kind = _BY_PLACE if i < len(by_place) else inspect.Parameter.KEYWORD_ONLY
        value = _EMPTY if default is None else _evaluated(default, names)
        if isinstance(value, Unknown):
            raise Unread(f"the default of {arg.arg}")
        annotation = _EMPTY if arg.annotation is None else _evaluated(arg.annotation, names)
        parameters.append(inspect.Parameter(arg.arg, kind, default=value, annotation=annotation))
    return Signature(tuple(parameters), ast.get_docstring(node) or "")


def _options(module: str, name: str, doc: str) -> Signature:
    """The signature of a function that takes the fields of a dataclass, see `core.options`."""
    parameters: dict[str, inspect.Parameter] = {}
    docs: list[str] = []
    _fields(module, name, parameters, docs)
    ordered = sorted(parameters.values(), key=lambda p: p.kind)  # those by position come first
    return Signature(tuple(ordered), documented(doc, reversed(docs), [p.name for p in ordered]))


def _fields(module: str, name: str, parameters: dict[str, inspect.Parameter], docs: list[str]) -> None:
    """Adds the fields and the docstring of a dataclass, then those of its bases that it does not replace."""
    home, node = _definition(module, name)
    if not isinstance(node, ast.ClassDef):
        raise Unread(f"{module}:{name} is no class")
    docs.append(ast.get_docstring(node) or "")
    names = _Names(home)
    by_name = any("kw_only=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    for line in node.body:
        if not isinstance(line, ast.AnnAssign):
            continue
        options: dict[str | None, ast.expr] = {"default": line.value} if line.value else {}
        if isinstance(line.value, ast.Call):  # field(default=…, default_factory=…, kw_only=…)
            options = {keyword.arg: keyword.value for keyword in line.value.keywords}
        values = {key: _evaluated(value, names) for key, value in options.items()}
        default = values["default_factory"]() if "default_factory" in values else values.get("default", _EMPTY)
        kind = inspect.Parameter.KEYWORD_ONLY if values.get("kw_only", by_name) else _BY_PLACE
        field, annotation = ast.unparse(line.target), _evaluated(line.annotation, names)
        parameters.setdefault(field, inspect.Parameter(field, kind, default=default, annotation=annotation))
    for base in node.bases:
        _fields(home, ast.unparse(base), parameters, docs)


def constant(place: str) -> Any:
    """The value of a constant, "module:name", whose module is not imported."""
    module, _, name = place.partition(":")
    home, node = _definition(module, name)
    if not isinstance(node, ast.expr):
        raise Unread(place)
    return _evaluated(node, _Names(home))


def _evaluated(node: ast.expr, names: _Names) -> Any:
    """The value of an annotation or of a default."""
    if any(isinstance(part, ast.Call) for part in ast.walk(node)):
        raise Unread(ast.unparse(node))
    try:
        return eval(compile(ast.Expression(node), "<signature>", "eval"), {"__builtins__": {}}, names)
    except (NameError, TypeError, AttributeError, KeyError) as error:
        raise Unread(f"{ast.unparse(node)}: {error}") from None


class _Names(dict[str, Any]):
    """The names of a module, each read when it is asked for. Classes are `Unknown`, but those of Python itself."""

    def __init__(self, module: str):
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        home, node = _definition(self.module, name)
        if isinstance(node, ast.ClassDef):
            self[name] = Unknown(name, (), {})
        elif isinstance(node, ast.expr):
            self[name] = _evaluated(node, _Names(home))
        elif isinstance(node, ast.alias) and home.partition(".")[0] in sys.stdlib_module_names:
            self[name] = getattr(importlib.import_module(home), node.name)
        elif isinstance(node, ast.alias):
            self[name] = Unknown(name, (), {})
        else:
            raise Unread(f"{home}:{name}")
        return self[name]


def _definition(module: str, name: str) -> tuple[str, ast.AST]:
    """The definition of a name, through imports: the module, and the function, class, value, or imported name."""
    for node in _statements(module):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node.value
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.target) == name:
            return module, node.value
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) != name:
                    continue
                if node.module.partition(".")[0] == "anyformer":
                    return _definition(node.module, alias.name)
                return node.module, alias
    raise Unread(f"{name!r} in {module}")


@functools.cache
def _statements(module: str) -> list[ast.stmt]:
    """The statements of a module of ours, those under `if TYPE_CHECKING` among them."""
    place = ROOT.joinpath(*module.split(".")[1:])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        raise Unread(f"{module} has no source")
    statements: list[ast.stmt] = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        statements += node.body if isinstance(node, ast.If) else [node]
    return statements
