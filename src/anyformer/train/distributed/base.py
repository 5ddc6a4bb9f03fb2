"""The interface of a loop to the processes of a run, and its simplest case: one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from anyformer.data.batches import Batch

V = TypeVar("V")


class World:
    """One process. Others derive from it (`train.distributed`); a loop never asks how many there are.

    Every process sees the same global batch by number and takes its share of the rows; `backward` leaves gradients that
    are the *sum* over all processes, for losses that are divided by the count over all of them.

    Attributes:
        rank, size: which of how many processes. `main`: the one that writes files and speaks.
    """

    rank, size = 0, 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def whole(self) -> bool:
        """This process holds each weight whole."""
        return True

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def on_main(self, make: Callable[[], V]) -> V:
        """`make()`, by the main process alone; all get what it returns, or raise what it raises."""
        return make()

    def reseed(self, seed: int, step: int, own: bool) -> None:
        """Before a step's batches are asked for: random generators alike everywhere; before its forward passes (`own`):
        other ones for other rows. Both depend on seed and step alone. One process lets its generators run on."""

    def wrap(self, loss: Any) -> Callable[..., Any]:
        """The callable in place of `loss`, the loop's module of model and objective (`loss.model`). Called when the
        weights are there and before the optimiser is made, as parameters may be replaced."""
        return loss

    def wrap_optimizer(self, optimizer: Any) -> Any:
        """The object in place of the optimiser, with `param_groups`, `state`, `step` and `zero_grad`."""
        return optimizer

    def check_same_batch(self, batch: Batch) -> None:
        """Checks that all processes were given the same global batch.

        Raises:
            ValueError: if they were not.
        """

    def local_rows(self, batch: Batch) -> Batch:
        """This process's rows of a global batch."""
        return batch

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """The sum of a number over all processes."""
        return value

    def any_process(self, flag: bool) -> bool:
        """Does any process say so? (a signal, a loss that is not finite)"""
        return flag

    def gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward of one of the batches of a step; gradients are exchanged in the last one."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of this process's part of the loss."""
        loss.backward()

    def clip_grad_norm(self, parameters: list[nn.Parameter], limit: float) -> Tensor:
        """Shortens the gradient to `limit`; returns its length before, a norm over all parameters everywhere."""
        return torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)

    def after_step(self, step: int, last: bool) -> None:
        """Update number `step` (from 1) is done; `last`: no other follows."""

    def local_state(self, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        """State that each process has of its own, of all processes, on the main one, for a checkpoint.
        `moments` are its optimiser's, by path."""
        return {}

    def load_local_state(self, tensors: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        """The inverse of `local_state`: loads this process's part into `moments` and weights."""
        if tensors:
            raise ValueError("the checkpoint holds states of several processes; resume with the same parallel option")

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sharded tensors as whole ones, for a checkpoint that any number of processes can read. All call it; what it
        returns is for the main one, the others may get nothing."""
        return tensors

    def shard(self, tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `gather`: each tensor sharded as its namesake in `like`."""
        return tensors
