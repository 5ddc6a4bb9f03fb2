"""Recipes: parts with their width still open.

`Attention.of(heads=8)` is an expression, not a module. It prints as itself, compares, hashes, goes to JSON and back, is
edited by path, and is built when the width is known: `Attention.of(heads=8).build(512)`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from anyformer.core.check import Frozen, fit, kinds_of, shown
from anyformer.core.shown import Shown
from anyformer.core.value import Value, nearest

if TYPE_CHECKING:
    from anyformer.core.part import Part

P = TypeVar("P", covariant=True)  # the class of the part, or of all parts that a slot takes
PAGES = "anyformer.models"  # the package whose modules can each define a part of the same name
PARTS: dict[str, type[Part]] = {}  # all parts by their stored names
MAX_PARTS = 100_000  # the most parts that a list in a recipe, or a recipe from a file, can hold
_left: ContextVar[list[int] | None] = ContextVar("left", default=None)


@contextmanager
def at_most(parts: int) -> Iterator[None]:
    """Limits recipes and built parts from files to that many parts inside the block, with a ValueError."""
    token = _left.set([parts, parts])
    try:
        yield
    finally:
        _left.reset(token)


def _spend() -> None:
    if (left := _left.get()) is not None:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError(f"more than {left[1]:,} parts, more than the weights beside it can fill")


def stored_name(part: type) -> str:
    """The name of a part in a stored recipe: `Attention`, or `modernbert.Layer` where a page defines it."""
    package, _, page = part.__module__.rpartition(".")
    return f"{page}.{part.__name__}" if package == PAGES else part.__name__


class Recipe(Shown, Generic[P]):
    """A part and its options, width still open.

    Options are checked against the annotations of the part's constructor at once: `Recipe[Norm]` takes norms only.
    Every option is stored, defaults included, so that a stored recipe keeps its meaning when a default changes;
    only options that differ from the defaults are printed.

    `draws` is a page's `first_weights` with its hyperparameters, which `core.init` uses; equality and stored recipes
    ignore it, because it does not change the model's computation.
    """

    __slots__ = ("draws", "options", "part")

    def __init__(
        self, part: type[Part], options: Mapping[str, Any], draws: Callable[[], Mapping[str, Any]] | None = None
    ):
        _spend()
        known = signature(part)
        for name in options:
            if name not in known:
                takes = ", ".join(known)
                raise ValueError(
                    f"{part.__name__} has no option {name!r}; it takes {takes}{nearest(name, list(known))}"
                )
        full, kinds = {}, _kinds(part)  # type: ignore[arg-type]  # a class is hashable
        for name, default in known.items():
            if name in options:
                where, value = f"{part.__name__}.{name}", options[name]
                if isinstance(value, list | tuple) and len(value) > MAX_PARTS:
                    raise ValueError(f"{where}: expected a list of at most {MAX_PARTS:,}, got {len(value):,} entries")
                full[name] = _frozen(fit(options[name], kinds[name], where), where)
            elif default is inspect.Parameter.empty:
                raise ValueError(f"{part.__name__} needs the option {name!r}")
            else:
                full[name] = default
        object.__setattr__(self, "part", part)
        object.__setattr__(self, "options", full)
        object.__setattr__(self, "draws", draws)

    @classmethod
    def fits(cls, value: Any, slot: tuple[Any, ...]) -> bool:
        """True if `value` is a recipe whose part is of one of the classes that the slot takes."""
        return isinstance(value, Recipe) and all(issubclass(value.part, k) for k in slot)

    @classmethod
    def wanted(cls, slot: tuple[Any, ...]) -> str:
        """The classes that a slot takes, for an error message."""
        return " ".join(["a recipe", *(f"of a {k.__name__}" for k in slot if isinstance(k, type))])

    def build(self, dim: int | None = None, *more: int) -> P:
        """Builds the module. `dim` is the width of the stream; a skeleton has its own and ignores it. `more` are
        other leading arguments of a part (`Part.given`): for attention the number and the width of the heads."""
        _spend()
        part: Any = self.part
        name, leading = self.part.__name__, self.part.given
        if self.part.closed:
            module = part(**self.options)
        elif dim is None:
            raise ValueError(f"{name} needs a width: recipe.build({', '.join(leading)})")
        elif len(more) != len(leading) - 1:
            raise ValueError(
                f"{name} is built from {', '.join(leading)}, and its parent passed {1 + len(more)} of them; "
                "a score part belongs into Attention.of(scores=[…])"
            )
        elif dim < 1:
            raise ValueError(f"{name} needs a width of at least 1, got {dim}")
        else:
            module = part(dim, *more, **self.options)
        module.recipe = self
        return module

    def but(self, changes: Mapping[str, Any] | None = None, **options: Any) -> Recipe[P]:
        """The same recipe with some options replaced.

        `changes` maps paths to new values: `{"blocks.*.mixer.kv_heads": 2}`. A step of a path is an option's name,
        an index, a slice (`blocks.2::3` is every third block), `*` (all of them) or `**` (any number of steps).

        Raises:
            ValueError: if a path matches nothing, or an option does not exist.
        """
        new: Any = self
        for path, value in {**(changes or {}), **options}.items():
            try:
                new, count = _replace(new, path.split("."), value)
            except ValueError as error:
                raise ValueError(f"at {path!r}: {error}") from None
            if not count:
                paths = [p for p, _ in self.walk()]
                raise ValueError(f"no option matches the path {path!r}{nearest(path, paths)}")
        return new

    def __getitem__(self, path: str) -> Any:
        """The value at a path: `recipe["blocks.0.mixer.heads"]`."""
        node: Any = self
        for step in path.split("."):
            children = dict(_children(node))
            if step not in children:
                raise ValueError(
                    f"no {step!r} on the path {path!r}{nearest(step, list(children)) or f'; there is {list(children)}'}"
                )
            node = children[step]
        return node

    def __getattr__(self, name: str) -> Any:
        try:
            return self.options[name]
        except KeyError:
            known = ", ".join(self.options)
            raise AttributeError(f"{self.part.__name__} has no option {name!r}; it has {known}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"recipes are immutable; write recipe.but({name}={value!r})")

    def __reduce__(self) -> Any:
        return Recipe, (self.part, self.options, self.draws)

    def __deepcopy__(self, memo: Any) -> Recipe[P]:
        return self  # it never changes, and its copy would check every option again

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Every path below this recipe with its value, depth first."""
        yield from _walk(self, prefix)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.part is other.part and self.options == other.options

    def __hash__(self) -> int:
        return hash((self.part, *self.options.values()))

    def __repr__(self) -> str:
        known = signature(self.part)
        shown = [
            f"{k}={_show(v)}" for k, v in self.options.items() if known[k] is inspect.Parameter.empty or v != known[k]
        ]
        return f"{stored_name(self.part)}.of({', '.join(shown)})"

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings; runs of equal parts are stored once with a count."""
        return _to_json(self)

    @staticmethod
    def from_json(data: Any) -> Recipe[Any]:
        """The inverse of `to_json`. Only registered parts and values are made; nothing in `data` is executed.

        Raises:
            ValueError: for an unknown part, option or value, or more than `MAX_PARTS` parts.
        """
        recipe = _from_json(data, [0], "")
        if not isinstance(recipe, Recipe):
            raise ValueError(f"expected a recipe, a dictionary with the key 'part'; got {type(recipe).__name__}")
        return recipe


@functools.cache
def _parameters(part: Any) -> dict[str, Any]:
    first = 1 if part.closed else 1 + len(part.given)  # self, and for an open part its width
    parameters = list(inspect.signature(part.__init__).parameters.values())[first:]
    kinds, empty = _kinds(part), inspect.Parameter.empty
    return {
        p.name: empty
        if p.default is empty
        else _frozen(fit(p.default, kinds[p.name], f"{part.__name__}.{p.name}"), p.name)
        for p in parameters
    }


@functools.cache
def _kinds(part: Any) -> dict[str, Any]:
    """The annotations of a part's options; one without an annotation takes any value that can be stored."""
    kinds = kinds_of(part.__init__)
    return {name: kinds.get(name, Any) for name in inspect.signature(part.__init__).parameters}


