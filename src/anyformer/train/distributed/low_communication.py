"""Low communication: gradients as thin products (PowerSGD), or weights every few steps (local SGD, DiLoCo).

Results differ from those of one process; `python -m benchmarks.communication` puts bytes and loss side by side.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from anyformer.train.distributed.ddp import DDP


class PowerSGD(DDP):
    """DDP that exchanges each gradient M (n, m) as P (n, r) and Q (m, r), P Q^T close to M; the error is added to
    the next gradient (Vogels et al., 2019; arXiv:1905.13727; PyTorch's hook).

    The error so far is not in a checkpoint: a run that resumes begins with whole gradients again, as a new one.

    Args:
        rank: r. `start`: steps with whole gradients at first (PyTorch needs two).
    """

    def __init__(self, split: int, device: str, rank: float = 4, start: float = 10):
        super().__init__(split, device)
        self.rank_of_products, self.start = int(rank), int(start)

    def replicate(self, loss: Any) -> Callable[..., Any]:
        made = super().replicate(loss)
        if self._ddp is not None:
            state = PowerSGDState(self.data, self.rank_of_products, start_powerSGD_iter=self.start)
            self._ddp.register_comm_hook(state, _one_by_one)
        return made


def _one_by_one(state: PowerSGDState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """PyTorch's hook exchanges twice, the second time from a callback; gloo runs callbacks of several buckets in any
    order, another one in each process. So a bucket is finished before the next begins. (DDP reads the annotations, and
    wants types, not texts: no `annotations` from the future in this file.)"""
    future = powerSGD_hook(state, bucket)
    future.wait()
    return future


class LocalSGD(DDP):
    """Processes that train on their own and meet every `every` steps: DiLoCo (Douillard et al., 2023;
    arXiv:2311.08105).

    ```
    anchor ──┬── every x AdamW on rows 0 ──┬── d = anchor - mean of weights ── Nesterov SGD on anchor ──┬── …
             └── every x AdamW on rows 1 ──┘                                                            └── …
    ```
    With lr 1 and momentum 0 the anchor becomes the mean of the weights: local SGD (Stich, 2018; arXiv:1805.09767).
    They meet after the last step too. A checkpoint holds the main process's weights and moments as any other does, and
    beside them those of the others: a run resumes bit for bit, with as many processes.

    Args:
        every: steps between two meetings.
        lr, momentum: of the outer SGD.
    """

    def __init__(self, split: int, device: str, every: float = 10, lr: float = 1.0, momentum: float = 0.0):
        super().__init__(split, device)
        self.every, self.lr, self.momentum = int(every), lr, momentum

    def replicate(self, loss: Any) -> Callable[..., Any]:
        self.named = {n: p for n, p in loss.model.named_parameters() if p.requires_grad}
        self.anchor = {n: p.detach().clone() for n, p in self.named.items()}
        outer = [nn.Parameter(a) for a in self.anchor.values()]  # the same memory
        self.outer = torch.optim.SGD(outer, self.lr, self.momentum, nesterov=self.momentum > 0)
        return loss

    @torch.no_grad()
    def after_step(self, step: int, last: bool) -> None:
        if step % self.every and not last:
            return
        mean = torch.cat([p.flatten() for p in self.named.values()])
        dist.all_reduce(mean, group=self.data)
        pieces = (mean / self.copies).split([p.numel() for p in self.named.values()])
        for outer, piece in zip(self.outer.param_groups[0]["params"], pieces, strict=True):
            outer.grad = outer.detach() - piece.view_as(outer)
        self.outer.step()
        self.outer.zero_grad()
        for name, p in self.named.items():
            p.copy_(self.anchor[name])

    def local_state(self, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = {f"anchor.{n}": a for n, a in self.anchor.items()}
        for name, p in zip(self.anchor, self.outer.param_groups[0]["params"], strict=True):
            if (momentum := self.outer.state[p].get("momentum_buffer")) is not None:
                tensors[f"momentum.{name}"] = momentum
        for place in range(1, self.copies):
            for name, value in [*self.named.items(), *moments.items()]:
                tensors[f"{place}.{name}"] = self._from(place, value)
        return {**tensors, "copies": torch.tensor(self.copies)} if self.main else {}

    def _from(self, place: int, value: Tensor) -> Tensor:
        """The tensor that process `place` holds, everywhere."""
        value = value.detach().clone()
        dist.broadcast(value, place)
        return value

    @torch.no_grad()
    def load_local_state(self, tensors: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        copies = int(tensors.get("copies", torch.tensor(1)))
        if copies != self.copies:
            raise ValueError(
                f"the checkpoint holds the weights of {copies} processes, and now there are {self.copies}; resume with "
                f"{copies}, or start a new run from the checkpoint as a model"
            )
        for name, p in zip(self.anchor, self.outer.param_groups[0]["params"], strict=True):
            p.copy_(tensors[f"anchor.{name}"])
            if f"momentum.{name}" in tensors:
                self.outer.state[p]["momentum_buffer"] = tensors[f"momentum.{name}"].clone().to(p.device)
        for name, value in {**self.named, **moments}.items() if self.place else ():
            value.copy_(tensors[f"{self.place}.{name}"])
