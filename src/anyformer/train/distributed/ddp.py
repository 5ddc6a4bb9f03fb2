"""Several processes with the same weights: each takes its rows of every batch, DDP adds up the gradients.

```
                 tensor 0   tensor 1            processes 0 1 2 3 as a mesh of data 2 x tensor 2:
    data 0          0          1                a row shares the rows of a batch and splits the matrices (`tensor`),
    data 1          2          3                a column holds the same weights and exchanges gradients
```
Built on `torch.distributed` itself. Accelerate's launcher works, but its wrappers would have to be undone: they average
a loss over processes, where ours is a sum divided by the count over all of them; they clip by a norm of their own; they
shuffle and cut data by themselves, where a batch here is a function of its number.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from anyformer.data.batches import Batch, checksum
from anyformer.train import lora, random_state
from anyformer.train.distributed import expert, tensor
from anyformer.train.distributed.base import World
from anyformer.train.distributed.context import Context
from anyformer.train.objectives import Contrastive, plain

V = TypeVar("V")
PATIENCE = timedelta(minutes=20)  # a process that hangs, rather than dies, is given up after this long


class DDP(World):
    """The processes that `torchrun` started, joined by gloo on CPUs and NCCL on GPUs.

    Args:
        split: processes that share one copy of the matrices; the others are `copies`.
        device: cpu or cuda.
        experts: whole experts go to the processes that share a copy, instead of a part of each.
        context: processes that share the tokens of a row, each with all weights of its copy.

    Attributes:
        copies: shares of a batch. `place`: which of them is this process's.
        plan: the axis along which each split parameter is cut, by path.
        owned: which process of those that share a copy has it, and its shape, by path.
    """

    def __init__(self, split: int = 1, device: str = "cpu", experts: bool = False, context: int = 1):
        self._made = not dist.is_initialized()
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if self._made:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.copies, self.place = self.size // split, self.rank // split
        self.mesh = init_device_mesh(device, (self.copies, split), mesh_dim_names=("data", "tensor"))
        self.data, self.tensor = self.mesh.get_group("data"), self.mesh.get_group("tensor")
        self.context: Context | None = None
        if context > 1:
            firsts = [c * split + t for c in range(0, self.copies, context) for t in range(split)]
            groups = [[first + i * split for i in range(context)] for first in firsts]
            self.context = Context(dist.new_subgroups_by_enumeration(groups)[0])
        self.experts, self.plan, self.owned = experts, dict[str, int](), dict[str, tuple[int, torch.Size]]()
        self._cut: set[int] = set()  # ids of the parameters in the plan
        self._ddp: DistributedDataParallel | None = None

    @property
    def whole(self) -> bool:
        return self.copies == self.size

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._made and kind is None:  # after an error the others may be gone, and nobody would answer
            dist.destroy_process_group()

    def on_main(self, make: Callable[[], V]) -> V:
        answer: list[Any] = [None, None]
        if self.main:
            try:
                answer[0] = make()
            except Exception as error:
                answer[1] = error
        dist.broadcast_object_list(answer, device=torch.device("cpu"))
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def reseed(self, seed: int, step: int, own: bool) -> None:
        words = np.random.SeedSequence([seed, step, self.place + 1 if own else 0]).generate_state(2, np.uint32)
        random_state.seed_all(int(words[0]) << 32 | int(words[1]))

    def wrap(self, loss: Any) -> Callable[..., Any]:
        self._make_alike(loss.model)
        if self.context is not None:
            self.context.join(loss)
        if self.size > self.copies and lora.adapters(loss.model):
            raise ValueError(
                "layers with adapters cannot be split among processes; use parallel=ddp or fsdp, no mesh.tensor"
            )
        if self.size > self.copies:
            if isinstance(plain(loss.objective), Contrastive):  # it would meet each row once for every process
                raise ValueError("a contrastive loss reads the rows of all processes; use ddp or fsdp, no mesh.tensor")
            whole = self._split(loss.model)
            if whole and self.main:
                warnings.warn(f"not split: each process holds all of {whole}", stacklevel=2)
        part = self.replicate(loss)
        self._note_cut(loss.model)
        return part

    def _make_alike(self, model: nn.Module) -> None:
        """Gives all processes the main one's weights: whoever built the model without a seed has others."""
        for value in model.state_dict().values():
            dist.broadcast(value, 0)

    def _note_cut(self, model: nn.Module) -> None:
        """Notes the parameters in the plan, after FSDP2 has put others in their places."""
        named = model.named_parameters(remove_duplicate=False)
        self._cut = {id(p) for name, p in named if name in self.plan or name in self.owned}

    def _split(self, model: nn.Module) -> str:
        """Splits the model; returns a description of the parts that stay whole."""
        owned, skip = expert.Owned(), frozenset[nn.Module]()
        if self.experts:
            owned = expert.split(model, self.tensor)
            skip = frozenset(part for m in expert.mixtures(model).values() for part in m.experts.modules())
        self.plan, whole = tensor.split(model, self.tensor, skip)
        named = model.named_parameters(remove_duplicate=False)
        self.owned = {name: owned[id(p)] for name, p in named if id(p) in owned}
        return whole

    def replicate(self, loss: Any) -> Callable[..., Any]:
        """The loss, such that `backward` adds up the gradients of all copies."""
        if self.copies == 1:
            return loss
        # A model may have parameters that a loss does not read, BERT's pooler: without the flag the second step fails.
        # Where it has none, PyTorch's C++ warns once, and that cannot be switched off.
        self._ddp = DistributedDataParallel(loss, process_group=self.data, find_unused_parameters=True)
        return self._ddp

    def wrap_optimizer(self, optimizer: Any) -> Any:
        muon = getattr(torch.optim, "Muon", ())
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            if isinstance(optimizer, muon) and (isinstance(p, DTensor) or id(p) in self._cut):
                raise ValueError("optimizer=muon needs whole matrices, which are sharded here; use adamw, or ddp")
        return optimizer

    def check_same_batch(self, batch: Batch) -> None:
        mine = torch.tensor([checksum(batch)])
        first = mine.clone()
        dist.broadcast(first, 0)
        if self.any_process(not torch.equal(mine, first)):
            raise ValueError(
                "the processes got different batches for the same number: data must not depend on the process, since "
                "each one takes its own rows of the batch; shuffle with a fixed seed"
            )

    def local_rows(self, batch: Batch) -> Batch:
        rows, per_row = len(batch["labels"]), 1 if self.context is None else self.context.count
        shares = self.copies // per_row
        if rows < shares:
            raise ValueError(f"a batch of {rows} rows cannot be shared by {shares} processes; use a larger batch")
        for name, value in batch.items():
            if value.ndim == 0 or len(value) != rows:
                raise ValueError(
                    f"{name!r} of shape {tuple(value.shape)} cannot be shared by {shares} processes: labels have "
                    f"{rows} rows, and so must everything in a batch"
                )
        mine = {name: value.tensor_split(shares)[self.place // per_row] for name, value in batch.items()}
        return mine if self.context is None else self.context.cut(mine)

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        value = value.detach().clone()
        dist.all_reduce(value, group=self.data)
        return value

    def any_process(self, flag: bool) -> bool:
        flagged = torch.tensor(int(flag))
        dist.all_reduce(flagged, dist.ReduceOp.MAX)
        return bool(flagged)

    def gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if last or self._ddp is None else self._ddp.no_sync()

    def backward(self, loss: Tensor) -> None:
        (loss * self.copies).backward()  # the exchange gives the mean over the copies, and the sum is wanted

    @torch.no_grad()
    def clip_grad_norm(self, parameters: list[nn.Parameter], limit: float) -> Tensor:
        lists: dict[tuple[bool, bool], list[Tensor]] = {(c, s): [] for c in (False, True) for s in (False, True)}
        for p in parameters:
            if p.grad is not None:
                shard = isinstance(p.grad, DTensor)
                lists[id(p) in self._cut, shard].append(p.grad.to_local() if shard else p.grad)  # type: ignore[attr-defined]
        square = torch.zeros((), device=self.mesh.device_type)
        for (cut, shard), grads in lists.items():  # the same lists in every process, though some may be empty
            part = nn.utils.get_total_norm(grads).float().square().to(square.device)
            if cut:
                dist.all_reduce(part, group=self.tensor)
            if shard:
                dist.all_reduce(part, group=self.data)
            square += part
        norm = square.sqrt()
        for grads in filter(None, lists.values()):
            torch._foreach_mul_(grads, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        whole = {}
        for name, value in tensors.items():
            value = value.full_tensor() if isinstance(value, DTensor) else value.detach()
            if owner := self._of(self.owned, name, value):
                mine = owner[0] == dist.get_rank(self.tensor)
                value = value.contiguous() if mine else value.new_empty(owner[1])
                dist.broadcast(value, group=self.tensor, group_src=owner[0])
            if (axis := self._of(self.plan, name, value)) is not None:
                parts = [torch.empty_like(value) for _ in range(self.size // self.copies)]
                dist.all_gather(parts, value.contiguous(), group=self.tensor)
                value = torch.cat(parts, axis)
            if self.main:
                whole[name] = value.cpu()
        return whole

    def shard(self, tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = {}
        for name, value in tensors.items():
            if (axis := self._of(self.plan, name, value)) is not None:
                value = value.chunk(self.size // self.copies, axis)[self.rank % (self.size // self.copies)]
            if owner := self._of(self.owned, name, value):
                value = value if owner[0] == dist.get_rank(self.tensor) else value[:0]
            kin = like.get(name, like.get(name.rpartition(".")[0]))
            if isinstance(kin, DTensor) and value.ndim:
                value = value.to(kin.device)
                value = distribute_tensor(value, kin.device_mesh, kin.placements, src_data_rank=None)
            parts[name] = value
        return parts

    def _of(self, table: dict[str, V], name: str, value: Tensor) -> V | None:
        """The entry of a parameter in a table, or of a moment of its shape."""
        return None if value.ndim == 0 else table.get(name, table.get(name.rpartition(".")[0]))
