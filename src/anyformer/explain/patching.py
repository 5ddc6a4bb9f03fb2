"""Patching: what a place in the model carries, by putting its value from one input into the pass over another.

B batch, T positions, H heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.value import nearest
from anyformer.explain.attribution import named
from anyformer.explain.features import Explained
from anyformer.explain.target import Target, goal
from anyformer.skeletons.base import Output

HEADS = "heads"  # behind the path of an attention: each of its heads
Where = Mapping[str, Tensor | None]  # path -> True where the clean value is put, over (B, T, width); None = everywhere


@dataclass(frozen=True)
class Patched:
    """The score with one place from the clean input.

    Args:
        scores: by path the score of the corrupt input with that value: (B,), by position (B, T), by head (B, H).
        first_order: the same by the slope alone, from one pass forwards and back.
        clean, corrupt: the scores of the two inputs, (B,). `target`: the name of the score.
    """

    scores: dict[str, Tensor]
    first_order: dict[str, Tensor]
    clean: Tensor
    corrupt: Tensor
    target: str

    def restored(self, path: str) -> Tensor:
        """The share of the difference that the place brings back: 0 = none, 1 = all of it."""
        return _share(self.scores[path], self.clean, self.corrupt)


def _share(scores: Tensor, clean: Tensor, corrupt: Tensor) -> Tensor:
    shape = (-1, *[1] * (scores.ndim - 1))
    return (scores - corrupt.reshape(shape)) / (clean - corrupt).reshape(shape)


def patch(
    model: Any,
    clean: Any,
    corrupt: Any,
    paths: str | Sequence[str] = "**.blocks.*",
    target: Target = None,
    *,
    positions: bool = False,
    exact: bool = True,
    at: int | None = None,
    head: str | None = None,
) -> Patched:
    """The score of a corrupt input when the outputs of single modules come from a clean one (Meng et al., 2022;
    arXiv:2202.05262). That a place restores the score does not tell that it is the place to edit (Hase et al., 2023).

    ```
    scores       exact: a pass for each place
    first_order  score of the corrupt input + (clean value - corrupt value) * slope there, all places in one pass
    ```
    Args:
        model: any model, in evaluation mode.
        clean, corrupt: two inputs of one shape, as of `attribute`.
        paths: of modules; `*` is one step and `**` any number. `blocks.3.mixer.heads` is each head of an attention,
            before its output matrix: also where heads share keys and values, they are apart there.
        target: as of `attribute`; None: the highest score of the clean input.
        positions: each position by itself.
        exact: False: the first order alone, for many places.
        at, head: as of `attribute`.

    Raises:
        ValueError: for inputs of two shapes, scores that do not differ, a path that is none.
    """
    one, two = (Explained(model, named(model, inputs)) for inputs in (clean, corrupt))
    check_shapes(one, two)
    places = found(model, [paths] if isinstance(paths, str) else paths)
    with recorded(model, places) as values, torch.no_grad():
        out = one.run()
        aim = goal(model, out, target, at, head, one.inputs)
        best, theirs = aim(out).double(), dict(values)
    scores, first = dict[str, Tensor](), dict[str, Tensor]()
    slopes, ours, worst = _slopes(two, places, aim)
    if bool(((best - worst).abs() < 1e-9).any()):
        raise ValueError(f"both inputs have the score {float(best[0]):.4g} for {aim.name}, so no place can restore it")
    for path in places:
        if path not in theirs:
            raise ValueError(f"{path} did not run or returns no tensor; module paths are listed by `anyformer inspect`")
        change = ((theirs[path] - ours[path]).double() * slopes[path].double()).detach()
        first[path] = _grouped(model, path, change, positions) + _column(worst, path, positions, change)
        if exact:
            masks = _masks(model, path, theirs[path], positions)
            results = [aim(patched(two, {path: theirs[path]}, {path: m})).double() for m in masks]
            alone = len(masks) == 1 and not positions and not path.endswith(f".{HEADS}")
            scores[path] = results[0] if alone else torch.stack(results, 1)
    return Patched(scores, first, best, worst, aim.name)


def check_shapes(one: Explained, two: Explained) -> None:
    """Raises ValueError unless both calls have the same inputs in the same shapes."""
    for name in {**one.inputs, **two.inputs}:
        shapes = [tuple(e.inputs[name].shape) if name in e.inputs else None for e in (one, two)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name}: the clean input has the shape {shapes[0]}, the corrupt one {shapes[1]}; patching compares "
                "them position by position, so choose texts with equally many tokens"
            )


def found(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The paths of modules, and of the heads of attention, that fit the patterns, in the order of the model.

    Raises:
        ValueError: for a pattern that fits none, with the nearest path.
    """
    every = [name for name, module in model.named_modules() if name and not _list(module)]
    every += [f"{name}.{HEADS}" for name in every if head_count(model.get_submodule(name))]
    chosen = []
    for pattern in patterns:
        steps = "".join(
            r"(?:[^.]+\.)*" if s == "**" else re.escape(s).replace(r"\*", "[^.]*") + r"\." for s in pattern.split(".")
        )
        hits = [name for name in every if re.fullmatch(steps, f"{name}.")]
        if not hits:
            raise ValueError(f"{pattern!r} is no place of this model{nearest(pattern, every)}; see `anyformer inspect`")
        chosen += hits
    return list(dict.fromkeys(chosen))


