"""Values: small frozen dataclasses that a recipe can hold as an option (masks, rotary scalings)."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, ClassVar

from anyformer.core.check import fit, kinds_of


def nearest(name: str, names: list[str] | tuple[str, ...], count: int = 3) -> str:
    """' (did you mean a, b?)' for the error message of a mistyped name, or an empty string."""
    matches = difflib.get_close_matches(name, names, count, 0.5)
    return f" (did you mean {', '.join(matches)}?)" if matches else ""


class _Checked(type):
    """Checks the arguments of a dataclass against the annotations of its fields."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{cls.__name__} is an abstract kind of value; build one of its subclasses")
        kinds = kinds_of(cls)
        leading = zip(kinds, args, strict=False)  # too many arguments are the constructor's error
        fitted = [fit(value, kinds[name], f"{cls.__name__}.{name}") for name, value in leading]
        named = {k: fit(v, kinds[k], f"{cls.__name__}.{k}") if k in kinds else v for k, v in options.items()}
        return super().__call__(*fitted, *args[len(fitted) :], **named)


class Value(metaclass=_Checked):
    """Base of small frozen dataclasses that a recipe can hold as an option: masks, rotary scalings.

    They are plain values: equal when their fields are, printed as the call that makes them, stored by class name. Their
    fields are checked against their annotations.
    """

    kinds: ClassVar[dict[str, type[Value]]] = {}

    def __init_subclass__(cls) -> None:
        register(cls, Value.kinds, cls.__name__)


def register(cls: type, kinds: dict[str, Any], name: str) -> None:
    """Registers a class under its name in stored recipes; a second class of that name is an error."""
    other = kinds.get(name)
    if other is not None and other.__module__ != cls.__module__:
        raise TypeError(f"two classes are called {name}: in {other.__module__} and in {cls.__module__}")
    kinds[name] = cls
