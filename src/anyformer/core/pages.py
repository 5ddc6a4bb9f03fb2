"""Pages: one file of `models/` is one architecture. They are found by listing the folder; nothing registers itself.

A page has: a docstring; a frozen dataclass of hyperparameters; a function with the file's name that makes the recipe;
`SIZES`, which contains `tiny` (and `mini`, the default of `anyformer train`); `PARAMETERS`, the number of
parameters of each size, for published ones as published; `CASES`, the variants of `tiny` that the contract tests;
optionally `TASK`, its usual task (`train.tasks.registry`); `HUBS`, the maps to published files; optionally
`first_weights(config)`, the published initial sizes: `core.init.Size` by path pattern
(`{"embed.tokens": 1.0}`). `ORACLE` is a sentence on the reference of the numbers, if no files in the form of
`transformers` are published.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch.overrides import TorchFunctionMode

from anyformer.core.hyper import changed
from anyformer.core.init import initialise
from anyformer.core.listing import names as names
from anyformer.core.recipe import Recipe
from anyformer.core.value import nearest

if TYPE_CHECKING:
    from anyformer.skeletons.base import Skeleton

M = TypeVar("M")


@dataclass(frozen=True)
class Page:
    """One architecture. `module` is the page itself."""

    name: str
    module: Any

    @property
    def config(self) -> type:
        """The class of its hyperparameters."""
        return type(self.module.SIZES["tiny"])

    @property
    def sizes(self) -> dict[str, Any]:
        """Published sizes by name, `tiny` for tests, and `mini`, which learns within minutes."""
        return self.module.SIZES

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.module.__doc__ or "").strip().splitlines()[0]

    def recipe(self, config: Any) -> Recipe[Any]:
        """The architecture with these hyperparameters."""
        made = getattr(self.module, self.name)(config)
        if not hasattr(self.module, "first_weights"):
            return made
        return Recipe(made.part, made.options, functools.partial(self.module.first_weights, config))

    def at(self, size: str, **changes: Any) -> Any:
        """The hyperparameters of a size, some of them changed; nested ones by dotted names:
        `at("tiny", **{"text.dim": 32})`.

        Raises:
            ValueError: for an unknown size or hyperparameter, with the nearest names, or a value of another type.
        """
        if size not in self.sizes:
            raise ValueError(
                f"{self.name} has no size {size!r}{nearest(size, list(self.sizes))}; it has {', '.join(self.sizes)}"
            )
        return changed(self.sizes[size], changes, self.name)


@functools.cache
def page(name: str) -> Page:
    """The page of that name.

    Raises:
        ValueError: with the nearest names, if there is none.
    """
    if name not in names():
        raise ValueError(f"no architecture is called {name!r}{nearest(name, names())}; there is {', '.join(names())}")
    return Page(name, importlib.import_module(f"anyformer.models.{name}"))


def pages() -> list[Page]:
    """All pages."""
    return [page(name) for name in names()]


def recipe(name: str, size: str = "tiny", **changes: Any) -> Recipe[Any]:
    """The recipe of a published architecture: `recipe("llama", "tiny", kv_heads=1)`."""
    architecture = page(name)
    return architecture.recipe(architecture.at(size, **changes))


@overload
def build(what: Recipe[M], size: str = ..., *, seed: int | None = ...) -> M: ...


@overload
def build(
    what: str,
    size: str = ...,
    *,
    seed: int | None = ...,
    overrides: Any = ...,  # a Mapping; Any, so that a checker accepts `**sizes` of a dict[str, int]
    **hyper: Any,
) -> Skeleton: ...


def build(
    what: str | Recipe[Any],
    size: str = "tiny",
    *,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    **hyper: Any,
) -> Any:
    """A model with fresh weights: `build("llama", "tiny", kv_heads=1)`, or `build(recipe)`.

    Args:
        what: the name of a page, or a recipe.
        size: one of the page's sizes.
        seed: of the initial weights.
        overrides: hyperparameters that differ from that size, by name: `{"text.dim": 32}`; one whose name has no dot
            can also be passed as a keyword argument.

    Raises:
        ValueError: for an unknown page, size or hyperparameter, with the nearest names.
    """
    if "changes" in hyper:
        raise TypeError("the option 'changes' of build is now called 'overrides'")
    if seed is not None:
        torch.manual_seed(seed)  # some parts draw in their constructor
    model: Any
    if isinstance(what, Recipe):
        model = what.build()
    else:
        config = page(what).at(size, **{**(overrides or {}), **hyper})
        model = page(what).recipe(config).build()
        model.page, model.config = what, config
    if next(model.parameters()).device.type != "meta":
        initialise(model, seed=seed)
    return model


def empty(what: Recipe[Any]) -> Any:
    """The modules of a recipe on the meta device: shapes and names without memory."""
    with torch.device("meta"), _NoDraws():
        return what.build()


class _NoDraws(TorchFunctionMode):
    """Skips random draws: useless without memory, and the first on the meta device imports PyTorch's compiler."""

    draws = frozenset({torch.Tensor.normal_, torch.Tensor.uniform_})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.draws or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def import_all() -> None:
    """Imports every module that can define parts and values: the public parts, and all pages."""
    importlib.import_module("anyformer.parts")
    pages()