def _list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.ModuleDict)


def head_count(module: Any) -> int | None:
    """The number of heads whose values o, a matrix, reads side by side."""
    o, heads = getattr(module, "o", None), getattr(module, "heads", None)
    width = getattr(o, "in_features", 0) or getattr(o, "columns", 0)  # of a matrix in few bits
    return heads if isinstance(heads, int) and isinstance(o, nn.Module) and width and width % heads == 0 else None


def _on_input(path: str, model: nn.Module) -> tuple[nn.Module, bool]:
    """The module to hook, and whether at its input."""
    if path.endswith(f".{HEADS}"):
        return model.get_submodule(path.removesuffix(f".{HEADS}")).o, True  # type: ignore[return-value]
    return model.get_submodule(path), False


@contextmanager
def changed(model: nn.Module, path: str, change: Any) -> Iterator[None]:
    """The value at a path becomes `change(value)` in every pass inside the block; None leaves it."""
    module, before = _on_input(path, model)

    def at_input(module: nn.Module, args: tuple[Any, ...]) -> Any:
        made = change(args[0])
        return None if made is None else (made, *args[1:])

    def at_output(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        if isinstance(out, tuple) and out and isinstance(out[0], Tensor):
            made = change(out[0])
            return None if made is None else (made, *out[1:])
        return change(out) if isinstance(out, Tensor) else None

    hook = module.register_forward_pre_hook(at_input) if before else module.register_forward_hook(at_output)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def recorded(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The values at these paths; of a module that runs twice in a pass the last one."""
    values: dict[str, Tensor] = {}

    def note(path: str) -> Any:
        return lambda value: values.update({path: value})

    with ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(changed(model, path, note(path)))
        yield values


@torch.no_grad()
def patched(explained: Explained, values: Mapping[str, Tensor], masks: Where | None = None) -> Output:
    """The output of a call with other values at some paths, all of them at once.

    Args:
        values: by path. `masks`: by path True where the value is put, in a shape that broadcasts; None: everywhere.
    """
    with ExitStack() as hooks:
        for path, value in values.items():
            mask = None if masks is None else masks.get(path)

            def change(own: Tensor, value: Tensor = value, mask: Tensor | None = mask) -> Tensor:
                return value.to(own.dtype) if mask is None else torch.where(mask, value.to(own.dtype), own)

            hooks.enter_context(changed(explained.model, path, change))
        return explained.run()


def _slopes(
    explained: Explained, paths: Sequence[str], aim: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """The slope of the score in each value, the values, and the score, of a call."""
    leaves, values = dict[str, Tensor](), dict[str, Tensor]()

    def lift(path: str) -> Any:
        def change(value: Tensor) -> Tensor:
            values[path] = value.detach()
            leaves[path] = torch.zeros_like(value, requires_grad=True)
            return value + leaves[path]

        return change

    with ExitStack() as hooks, torch.enable_grad():
        for path in paths:
            hooks.enter_context(changed(explained.model, path, lift(path)))
        score = aim(explained.run())
        found = torch.autograd.grad(score.sum(), list(leaves.values()), allow_unused=True)
    slopes = {p: torch.zeros_like(v) if g is None else g for (p, v), g in zip(leaves.items(), found, strict=True)}
    return slopes, values, score.detach().double()


def _grouped(model: nn.Module, path: str, change: Tensor, positions: bool) -> Tensor:
    """The sum of the changes of one place, for each position or head where these are apart."""
    if path.endswith(f".{HEADS}"):
        heads = head_count(model.get_submodule(path.removesuffix(f".{HEADS}")))
        each = change.unflatten(-1, (heads, -1)).sum(-1)  # (B, T, H)
        return each.flatten(1, 2) if positions else each.sum(1)
    if positions:
        return change.flatten(2).sum(2) if change.ndim > 2 else change
    return change.flatten(1).sum(1)


def _column(score: Tensor, path: str, positions: bool, change: Tensor) -> Tensor:
    return score[:, None] if positions or path.endswith(f".{HEADS}") else score


def _masks(model: nn.Module, path: str, value: Tensor, positions: bool) -> list[Tensor | None]:
    """The parts of a place that are patched one by one."""
    heads = head_count(model.get_submodule(path.removesuffix(f".{HEADS}"))) if path.endswith(f".{HEADS}") else None
    if heads is None and not positions:
        return [None]
    places = range(value.shape[1]) if positions else [None]
    masks: list[Tensor | None] = []
    for place in places:
        for head in range(heads or 1):
            mask = torch.zeros(value.shape[1:], dtype=torch.bool, device=value.device)
            rows: Any = slice(None) if place is None else place
            width = value.shape[-1] // (heads or 1)
            mask[rows, ..., head * width : (head + 1) * width] = True
            masks.append(mask)
    return masks
