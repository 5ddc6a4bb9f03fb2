"""Recipes: parts with their width still open.

`Attention.of(heads=8)` is an expression, not a module. It prints as itself, compares, hashes, goes to JSON and back, is
edited by path, and is built when the width is known: `Attention.of(heads=8).build(512)`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from anyformer.core.part import Part

MAX_PARTS = 100_000  # a recipe read from a file may not describe more parts than this


def nearest(name: str, known: list[str] | tuple[str, ...], count: int = 3) -> str:
    """' (did you mean a, b?)' for the error message of a mistyped name, or an empty string."""
    found = difflib.get_close_matches(name, known, count, 0.5)
    return f" (did you mean {', '.join(found)}?)" if found else ""


class Value:
    """Base of small frozen dataclasses that a recipe may hold as an option: masks, rotary scalings.

    They are plain values: equal when their fields are, printed as the call that makes them, stored by class name.
    """

    kinds: ClassVar[dict[str, type[Value]]] = {}

    def __init_subclass__(cls) -> None:
        Value.kinds[cls.__name__] = cls


class Recipe:
    """A part and its options, width still open.

    Options are checked when written. Every option is held, defaults included, so that a stored recipe keeps its meaning
    when a default changes; only what differs from the defaults is printed.
    """

    __slots__ = ("options", "part")

    def __init__(self, part: type[Part], options: Mapping[str, Any]):
        known = signature(part)
        for name in options:
            if name not in known:
                takes = ", ".join(known)
                raise ValueError(
                    f"{part.__name__} has no option {name!r}; it takes {takes}{nearest(name, list(known))}"
                )
        full = {}
        for name, default in known.items():
            if name not in options and default is inspect.Parameter.empty:
                raise ValueError(f"{part.__name__} needs the option {name!r}")
            full[name] = _frozen(options.get(name, default), f"{part.__name__}.{name}")
        object.__setattr__(self, "part", part)
        object.__setattr__(self, "options", full)

    def build(self, dim: int | None = None, *more: int) -> Any:
        """Makes the module. `dim` is the width of the stream; a skeleton brings its own and ignores it. `more` is what
        some parts are told beside it (`Part.given`): those of attention the number and the width of the heads."""
        name, given = self.part.__name__, self.part.given
        if self.part.closed:
            module = self.part(**self.options)
        elif dim is None:
            raise ValueError(f"{name} needs a width: recipe.build({', '.join(given)})")
        elif len(more) != len(given) - 1:
            raise ValueError(
                f"{name} is built from {', '.join(given)}, and its place gives {1 + len(more)} of them; "
                "what changes scores belongs into Attention.of(scores=[…])"
            )
        elif dim < 1:
            raise ValueError(f"{name} needs a width of at least 1, got {dim}")
        else:
            module = self.part(dim, *more, **self.options)
        module.recipe = self
        return module

    def but(self, changes: Mapping[str, Any] | None = None, **options: Any) -> Recipe:
        """The same recipe with some options replaced.

        `changes` maps paths to new values: `{"blocks.*.mixer.kv_heads": 2}`. A step of a path is an option's name,
        an index,
        a slice (`blocks.2::3` is every third block), `*` (all of them) or `**` (any number of steps).

        Raises:
            ValueError: if a path matches nothing, or an option does not exist.
        """
        new: Any = self
        for path, value in {**(changes or {}), **options}.items():
            new, count = _replace(new, path.split("."), _frozen(value, path))
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
        raise AttributeError(f"recipes do not change; write recipe.but({name}={value!r})")

    def __reduce__(self) -> Any:
        return Recipe, (self.part, self.options)

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Every path below this recipe with its value, depth first."""
        yield from _walk(self, prefix)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.part is other.part and self.options == other.options

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        known = signature(self.part)
        shown = [
            f"{k}={_show(v)}" for k, v in self.options.items() if known[k] is inspect.Parameter.empty or v != known[k]
        ]
        return f"{self.part.__name__}.of({', '.join(shown)})"

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings; runs of equal parts are stored once with a count."""
        return _to_json(self)

    @staticmethod
    def from_json(data: Any) -> Recipe:
        """The inverse of `to_json`. Only registered parts and values are made; nothing in `data` is executed.

        Raises:
            ValueError: for an unknown part, option or value, or more than `MAX_PARTS` parts.
        """
        recipe = _from_json(data, [0])
        if not isinstance(recipe, Recipe):
            raise ValueError(f"expected a recipe, a dictionary with the key 'part', and got {type(recipe).__name__}")
        return recipe


@functools.cache
def _parameters(part: Any) -> dict[str, Any]:
    first = 1 if part.closed else 1 + len(part.given)  # self, and for an open part its width
    parameters = list(inspect.signature(part.__init__).parameters.values())[first:]
    return {p.name: _frozen(p.default, p.name) for p in parameters}


def signature(part: type[Part]) -> dict[str, Any]:
    """The options of a part with their defaults (`inspect.Parameter.empty` where there is none)."""
    return _parameters(part)  # type: ignore[arg-type]  # a class is hashable


def _frozen(value: Any, where: str) -> Any:
    """Lists become tuples, so that a recipe never changes; anything that could not be stored is refused."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(v, where) for v in value)
    if isinstance(value, Mapping):
        return {str(k): _frozen(v, where) for k, v in value.items()}
    if (
        value is inspect.Parameter.empty
        or value is None
        or isinstance(value, bool | int | float | str | Recipe | Value)
    ):
        return value
    raise ValueError(
        f"{where} takes recipes, values, numbers, strings, lists and dictionaries; got {type(value).__name__}"
    )


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
        return Recipe(node.part, {**node.options, **changed})
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
    """`node` with every place that `steps` select replaced by `value`, and how many there were."""
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
        return {"part": value.part.__name__, **{k: _to_json(v) for k, v in value.options.items()}}
    if isinstance(value, Value):
        return {"value": type(value).__name__, **{k: _to_json(v) for k, v in _children(value)}}
    if isinstance(value, tuple):
        return [
            {"repeat": n, "of": _to_json(v)} if n > 1 and _children(v) else _to_json(v) for n, v in _flat_runs(value)
        ]
    if isinstance(value, dict):
        return {"dict": {k: _to_json(v) for k, v in value.items()}}
    return value


