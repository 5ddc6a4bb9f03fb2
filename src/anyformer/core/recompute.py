"""Less memory for activations: what is not kept is made again in backward.

`recompute` does so by path, for whole modules, at the cost of a second forward pass; `remade` for single tensors that
cost next to nothing to make.
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
    """From now on, the modules at these paths remember only what enters them (Chen et al., 2016; arXiv:1604.06174).

    Costs a second forward pass of them, saves their activations; loss and gradients stay the same, dropout included.
    Decoding and passes without gradients are as before. `("blocks.*",)` is the usual choice; `("blocks.::2",)` every
    second block; `("blocks.*.ffn",)` the feed-forward parts only.

    Returns:
        The paths.

    Raises:
        ValueError: for a pattern that matches no module, with the nearest paths.
    """
    found = select(model, *patterns, kind=nn.Module) if patterns else {}
    for module in found.values():
        if "forward" not in vars(module):
            module.forward = functools.partial(_again, module.forward)
    return list(found)


@contextlib.contextmanager
def recomputing(model: nn.Module, *patterns: str) -> Iterator[None]:
    """`recompute`, inside."""
    before = {id(m) for m in model.modules() if "forward" in vars(m)}
    modules = [model.get_submodule(path) for path in recompute(model, *patterns)]
    made = {m: m.forward for m in modules if id(m) not in before}
    try:
        yield
    finally:
        for module, forward in made.items():
            if vars(module).get("forward") is forward:  # nobody put another one there
                del module.forward


def _again(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    flow = next((a for a in args if isinstance(a, Flow)), None)
    if not torch.is_grad_enabled() or (flow is not None and flow.state is not None):
        return forward(*args, **options)

    def run(*args: Any, **options: Any) -> Any:
        # Tables of its own: made again in backward, it would not find what it shares with another module, and would
        # report its losses twice.
        own = None if flow is None else flow.apart(Recomputed())
        return forward(*(own if a is flow else a for a in args), **options), own

    found, own = checkpoint(run, *args, use_reentrant=False, **options)
    if flow is not None:
        flow.take(own)
    return found


@contextlib.contextmanager
def remade(tensor: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Inside, operations that would keep `tensor` for backward keep `make` instead, and call it there.

    `make` must give the same bits and depend only on tensors that are saved anyway. Not inside a recomputed module (a
    flow with `Recomputed`): there it would keep what was to be forgotten.
    """
    if is_traceable_wrapper_subclass(tensor):  # DTensor: its memory is somewhere inside
        yield
        return
    memory, kind = weakref.ref(tensor.untyped_storage()), tensor.dtype

    def pack(kept: Tensor) -> Any:
        if kept.untyped_storage() is not memory() or kept.dtype != kind:
            return kept
        return kept.size(), kept.stride(), kept.storage_offset()  # whatever view of it this is

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return make().as_strided(*kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
