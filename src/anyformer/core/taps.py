"""Taps: listening to activations by path."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor, nn


class Taps:
    """Listens to activations by path, without changing them.

    ```python
    with Taps(model, "blocks.*", "blocks.3.mixer.weights") as taps:
        model(ids)
    taps["blocks.3.mixer.weights"]                       # (B, H, T, S)
    ```
    A name is a module's path (its output), or a module's path and an inner name that the module offers: `weights` of
    attention. `*` matches one step of a path. A pattern that matches nothing is an error, at once for modules, and
    when the
    block ends for inner names.
    """

    def __init__(self, model: nn.Module, *patterns: str):
        self.model, self.patterns = model, patterns
        self.names = {module: name for name, module in model.named_modules()}
        self.found: dict[str, Tensor] = {}
        self._inner = [p for p in patterns if not any(_fits(n, p) for n in self.names.values())]
        self._hooks: list[Any] = []

    def wants(self, module: nn.Module, inner: str) -> bool:
        """Does anybody listen to this inner value?"""
        return any(_fits(f"{self.names[module]}.{inner}", p) for p in self._inner)

    def put(self, module: nn.Module, inner: str, value: Tensor) -> None:
        """A module offers an inner value."""
        self.found[f"{self.names[module]}.{inner}"] = value

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.found:
            raise ValueError(f"nothing was recorded at {name!r}; recorded: {', '.join(self.found) or 'nothing'}")
        return self.found[name]

    def items(self) -> list[tuple[str, Tensor]]:
        """All recorded (path, value), in the order of the forward pass."""
        return list(self.found.items())

    def __enter__(self) -> Taps:
        if getattr(self.model, "taps", None) is not None:
            raise ValueError("this model is being listened to already; nest the patterns in one Taps")
        for module, name in self.names.items():
            if any(_fits(name, p) for p in self.patterns):
                self._hooks.append(module.register_forward_hook(self._recorder(name)))
        self.model.taps = self  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self.model.taps = None  # type: ignore[assignment]
        missing = [p for p in self._inner if not any(_fits(n, p) for n in self.found)]
        if missing and kind is None:
            raise ValueError(
                f"nothing in the model answers to {missing[0]!r}; module paths are listed by `anyformer inspect`"
            )

    def _recorder(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.found[name] = output

        return record


def _fits(name: str, pattern: str) -> bool:
    """`*` stands for exactly one step of a path."""
    steps, wanted = name.split("."), pattern.split(".")
    return len(steps) == len(wanted) and all(fnmatch.fnmatchcase(s, w) for s, w in zip(steps, wanted, strict=True))
