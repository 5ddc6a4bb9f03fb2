"""Part: an ordinary `nn.Module` whose first constructor argument is the width of the stream that it works on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.recipe import PARTS, Recipe, signature, stored_name
from anyformer.core.shown import Shown
from anyformer.core.value import register

O = ParamSpec("O")  # the options of a part: its constructor's arguments after the width
T = TypeVar("T")


class Part(nn.Module, Shown):
    """Base of every part. Adds one method to `nn.Module`: `of`, which describes the part before its width is known.

    A part builds its submodules from recipes, and draws its own initial weights in `reset_parameters` where the common
    rule (`core.init`) does not fit.
    """

    kinds: ClassVar[dict[str, type[Part]]] = PARTS
    closed: ClassVar[bool] = False  # True for a skeleton: its width is one of its options
    given: ClassVar[tuple[str, ...]] = ("dim",)  # leading constructor arguments that the parent supplies
    recipe: Recipe[Any] | None = None  # set by Recipe.build

    def __init_subclass__(cls, also: str = "") -> None:
        """Registers the part under its stored name, and under `also`, an older name in stored files."""
        for name in filter(None, (stored_name(cls), also)):
            register(cls, Part.kinds, name)

    @classmethod
    def of(cls: Callable[Concatenate[int, O], T], *args: O.args, **options: O.kwargs) -> Recipe[T]:
        """A recipe of this part: options now, width later. A type checker sees the constructor's signature.

        Raises:
            ValueError: for an option that the part does not have, or a missing one.
        """
        part: Any = cls
        names = list(signature(part))
        if len(args) > len(names):
            raise ValueError(f"{part.__name__} takes {len(names)} options ({', '.join(names)}), got {len(args)}")
        leading = dict(zip(names, args, strict=False))
        if twice := sorted(set(leading) & set(options)):
            raise ValueError(f"{part.__name__}: {twice[0]!r} is passed twice, by position and by name")
        return Recipe(part, {**leading, **options})

    def skips_gaps(self) -> bool:
        """True if padding inside a text does not count as text. False for parts with distances or a recurrence."""
        return True

    def adjust_parameters(self) -> None:
        """Scales the initial weights after all parts have drawn theirs. Only `initialise` calls it, once."""

    def reset_parameters(self) -> None:
        """Draws initial weights, where the common rule of `core.init` does not fit. Called after it."""


def drop(part: Any, x: Tensor) -> Tensor:
    """Dropout with the part's `dropout` in training; otherwise `x`, at no cost."""
    return F.dropout(x, part.dropout) if part.training and part.dropout else x


def built(recipe: Recipe[Any] | None, dim: int) -> Any:
    """The module of an optional recipe, or None."""
    return None if recipe is None else recipe.build(dim)


def call(part: nn.Module | None, x: Tensor, *args: Any) -> Tensor:
    """`x` after an optional part."""
    return x if part is None else part(x, *args)


def check_option(owner: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
