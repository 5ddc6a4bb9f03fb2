"""Steering: directions that are added to the stream while a model writes.

B batch, T positions, D width.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from anyformer.core.front import FrontEnd
from anyformer.core.value import nearest
from anyformer.hub.formats.guard import FileRefused, atomic_write, read_bytes, refuse

FORMAT = "anyformer direction"
LARGEST = 64_000_000  # bytes of a file


@dataclass(frozen=True)
class Direction:
    """A vector that is added to the output of one module: y + strength * vector (Turner et al., 2023;
    arXiv:2308.10248).

    Args:
        at: the path of the module, `blocks.15`.
        vector: (D,).
        strength: how often it is added; 1 = as it is, negative: away from it.
        made: how it was made, plain values, for people.
    """

    at: str
    vector: Tensor
    strength: float = 1.0
    made: dict[str, Any] | None = None

    def save(self, path: str | Path) -> None:
        """Writes a .safetensors file: the vector, and the rest as its metadata."""
        from safetensors.torch import save

        told = {"format": FORMAT, "at": self.at, "made": json.dumps(self.made or {})}
        atomic_write(path, save({"vector": (self.strength * self.vector).float().contiguous().cpu()}, told))


def read(text: str) -> Direction:
    """The direction of `FILE` or `FILE:STRENGTH`.

    Raises:
        FileRefused: for a file that is no direction. FileNotFoundError: if it is not there.
        ValueError: for a strength that is no number.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    name, colon, number = text.rpartition(":")
    if not colon or Path(text).is_file():
        name, number = text, "1"
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise ValueError(f"steer {text!r}: expected FILE or FILE:STRENGTH, such as happy.safetensors:2; got {number!r}")
    data = read_bytes(name, LARGEST)
    try:
        told = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        vector = load(data).get("vector")
        at, made = told.get("at"), json.loads(told.get("made", "{}"))
    except (SafetensorError, ValueError, AttributeError) as error:
        raise refuse(name, "content", "a direction that `anyformer steer` wrote", str(error)) from error
    if told.get("format") != FORMAT or vector is None or vector.ndim != 1 or not isinstance(at, str):
        raise refuse(name, "format", f"{FORMAT!r}, which `anyformer steer` writes", told.get("format", "no format"))
    if not bool(vector.isfinite().all()):
        raise FileRefused(f"{name}: vector: expected finite numbers")
    return Direction(at, vector, strength, made)


class Changed:
    """A model whose passes are changed by hooks. Every attribute is that of the model; other users of the model, also
    between two tokens of this one's text, see it as it is. Subclasses write `hooks`."""

    def __init__(self, model: Any):
        self.model = model

    def hooks(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The hooks of one pass with these inputs."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        hooks = self.hooks(inputs)
        try:
            return self.model(*args, **inputs)
        finally:
            for hook in hooks:
                hook.remove()


class Steered(Changed):
    """A model whose passes have directions added.

    Raises:
        ValueError: for a path that is none, a module without one stream, another width.
    """

    def __init__(self, model: Any, directions: Sequence[Direction]):
        super().__init__(model)
        self.directions = [d for d in directions if d.strength]
        like = next(model.parameters())
        modules = dict(model.named_modules())
        for each in self.directions:
            if each.at not in modules or not each.at:
                near = nearest(each.at, [n for n in modules if n])
                raise ValueError(f"steer: {each.at!r} is no place of this model{near}; see `anyformer inspect`")
        self._added = [(modules[d.at], d.at, (d.strength * d.vector).to(like)) for d in self.directions]

    def hooks(self, inputs: Mapping[str, Any] | None = None) -> list[Any]:
        """See `Changed`; the directions are the same in every pass."""
        return [module.register_forward_hook(_adding(path, vector)) for module, path, vector in self._added]


def _adding(path: str, vector: Tensor) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        first = out[0] if isinstance(out, tuple) else out
        if not isinstance(first, Tensor) or first.shape[-1] != len(vector):
            got = f"width {first.shape[-1]}" if isinstance(first, Tensor) else type(first).__name__
            raise ValueError(
                f"steer: the direction is {len(vector)} numbers, and the output of {path} has {got}; a direction fits "
                "the model and the place that it was made for"
            )
        made = first + vector
        return (made, *out[1:]) if isinstance(out, tuple) else made

    return hook


Steer = str | Direction | Sequence[str | Direction] | None


def with_steering(model: Any, steer: Steer) -> Any:
    """The model with directions, files of directions (`FILE`, `FILE:2`), or several of them; None: the model itself.

    Raises:
        ValueError: for a model in ONNX Runtime, whose programs have no place to add anything; for a direction of
            another model.
    """
    if steer is None:
        return model
    several = [steer] if isinstance(steer, str | Direction) else list(steer)
    if hasattr(model, "torch_model"):
        raise ValueError("steer adds to the streams of PyTorch modules, and ONNX Runtime has none; use engine='torch'")
    made = Steered(model, [d if isinstance(d, Direction) else read(d) for d in several])
    return made if made.directions else model


def steered_always(model: Any, steer: Steer) -> Any:
    """The model itself, in all of whose passes the directions are added from now on: for a program that has no other
    use of it. Errors are those of `with_steering`."""
    made = with_steering(model, steer or None)
    if isinstance(made, Steered):
        made.hooks()  # which nobody removes
    return model


def blocks_of(model: nn.Module) -> list[str]:
    """The paths of all blocks, `blocks.3`, `decoder.blocks.3`, in order; without those of models inside this one."""
    named = [(name, m) for name, m in model.named_modules() if name]
    inner = tuple(f"{name}." for name, m in named if isinstance(m, FrontEnd) or hasattr(m, "entrances"))
    every = [name for name, _ in model.named_modules() if re.fullmatch(r"(?:.+\.)?blocks\.\d+", name)]
    return [name for name in every if not name.startswith(inner)]
