"""Expert parallelism: each process has some of a mixture's experts, whole, and answers for all with those.

```
             ┌─ expert 0, at process 0 ─┐
tokens ──────┤  expert 1, at process 0  ├── each answer goes to all ── weighted sum, as ever
 (all have   │  expert 2, at process 1  │
  the same)  └─ expert 3, at process 1 ─┘
```
The processes that share a mixture share their rows, too, so no token has to be sent: an expert's answers are exchanged,
and in backward the gradient of its tokens. A mixture is a module with `router` and `experts`, at any path.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anyformer.train.distributed.tensor import CopyTo, ReduceFrom, own_dropout

Owned = dict[int, tuple[int, torch.Size]]  # id of a parameter -> which process of the group has it, and its shape


class ZeroOutput(torch.autograd.Function):
    """0, of the shape of x; so are the gradients of x and of the parameters. Keeps both in the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(torch.zeros_like(t) for t in ctx.saved_tensors)


def mixtures(model: nn.Module) -> dict[str, Any]:
    """The mixtures of experts in a model, by path."""
    return {
        path: m
        for path, m in model.named_modules()
        if isinstance(getattr(m, "experts", None), nn.ModuleList) and isinstance(getattr(m, "router", None), nn.Module)
    }


def split(model: nn.Module, group: Any) -> Owned:
    """Leaves each process of the group its experts, in place.

    Raises:
        ValueError: if there are no mixtures, or the experts do not divide among the processes.
    """
    count, rank, layers = dist.get_world_size(group), dist.get_rank(group), mixtures(model)
    if not layers:
        raise ValueError("parallel=ep needs a mixture of experts, and this model has none; use tp, ddp or fsdp")
    for path, m in layers.items():
        if len(m.experts) % count:
            raise ValueError(f"ep: {path} has {len(m.experts)} experts, which {count} processes cannot share equally")
    owned: Owned = {}
    for m in layers.values():
        for i, expert in enumerate(m.experts):
            owner = i * count // len(m.experts)
            for part in list(expert.modules()):
                for name, p in list(part.named_parameters(recurse=False)):
                    if rank != owner:  # the name stays, for checkpoints
                        setattr(part, name, nn.Parameter(p.detach()[:0].clone(), requires_grad=p.requires_grad))
                    owned[id(getattr(part, name))] = (owner, p.shape)
            expert.forward = _answering(expert, rank == owner, group)
            if getattr(expert, "dropout", 0.0):  # who draws masks must not be ahead of who does not
                own_dropout(expert, rank)
    return owned


def _answering(expert: nn.Module, here: bool, group: Any) -> Any:
    """The expert's `forward`: its answers, from whichever process has it."""
    own = expert.forward

    def forward(x: Tensor, flow: Any) -> Tensor:
        x = CopyTo.apply(x, group)
        return ReduceFrom.apply(own(x, flow) if here else ZeroOutput.apply(x, *expert.parameters()), group)

    return forward
