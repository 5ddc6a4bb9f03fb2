"""Passes in which every operation is homogeneous of degree 1 in its inputs and in the constants that it adds, so that
the score is the sum of all of them times their slopes.

B batch, T positions, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

from anyformer.core.slots import Positions
from anyformer.parts import reversible
from anyformer.parts.embeddings import Table
from anyformer.parts.folding import attention as folding
from anyformer.parts.moe import Router
from anyformer.parts.places import Places
from anyformer.parts.positions import RelativeBias
from anyformer.parts.products import Product
from anyformer.skeletons.stack import Blocks

HUGE = 1e30  # scores below minus this are hidden ones
KINDS = ("biases", "positions", "softmax", "others")  # of what enters beside the inputs
AGAIN: tuple[Any, ...] = (reversible, folding)  # modules whose parts run again in their backward pass
Rule = Callable[..., Any]


@dataclass
class Source:
    """One constant that enters the pass: its value, a leaf of the graph; what it is; the part that adds it; the layer
    in which that part ran."""

    leaf: Tensor
    kind: str
    path: str
    layer: str


@dataclass
class Layer:
    """One run of a layer: the stream before and behind it."""

    name: str
    before: Tensor | None = None
    behind: Tensor | None = None


class Linearised(TorchFunctionMode):
    """A pass by the rules of `explain.rules`. Tensors that need a gradient are *live*: they come from the inputs.

    ```python
    with Linearised(model, RULES, FUNCTIONS) as made:
        score = aim(model(...))                     # equal to the plain score
    leaves = [*inputs, *(s.leaf for s in made.sources)]
    sum((v * g).sum() for v, g in zip(leaves, torch.autograd.grad(score, leaves)))   # = score
    ```
    Args:
        model: whose parameters are no inputs; they are frozen inside the block.
        rules: by the name of an operation. `functions`: of functions with gradients written by hand, by class.
        routers: "half": the weight of an expert and its output share the relevance of their product; "fixed": the
            weight is a constant.
        softmax: "linear": s = J x + r, and r is a source; "fixed": s is a constant, so that only values carry
            relevance.

    Raises:
        ValueError: for an operation without a rule, with the path and the class of the part.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[str, Rule],
        functions: Mapping[Any, Rule],
        routers: str = "half",
        softmax: str = "linear",
    ):
        super().__init__()
        self.model, self.rules, self.functions, self.routers, self.softmax = model, rules, functions, routers, softmax
        self.sources: list[Source] = []
        self.layers: list[Layer] = []
        self._names = {module: name for name, module in model.named_modules()}
        self._inside: list[nn.Module] = []  # the parts that run now, the innermost last
        self._open: list[Layer] = []
        self._exits, self._depth = ExitStack(), 0

    def __enter__(self) -> Linearised:
        self._depth += 1
        if self._depth > 1:  # a rule that is written in operations with rules
            super().__enter__()
            return self
        frozen = [p for p in self.model.parameters() if p.requires_grad]
        for p in frozen:
            p.requires_grad_(False)
        self._exits.callback(lambda: [p.requires_grad_() for p in frozen])
        layers = outermost(self.model)
        for module in self._names:
            self._exits.callback(module.register_forward_pre_hook(self._enter(module in layers)).remove)
            self._exits.callback(module.register_forward_hook(self._leave(module in layers), always_call=True).remove)
        self._exits.enter_context(once())
        self._exits.enter_context(self._by_hand())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._depth -= 1
        if not self._depth:
            self._exits.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or not (alive(args) or alive(kwargs)):
            return func(*args, **kwargs)
        name = named(func)
        if name.endswith("_") and name not in self.rules:  # in place: the result replaces the value
            made = self._by_rule(name[:-1], getattr(torch.Tensor, name[:-1], func), args, kwargs)
            return torch.Tensor.copy_(args[0], made)
        return self._by_rule(name, func, args, kwargs)

    def _by_rule(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if name not in self.rules:
            raise ValueError(self.unknown(f"the operation {resolve_name(func) or name}"))
        return self.rules[name](self, func, *args, **kwargs)

    def unknown(self, what: str) -> str:
        """The message for something without a rule."""
        part = self._inside[-1] if self._inside else self.model
        return (
            f"{self._names.get(part, '') or 'the model'} ({type(part).__name__}) has no rule of relevance for {what}; "
            "add one to anyformer.explain.rules, or use method='ig' or 'occlusion'"
        )

    def source(self, value: Any, like: Tensor, kind: str = "") -> Tensor:
        """A constant that an operation adds to a live tensor, as a leaf that the ledger holds."""
        if not isinstance(value, Tensor):
            value = torch.tensor(value, dtype=like.dtype, device=like.device)
        if not (value.is_floating_point() or value.is_complex()):
            value = value.to(like.dtype)
        if live(value) or not bool(value.any()):
            return value
        leaf = value.detach().clone().requires_grad_()
        kind = kind or ("positions" if self._placed(value) else "biases")
        part = self._inside[-1] if self._inside else self.model
        self.sources.append(Source(leaf, kind, self._names.get(part, ""), self._layer()))
        return leaf

    def _layer(self) -> str:
        if self._open:
            return self._open[-1].name
        inside = [self._names.get(part, "") for part in self._inside]
        return next((name.split(".")[0] for name in reversed(inside) if name), "target")

    def _placed(self, value: Tensor) -> bool:
        """True if a value came from a part of positions, or is added inside one."""
        marked = getattr(value, "_of_positions", False)
        return marked or any(isinstance(part, Positions | Places | RelativeBias) for part in self._inside)

    def _enter(self, layer: bool) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            self._inside.append(module)
            if not layer:
                return None
            name = self._names[module]
            again = sum(each.name.partition(" ")[0] == name for each in self.layers)
            here = Layer(name if not again else f"{name} run {again + 1}")
            self.layers.append(here)
            self._open.append(here)
            if not (args and live(args[0])):
                return None
            here.before = args[0].view_as(args[0])  # the slope of this use of it alone
            return here.before, *args[1:]

        return hook

    def _leave(self, layer: bool) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
            self._inside.pop()
            if isinstance(module, Positions | Places | RelativeBias):
                for value in tree_leaves(out):
                    if isinstance(value, Tensor) and not live(value):
                        value._of_positions = True  # type: ignore[attr-defined]
            if isinstance(module, Router) and self.routers == "fixed" and isinstance(out, tuple):
                return tuple(v.detach() for v in out)
            if not layer:
                return None
            here = self._open.pop()
            if not live(out):
                return None
            here.behind = out.view_as(out)
            return here.behind

        return hook

    @contextmanager
    def _by_hand(self) -> Iterator[None]:
        """The rules of functions with gradients written by hand, in place of these."""
        plain: Any = torch.autograd.Function.__dict__["apply"]  # not bound to one class

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if cls is Product or not torch.is_grad_enabled() or not (alive(args) or alive(kwargs)):
                return plain.__func__(cls, *args, **kwargs)  # a product is linear: its gradient is the rule
            if cls not in self.functions:
                raise ValueError(self.unknown(f"{cls.__module__}.{cls.__name__}"))
            return self.functions[cls](self, *args, **kwargs)

        torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            torch.autograd.Function.apply = plain  # type: ignore[method-assign]


@contextmanager
def once() -> Iterator[None]:
    """Parts keep what their backward pass needs, instead of running again in it, outside of the rules."""

    def plainly(run: Callable[..., Any], *args: Any, use_reentrant: bool) -> Any:
        return run(*args)

    again = [(part, part.checkpoint) for part in AGAIN]
    for part in AGAIN:
        part.checkpoint = plainly
    try:
        yield
    finally:
        for part, plain in again:
            part.checkpoint = plain


def outermost(model: nn.Module) -> set[nn.Module]:
    """The layers of all stacks of blocks, those of models inside other layers left out."""
    found: set[nn.Module] = set()
    below: set[nn.Module] = set()
    for module in model.modules():
        layers = list(module.layers()) if isinstance(module, Blocks) and module not in below else []
        for layer in layers:
            if layer not in below:
                found.add(layer)
                below.update(m for m in layer.modules() if m is not layer)
    return found - below


def tables(front: nn.Module) -> list[nn.Module]:
    """The token tables inside a front-end."""
    return [m for m in front.modules() if isinstance(m, Table | nn.Embedding)]


def live(value: Any) -> bool:
    """True of a tensor that depends on the inputs."""
    return isinstance(value, Tensor) and value.requires_grad


def alive(value: Any) -> bool:
    """True of a tensor that depends on the inputs, and of what holds one."""
    if isinstance(value, tuple | list):
        return any(map(alive, value))
    return any(map(alive, value.values())) if isinstance(value, dict) else live(value)


@functools.lru_cache(4096)
def named(func: Any) -> str:
    """The name of an operation: "add" of `torch.Tensor.add`, `x + y` and `torch.add`."""
    name = (resolve_name(func) or getattr(func, "__name__", "")).removesuffix(".__get__").rpartition(".")[2]
    return name.strip("_") if name.startswith("__") else name


def scaled(value: Tensor, share: float) -> Tensor:
    """The same value, whose slope is a share of it."""
    same = value.view_as(value)
    same.register_hook(lambda slope: slope * share)
    return same


def shared(args: Any) -> Any:
    """The arguments of a product of n live factors, each with 1 / n of its slope."""
    count = sum(map(live, tree_leaves(args)))
    return tree_map(lambda v: scaled(v, 1 / count) if live(v) and count > 1 else v, args)
