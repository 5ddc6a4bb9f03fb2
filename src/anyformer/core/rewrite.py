"""Rewriting a model's tree of modules: select by path pattern, replace a module. Independent of the architecture.

Adapters, quantisation and export are written with these functions, once for every model.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from anyformer.core.value import nearest

M = TypeVar("M", bound=nn.Module)


def select(model: nn.Module, *patterns: str, kind: type[M] | tuple[type[M], ...]) -> dict[str, M]:
    """The modules of a kind whose path matches one of the patterns, in the order of the model.

    Patterns are those of `Recipe.but`: `blocks.*.mixer.q` (`*` is one step, `q*` every name that begins with q),
    `**.mixer.*` (`**` is any number of steps, none included), `blocks.2::3.mixer.q` (a slice of a list),
    `blocks.-1.ffn.up`.

    Raises:
        ValueError: for a pattern that matches no module of that kind, with the nearest paths.
    """
    matches: dict[str, M] = {}
    for pattern in patterns:
        reached = _matching(model, pattern.split("."), "")
        hits = {path: module for path, module in reached if path and isinstance(module, kind)}  # never the root
        if not hits:
            raise ValueError(_nothing(model, pattern, kind))
        matches.update(hits)
    return {path: matches[path] for path, _ in model.named_modules(remove_duplicate=False) if path in matches}


def matching(model: nn.Module, pattern: str) -> list[nn.Module]:
    """The modules whose path matches a pattern, as in `select`; perhaps none."""
    return [module for _, module in _matching(model, pattern.split("."), "")]


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` at a path and at every other path of the old module, in its mode (training or not)."""
    _put(model, {model.get_submodule(path): module})


def _put(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Puts each new module at every path of its old one, in its mode."""
    places = [(path, module) for path, module in model.named_modules(remove_duplicate=False) if module in new]
    for path, old in places:
        if model.get_submodule(path) is old:
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, new[old].train(old.training))


def rewrite(
    model: nn.Module, *patterns: str, kind: type[M] | tuple[type[M], ...], make: Callable[[M], nn.Module]
) -> dict[str, Any]:
    """Replaces every selected module by `make(module)`; one at several paths is made once.

    Returns:
        The new modules by path.
    """
    chosen = select(model, *patterns, kind=kind)
    new: dict[nn.Module, nn.Module] = {}
    for old in chosen.values():  # all are made before the first is put, so that an error changes nothing
        if old not in new:
            new[old] = make(old)
    _put(model, new)
    return {path: new[old] for path, old in chosen.items()}


@contextlib.contextmanager
def holding(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Sets the parameters of the model to these tensors, by path, inside the block; restores its own afterwards."""
    held = [
        (module, name, own, weights[f"{path}.{name}" if path else name])
        for path, module in model.named_modules(remove_duplicate=False)
        for name, own in module._parameters.items()
        if own is not None
    ]
    for module, name, own, replacement in held:
        module._parameters[name] = nn.Parameter(replacement, own.requires_grad)
    try:
        yield
    finally:
        for module, name, own, _ in reversed(held):  # a module at two paths was replaced twice
            module._parameters[name] = own


def _matching(module: nn.Module, steps: list[str], path: str) -> Iterator[tuple[str, nn.Module]]:
    """Every module that `steps` match from `module`, which is at `path`."""
    if not steps:
        yield path, module
        return
    step, rest = steps[0], steps[1:]
    children = dict(module._modules)
    if step == "**":
        yield from _matching(module, rest, path)
        names, onward = list(children), steps
    else:
        names, onward = _chosen(list(children), step, isinstance(module, nn.ModuleList)), rest
    for name in names:
        child = children[name]
        if child is not None:
            yield from _matching(child, onward, f"{path}.{name}" if path else name)


def _chosen(names: list[str], step: str, is_list: bool) -> list[str]:
    """The names that one step of a pattern selects; slices and indices from the end are for lists."""
    try:
        if is_list and ":" in step:
            return names[slice(*(int(s) if s else None for s in step.split(":")))]
        if is_list and step.startswith("-"):
            return names[int(step) :][:1]
    except ValueError:
        raise ValueError(f"{step!r} is not a slice; write start:stop:step, as in blocks.2::3") from None
    return fnmatch.filter(names, step)


def _nothing(model: nn.Module, pattern: str, kind: Any) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    parts = " or ".join(k.__name__ for k in kinds)
    there = [path for path, module in model.named_modules() if isinstance(module, kinds)]
    near = nearest(pattern, there) or (
        f"; the first of them are {', '.join(there[:3])}" if there else "; the model has none"
    )
    return f"no {parts} has a path that matches {pattern!r}{near}"
