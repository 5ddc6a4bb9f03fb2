"""FSDP2: every process holds a part of each weight, gradient and moment; a block is whole only while it computes.

```
forward   gather block 0 ─ compute ─ free │ gather block 1 ─ compute ─ free │ …
backward  … │ gather block 1 ─ compute ─ add up gradients, each keeps its part ─ free │ gather block 0 …
```
(Zhao et al., 2023; arXiv:2304.11277; PyTorch's `fully_shard`.)
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from anyformer.core.rewrite import select
from anyformer.train.distributed.ddp import DDP

UNITS = "**.blocks.*"


class FSDP(DDP):
    """As `DDP`, with weights, gradients and moments in parts. Units are the blocks, and one of all the rest."""

    @property
    def whole(self) -> bool:
        return False

    def replicate(self, loss: Any) -> Callable[..., Any]:
        self.model, mesh = loss.model, self.mesh["data"]
        # a hidden state may be a view (ViT's class token); a loss does not write into the outputs of a model
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        for block in select(self.model, UNITS, kind=nn.Module).values():
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.model.register_forward_hook(_forget)
        return loss

    def gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self.model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()


def _forget(model: Any, *_: Any) -> None:
    """The unit of all the rest stays whole until its backward. Where none will come, the next forward pass would read
    old weights: in an evaluation with `ema`, their mean."""
    if not torch.is_grad_enabled():
        model.reshard()