def _flat_runs(items: tuple[Any, ...]) -> list[tuple[int, Any]]:
    """Like `_runs`, but numbers and strings are never counted: `[1, 1, 1]` stays readable."""
    return [(n, v) if _children(v) else (1, v) for n, v in _runs(items) for _ in range(1 if _children(v) else n)]


def _count(made: list[int], more: int) -> None:
    made[0] += more
    if made[0] > MAX_PARTS:
        raise ValueError(f"the recipe has more than {MAX_PARTS} nodes; refused")


def _from_json(data: Any, made: list[int]) -> Any:
    _count(made, 1)
    if isinstance(data, list):
        items: list[Any] = []
        for entry in data:
            if isinstance(entry, dict) and set(entry) == {"repeat", "of"}:
                count = entry["repeat"]
                if not isinstance(count, int) or not 0 < count <= MAX_PARTS:
                    raise ValueError(f"'repeat' must be a count up to {MAX_PARTS}, got {count!r}")
                before = made[0]
                item = _from_json(entry["of"], made)
                _count(made, (made[0] - before) * (count - 1))  # before the list is made: repeats in repeats multiply
                items += [item] * count
            else:
                items.append(_from_json(entry, made))
        return tuple(items)
    if not isinstance(data, dict):
        return data
    if set(data) == {"dict"}:
        return {k: _from_json(v, made) for k, v in data["dict"].items()}
    if "part" in data:
        return Recipe(find_part(data["part"]), {k: _from_json(v, made) for k, v in data.items() if k != "part"})
    kind = Value.kinds.get(str(data.get("value")))
    if kind is None:
        raise ValueError(
            f"no value is called {data.get('value')!r}{nearest(str(data.get('value')), list(Value.kinds))}"
        )
    fields = {k: _from_json(v, made) for k, v in data.items() if k != "value"}
    unknown = set(fields) - {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {sorted(unknown)}")
    return kind(**fields)


find_extra: list[
    Callable[[], None]
] = []  # called before a part is given up as unknown: pages may define parts of their own


def find_part(name: str) -> type[Part]:
    """The part class of that name.

    Raises:
        ValueError: with the nearest names, if no part or page defines it.
    """
    from anyformer.core.part import Part

    if name not in Part.kinds:
        for load in find_extra:
            load()
    if name not in Part.kinds:
        raise ValueError(f"no part is called {name!r}{nearest(str(name), list(Part.kinds))}")
    return Part.kinds[name]