def signature(part: type[Part]) -> dict[str, Any]:
    """The options of a part with their defaults (`inspect.Parameter.empty` where there is none)."""
    return _parameters(part)  # type: ignore[arg-type]  # a class is hashable


def _frozen(value: Any, where: str) -> Any:
    """`value` with tuples for lists, so that a recipe never changes; a value that cannot be stored is an error."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(v, where) for v in value)
    if isinstance(value, Mapping):
        return Frozen({str(k): _frozen(v, where) for k, v in value.items()})
    if value is None or isinstance(value, bool | int | float | str | Recipe | Value):
        return value
    raise ValueError(f"{where} must be a recipe, value, number, string, list or dictionary; got {shown(value)}")


def _children(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, Recipe):
        return list(node.options.items())
    if isinstance(node, tuple):
        return [(str(i), v) for i, v in enumerate(node)]
    if isinstance(node, dict):
        return list(node.items())
    if isinstance(node, Value):
        return [(f.name, getattr(node, f.name)) for f in dataclasses.fields(node)]  # type: ignore[arg-type]
    return []


def _walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, child in _children(node):
        here = f"{path}.{name}" if path else name
        yield here, child
        yield from _walk(child, here)


def _with(node: Any, changed: dict[str, Any]) -> Any:
    """A copy of `node` with some children replaced."""
    if isinstance(node, Recipe):
        return Recipe(node.part, {**node.options, **changed}, node.draws)
    if isinstance(node, tuple):
        return tuple(changed.get(str(i), v) for i, v in enumerate(node))
    if isinstance(node, dict):
        return {**node, **changed}
    return dataclasses.replace(node, **changed)


def _matches(node: Any, step: str) -> list[str]:
    """The names of the children that one step of a path selects."""
    names = [name for name, _ in _children(node)]
    if step == "*":
        return names
    if isinstance(node, tuple) and ":" in step:
        return names[slice(*(int(s) if s else None for s in step.split(":")))]
    if isinstance(node, tuple) and step.startswith("-"):
        return names[int(step) :][:1]
    return [step] if step in names else []


def _replace(node: Any, steps: list[str], value: Any) -> tuple[Any, int]:
    """`node` with every match of `steps` replaced by `value`, and the number of matches."""
    if not steps:
        return value, 1
    step, rest = steps[0], steps[1:]
    children = dict(_children(node))
    changed, count = {}, 0
    if step == "**":
        node, count = _replace(node, rest, value) if rest else (node, 0)
        children = dict(_children(node))
        selected = {n: steps for n, c in children.items() if _children(c)}
    else:
        selected = {n: rest for n in _matches(node, step)}
    for name, onward in selected.items():
        new, hits = _replace(children[name], onward, value)
        if hits:
            changed[name], count = new, count + hits
    return (_with(node, changed) if changed else node), count


def _runs(items: tuple[Any, ...]) -> list[tuple[int, Any]]:
    """Runs of equal neighbours: (count, item)."""
    runs: list[tuple[int, Any]] = []
    for item in items:
        if runs and runs[-1][1] == item:
            runs[-1] = (runs[-1][0] + 1, item)
        else:
            runs.append((1, item))
    return runs


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        runs = _runs(value)
        if any(n > 1 and _children(v) for n, v in runs):
            return " + ".join(f"[{_show(v)}] * {n}" if n > 1 else f"[{_show(v)}]" for n, v in runs)
        return f"[{', '.join(_show(v) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {_show(v)}' for k, v in value.items())}}}"
    return repr(value)


def _to_json(value: Any) -> Any:
    if isinstance(value, Recipe):
        return {"part": stored_name(value.part), **{k: _to_json(v) for k, v in value.options.items()}}
    if isinstance(value, Value):
        return {"value": type(value).__name__, **{k: _to_json(v) for k, v in _children(value)}}
    if isinstance(value, tuple):
        runs = _flat_runs(value)
        return [{"repeat": n, "of": _to_json(v)} if n > 1 and _children(v) else _to_json(v) for n, v in runs]
    if isinstance(value, dict):
        return {"dict": {k: _to_json(v) for k, v in value.items()}}
    return value


def _flat_runs(items: tuple[Any, ...]) -> list[tuple[int, Any]]:
    """Runs like `_runs`, but numbers and strings are never counted: `[1, 1, 1]` stays readable."""
    return [(n, v) if _children(v) else (1, v) for n, v in _runs(items) for _ in range(1 if _children(v) else n)]


def _count(made: list[int], more: int) -> None:
    made[0] += more
    if made[0] > MAX_PARTS:
        raise ValueError(f"the recipe has more than {MAX_PARTS} nodes; refused")


def _from_json(data: Any, made: list[int], where: str) -> Any:
    _count(made, 1)
    if isinstance(data, list):
        return _items(data, made, where)
    if not isinstance(data, dict):
        return data
    if set(data) == {"dict"} and isinstance(data["dict"], dict):
        return {k: _from_json(v, made, f"{where}.{k}") for k, v in data["dict"].items()}
    key = "part" if "part" in data else "value"
    kind = find(data.get(key), key)
    fields = {k: _from_json(v, made, f"{where}.{k}") for k, v in data.items() if k != key}
    try:
        return Recipe(kind, fields) if key == "part" else kind(**fields)
    except (ValueError, TypeError) as error:  # TypeError: missing or unknown fields of a value
        raise ValueError(f"at {where[1:]!r}: {error}" if where.count(".") else str(error)) from None


def _items(data: list[Any], made: list[int], where: str) -> tuple[Any, ...]:
    """The entries of a list, runs expanded."""
    items: list[Any] = []
    for entry in data:
        here = f"{where}.{len(items)}"
        if isinstance(entry, dict) and set(entry) == {"repeat", "of"}:
            count = entry["repeat"]
            if type(count) is not int or not 0 < count <= MAX_PARTS:
                raise ValueError(f"at {here[1:]!r}: 'repeat' must be a count up to {MAX_PARTS}, got {shown(count)}")
            before = made[0]
            item = _from_json(entry["of"], made, here)
            _count(made, (made[0] - before) * (count - 1))  # before the list is made: nested repeats multiply
            items += [item] * count
        else:
            items.append(_from_json(entry, made, here))
    return tuple(items)


def find(name: Any, kind_name: str = "part") -> Any:
    """The class of a part, or of a value, of that name.

    Raises:
        ValueError: with the nearest names, if no part or page defines it.
    """
    kinds: dict[str, Any] = PARTS if kind_name == "part" else Value.kinds
    if not isinstance(name, str):
        raise ValueError(f"a stored {kind_name} has its name under the key {kind_name!r}, a text; got {shown(name)}")
    if name not in kinds:
        importlib.import_module("anyformer.core.pages").import_all()  # pages can define parts and values of their own
    if name not in kinds:
        raise ValueError(f"no {kind_name} is called {name!r}{nearest(name, list(kinds))}")
    return kinds[name]
