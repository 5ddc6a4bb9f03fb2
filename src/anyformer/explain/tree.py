"""A model as text: the tree of its module paths, its parameters by part, its recipe over several lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from anyformer.core.operations import part_of


def tree(model: nn.Module) -> list[tuple[str, str]]:
    """Every module path with its class and shapes; a run of equal neighbours is one line, `blocks.0-29`.

    Returns:
        (path, class and shapes of its own parameters), in the order of the model.
    """
    lines: list[tuple[str, str]] = []
    _grow(model, "", lines)
    return lines


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Parameter counts by part, layers summed: `blocks.*.mixer`. A tied weight is counted once."""
    counts: dict[str, int] = {}
    for name, weight in model.named_parameters():
        part = part_of(name)
        counts[part] = counts.get(part, 0) + weight.numel()
    return counts


def wrapped(expression: str, width: int = 100) -> str:
    """A Python expression over several lines: long parts are broken at the commas of their outermost brackets."""
    return "\n".join(_wrap(expression, width, 0))


def _wrap(text: str, width: int, indent: int) -> list[str]:
    pad, cuts = " " * indent, _outermost(text)
    if len(pad + text) <= width or not cuts:
        return [pad + text]
    lines, last = [], 0
    for start, end in cuts:
        lines.append(pad + text[last : start + 1])
        items = _items(text[start + 1 : end])
        called = start > 0 and (text[start - 1].isalnum() or text[start - 1] in "_])")
        group = text[start] == "(" and not called and len(items) == 1  # a comma would make it a tuple
        for item in items:
            lines += _wrap(item if group else item + ",", width, indent + 4)
        last = end
    return [*lines, pad + text[last:]]


def _outermost(text: str) -> list[tuple[int, int]]:
    """The positions of the outermost, non-empty brackets: (open, close)."""
    brackets, stack = [], []
    for at, sign in _outside_quotes(text):
        if sign in "([{":
            stack.append(at)
        elif sign in ")]}":
            start = stack.pop()
            if not stack and at > start + 1:
                brackets.append((start, at))
    return brackets


def _items(text: str) -> list[str]:
    """The parts between the commas outside of brackets."""
    depth, last, items = 0, 0, []
    for at, sign in _outside_quotes(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and not depth:
            items.append(text[last:at].strip())
            last = at + 1
    return [*items, text[last:].strip()]


def _outside_quotes(text: str) -> list[tuple[int, str]]:
    signs, quote = [], ""
    for at, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        else:
            signs.append((at, sign))
    return signs


def _grow(module: nn.Module, path: str, lines: list[tuple[str, str]]) -> None:
    children = list(module.named_children())
    at = 0
    while at < len(children):
        name, child = children[at]
        run = 1
        while name.isdigit() and at + run < len(children) and _same(child, children[at + run][1]):
            run += 1
        shown = name if run == 1 else f"{name}-{children[at + run - 1][0]}"
        here = f"{path}.{shown}" if path else shown
        if not isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Dropout | nn.Identity):
            lines.append((here, _shown(child)))
        _grow(child, here, lines)
        at += run


def _same(one: nn.Module, other: nn.Module) -> bool:
    return getattr(one, "recipe", None) is not None and one.recipe == getattr(other, "recipe", None)


def _shown(module: nn.Module) -> str:
    own = ", ".join(f"{name} {_shape(p.shape)}" for name, p in module.named_parameters(recurse=False))
    return f"{type(module).__name__}  {own}".rstrip()


def _shape(shape: Sequence[Any]) -> str:
    return " x ".join(map(str, shape))
