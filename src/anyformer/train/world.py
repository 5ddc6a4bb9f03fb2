"""The processes of a run. Here: one. What a loop asks of them is the same for one and for many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.data.batches import Batch


class World:
    """One process. Others derive from it (`train.distributed`); a loop never asks how many there are.

    Every process sees the same global batch by number and takes its share of the rows; `backward` leaves gradients that
    are the *sum* over all processes, for losses that are divided by what is counted in all of them.

    Attributes:
        rank, size: which of how many processes. `main`: the one that writes files and speaks.
    """

    rank, size = 0, 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def prepare(self, model: Any) -> Callable[..., Any]:
        """What to call in place of the model. Called before the optimiser is made, as parameters may be replaced."""
        return model

    def share(self, batch: Batch) -> Batch:
        """This process's rows of a global batch."""
        return batch

    def total(self, value: Tensor) -> Tensor:
        """The sum of a number over all processes."""
        return value

    def any(self, flag: bool) -> bool:
        """Does any process say so? (a signal, a loss that is not finite)"""
        return flag

    def exchanging(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward of one of the batches of a step; gradients are exchanged in the last one."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of this process's part of the loss."""
        loss.backward()

    def clip(self, parameters: list[nn.Parameter], limit: float) -> Tensor:
        """Shortens the gradient to `limit`; returns its length before, a norm over all parameters everywhere."""
        return torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sharded tensors as whole ones, for a checkpoint that any number of processes can read. All call it."""
        return tensors

    def split(self, tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `whole`: each tensor sharded as its namesake in `like`."""
        return tensors
