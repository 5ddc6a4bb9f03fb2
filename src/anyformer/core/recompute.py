"""Less memory for activations: those that are not saved are recomputed in backward.

`recompute` does so by path, for whole modules, at the cost of a second forward pass; `remade` for single tensors that
cost next to nothing to compute.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.checkpoint import checkpoint

from anyformer.core.flow import Companion, Flow
from anyformer.core.rewrite import select


@dataclass(frozen=True)
class Recomputed(Companion):
    """The mark of a pass inside a recomputed module: parts add no recomputation of their own."""

    left_by: ClassVar[str] = "core.recompute"


def recompute(model: nn.Module, *patterns: str) -> list[str]:
    """Makes the modules at these paths save only their inputs (Chen et al., 2016; arXiv:1604.06174).

    Costs a second forward pass of them, saves their activations; loss and gradients stay the same, dropout included.
    Decoding and passes without gradients do not change. `("blocks.*",)` is the usual choice; `("blocks.::2",)` every
    second block; `("blocks.*.ffn",)` the feed-forward parts only.

    Returns:
        The paths.

    Raises:
        ValueError: for a pattern that matches no module, with the nearest paths.
    """
    modules = select(model, *patterns, kind=nn.Module) if patterns else {}
    for module in modules.values():
        if "forward" not in vars(module):
            module.forward = functools.partial(_again, module.forward)
    return list(modules)


@contextlib.contextmanager
def recomputing(model: nn.Module, *patterns: str) -> Iterator[None]:
    """Applies `recompute` inside the block."""
    before = {id(m) for m in model.modules() if "forward" in vars(m)}
    modules = [model.get_submodule(path) for path in recompute(model, *patterns)]
    made = {m: m.forward for m in modules if id(m) not in before}
    try:
        yield
    finally:
        for module, forward in made.items():
            if vars(module).get("forward") is forward:  # not replaced since
                del module.forward


def _again(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    flow = next((a for a in args if isinstance(a, Flow)), None)
    if not torch.is_grad_enabled() or (flow is not None and flow.state is not None and not flow.state.repeats):
        return forward(*args, **options)

    def run(*args: Any, **options: Any) -> Any:
        # A flow of its own: the recomputation would not find values shared with another module, and would report its
        # losses twice.
        own = None if flow is None else flow.apart(Recomputed())
        return forward(*(own if a is flow else a for a in args), **options), own

    output, own = checkpoint(run, *args, use_reentrant=False, **options)
    if flow is not None:
        flow.take(own)
    return output


@contextlib.contextmanager
def remade(tensor: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Makes operations inside the block save `make` for backward instead of `tensor`, and call it there.

    `make` must give the same bits and depend only on saved tensors. Do not use it inside a recomputed module (a flow
    with `Recomputed`): it would save tensors that recomputation drops.
    """
    if is_traceable_wrapper_subclass(tensor):  # DTensor: its memory belongs to an inner tensor
        yield
        return
    memory, kind = weakref.ref(tensor.untyped_storage()), tensor.dtype

    def pack(saved: Tensor) -> Any:
        if saved.untyped_storage() is not memory() or saved.dtype != kind:
            return saved
        return saved.size(), saved.stride(), saved.storage_offset()  # of any view of it

    def unpack(saved: Any) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        with torch.no_grad():
            return make().as_strided(*saved)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
