"""Taps: recordings of activations by path."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from anyformer.core.shown import Shown


class Taps(Shown):
    """Records activations by path, without changing them.

    ```python
    with Taps(model, "blocks.*", "blocks.3.mixer.weights") as taps:
        model(ids)
    taps["blocks.3.mixer.weights"]                       # (B, H, T, S)
    ```
    A name is a module's path (its output), or a module's path and an inner name that the module offers: `weights` of
    attention. `*` matches one step of a path. The elements of an output with several tensors are recorded with their
    number or name: `blocks.3.0`, `blocks.3.1`.

    A pattern that records nothing is an error: at once for lists of modules, which have no output, and when the block
    ends for all others.
    """

    def __init__(self, model: nn.Module, *patterns: str):
        self.model, self.patterns = model, patterns
        self.names = {module: name for name, module in model.named_modules()}
        self.recorded: dict[str, Tensor] = {}
        self._inner = [p for p in patterns if not any(fits(n, p) for n in self.names.values())]
        self._hooks: list[Any] = []
        for pattern in patterns:
            hits = [m for m, n in self.names.items() if fits(n, pattern)]
            if hits and all(isinstance(m, nn.ModuleList | nn.ModuleDict) for m in hits):
                raise ValueError(f"{pattern!r} is a list of modules, which has no output; write {pattern}.*")

    def wants(self, module: nn.Module, inner: str) -> bool:
        """True if some pattern matches this inner value."""
        return any(fits(f"{self.names[module]}.{inner}", p) for p in self._inner)

    def put(self, module: nn.Module, inner: str, value: Tensor) -> None:
        """Records an inner value that a module offers."""
        self.recorded[f"{self.names[module]}.{inner}"] = value

    def offer(self, module: nn.Module, inner: str, part: Callable[[slice], Tensor], count: int, axis: int = -2) -> None:
        """Records an inner value that a module can make in parts.

        Args:
            part: a slice of `count` places along an axis -> the value there.
        """
        self.put(module, inner, part(slice(0, count)))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.recorded:
            raise ValueError(f"nothing was recorded at {name!r}; recorded: {', '.join(self.recorded) or 'nothing'}")
        return self.recorded[name]

    def items(self) -> list[tuple[str, Tensor]]:
        """All recorded (path, value), in the order of the forward pass."""
        return list(self.recorded.items())

    def __enter__(self) -> Self:
        models = [m for m in self.names if hasattr(type(m), "taps")]  # the model, and models inside it
        if any(m.taps is not None for m in models):
            raise ValueError("this model is being recorded already; put all patterns into one Taps")
        for module, name in self.names.items():
            if any(fits(name, p) for p in self.patterns):
                self._hooks.append(module.register_forward_hook(self._recorder(name)))
        for m in models:
            m.taps = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for module in self.names:
            if hasattr(type(module), "taps"):
                module.taps = None
        if kind is not None:
            return
        for pattern in self.patterns:
            if not any(_records(name, pattern) for name in self.recorded):
                known = pattern not in self._inner
                raise ValueError(
                    f"{pattern!r} recorded nothing: "
                    + ("its module did not run, or returns no tensor" if known else "no module offers such a value")
                    + "; module paths are listed by `anyformer inspect`"
                )

    def _recorder(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            several = dict(enumerate(output)) if isinstance(output, tuple) else {}
            several = output if isinstance(output, dict) else several
            tensors = {f"{name}.{key}": value for key, value in several.items() if isinstance(value, Tensor)}
            if isinstance(output, Tensor):
                tensors = {name: output}
            elif len(tensors) == 1:  # of a stack, which returns its flow as well
                tensors = {name: next(iter(tensors.values()))}
            self.recorded.update(tensors)

        return record


def fits(name: str, pattern: str) -> bool:
    """True if the path matches the pattern; `*` matches exactly one step."""
    steps, wanted = name.split("."), pattern.split(".")
    return len(steps) == len(wanted) and all(fnmatch.fnmatchcase(s, w) for s, w in zip(steps, wanted, strict=True))


def _records(name: str, pattern: str) -> bool:
    """True if the pattern matches this recorded value, or the output whose element it is."""
    return fits(name, pattern) or fits(name.rpartition(".")[0], pattern)
