"""Pipeline parallelism: each process has some of the blocks; rows go through in pieces, one behind the other.

```
process 0   f0 f1 f2       b0 f3 b1    b2    b3        f: forward, b: backward of a piece of the rows
process 1      f0 b0 f1 b1    f2 b2 f3 b3              one forward, one backward (Narayanan et al., 2021;
                                                       arXiv:2104.04473): at most as many pieces are alive as stages
```
Every process runs the same model. Blocks of other stages do nothing; in front of its first block a stage takes the
stream from the stage before, after its last one it hands the stream on and leaves the pass. So a page needs no code for
it, and masks, positions and biases are made as ever, by each process from the same rows. What is outside the blocks
(embeddings, last norm, head) stays whole in each process; its gradients are added up.

PyTorch's `torch.distributed.pipelining` was not taken: its stages pass tensors of one fixed shape, and here a flow of
masks and positions goes beside them, and batches of rows differ in length.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.data.batches import Batch
from anyformer.skeletons.base import Output
from anyformer.skeletons.stack import Blocks
from anyformer.train.distributed.ddp import DDP
from anyformer.train.objectives import Contrastive, plain
from anyformer.train.step_loss import real_tokens, with_auxiliary


class Handed(Exception):
    """The end of a pass in a stage that is not the last: the stream has gone to the next one."""

    def __init__(self, stream: Tensor, flow: Flow):
        super().__init__("a pass ends where its stage does")
        self.stream, self.output = stream, Output(aux=flow.aux)


class Pipeline(DDP):
    """As `DDP`, with the blocks in stages.

    Args:
        stages: processes that share the blocks of one copy. `device`: cpu or cuda.
        pieces: parts of the rows that follow each other, at most as many as there are rows. While a stage waits for
            the first and the last of them it idles: for (stages - 1) / (pieces + stages - 1) of the step.
    """

    def __init__(self, stages: int, device: str = "cpu", pieces: float = 4):
        super().__init__(stages, device)
        self.stages, self.stage, self.pieces = stages, self.rank % stages, int(pieces)
        self.stepping, self.sent = False, list[tuple[Any, Tensor]]()

    @property
    def whole(self) -> bool:
        return True  # what a loss reads, the head, is

    def wrap(self, loss: Any) -> Callable[..., Any]:
        self.loss, self.blocks = loss, self._checked(loss)
        self._make_alike(loss.model)
        count, n = len(self.blocks), self.stages
        stage_of = [i * n // count for i in range(count)]
        mine = [block for block, stage in zip(self.blocks, stage_of, strict=True) if stage == self.stage]
        mine[0].register_forward_pre_hook(self._enter)
        mine[-1].register_forward_hook(self._leave)
        self._keep_own(loss.model, stage_of)
        self.blocks[-1].register_forward_hook(self._share)
        self.parameters = [p for p in loss.model.parameters() if p.requires_grad]
        self._note_cut(loss.model)
        return self._step

    def _checked(self, loss: Any) -> list[Any]:
        """The blocks of the model.

        Raises:
            ValueError: for a model or a run that cannot be cut into stages, with what stands against it.
        """
        model = loss.model
        blocks = list(model.layers()) if isinstance(model, Blocks) else []
        against = None
        if not blocks or blocks != list(model.blocks):
            against = f"{type(model).__name__} is no single row of blocks"
        elif len(blocks) < self.stages:
            against = f"{len(blocks)} blocks are fewer than stages"
        elif shorter := [b for b in blocks if hasattr(b, "behind")]:
            against = f"{type(shorter[0]).__name__} changes the number of positions"
        elif isinstance(plain(loss.objective), Contrastive):
            against = "a contrastive loss reads all rows at once"
        elif loss.precision == "fp16" or loss.compiles:
            against = "it is for float32 and bf16, without compile"
        if against:
            raise ValueError(f"parallel=pipeline in {self.stages} stages: {against}; use ddp, fsdp or tp")
        return blocks

    def _keep_own(self, model: nn.Module, stage_of: list[int]) -> None:
        """Drops the parameters that only other stages read, and what their blocks do."""
        owns = dict[int, tuple[int, torch.Size]]()
        inside = [{id(p) for p in block.parameters()} for block in self.blocks]
        rest = {id(p) for p in model.parameters()} - set().union(*inside)
        for block, stage in zip(self.blocks, stage_of, strict=True):
            others = [ids for ids, place in zip(inside, stage_of, strict=True) if place != stage]
            shared = rest.union(*others)
            if stage != self.stage:
                block.forward = lambda x, flow: x
            for part in block.modules():
                for name, p in list(part.named_parameters(recurse=False)):
                    if id(p) not in shared:
                        shape = p.shape
                        if stage != self.stage:  # the name stays, for checkpoints
                            setattr(part, name, nn.Parameter(p.detach()[:0].clone(), requires_grad=p.requires_grad))
                        owns[id(getattr(part, name))] = stage, shape
        named = model.named_parameters(remove_duplicate=False)
        self.owned = {name: owns[id(p)] for name, p in named if id(p) in owns}

    def _step(self, inputs: Batch, labels: Tensor, count: Any, share: float) -> Tensor:
        """The loss of a batch, with backward done; alike in all stages."""
        pieces = min(self.pieces, len(labels))
        real = max(1, real_tokens(inputs))
        cut = [{name: t.tensor_split(pieces)[i] for name, t in inputs.items()} for i in range(pieces)]
        goals, learns = labels.tensor_split(pieces), torch.is_grad_enabled()
        total, alive = torch.zeros((), device=labels.device), deque[Tensor]()

        def backward() -> None:
            part = alive.popleft()
            if learns:
                part.backward()

        with self._inside():
            for i, (some, goal) in enumerate(zip(cut, goals, strict=True)):
                alive.append(self._forward(some, goal, count, share * real_tokens(some) / real))
                total += alive[-1].detach()
                if i >= self.stages - 1 - self.stage:
                    backward()
            while alive:
                backward()
        dist.all_reduce(total, group=self.tensor)
        return total

    def _forward(self, inputs: Batch, labels: Tensor, count: Any, share: float) -> Tensor:
        """The loss of a piece in the last stage; in others what its backward begins with, and their auxiliary
        losses."""
        try:
            return self.loss(inputs, labels, count, share)
        except Handed as end:
            return with_auxiliary(end.stream.flatten()[:1].sum() * 0.0, end.output, share)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        self.stepping = True
        try:
            yield
        finally:
            self.stepping = False
            self._settle()

    def _settle(self) -> None:
        """Waits until what was sent has arrived, and lets go of it."""
        for work, _ in self.sent:
            work.wait()
        self.sent.clear()

    def _enter(self, block: nn.Module, args: tuple[Any, ...]) -> Any:
        if self.stage == 0:
            return None
        anchor = torch.zeros((), device=args[0].device, requires_grad=torch.is_grad_enabled())
        return Taken.apply(anchor, args[0], self), *args[1:]

    def _leave(self, block: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        if self.stage == self.stages - 1:
            return y
        y = Given.apply(y, self)
        if self.stepping:
            raise Handed(y, args[1])
        self._settle()
        return y

    def _share(self, block: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        """Outside of a step, in an evaluation, every stage gets what the last one made."""
        if self.stepping:
            return y
        y = y.detach().contiguous()
        dist.broadcast(y, group=self.tensor, group_src=self.stages - 1)
        return y

    def send(self, step: int, x: Tensor) -> None:
        """Sends a tensor to the stage `step` further, without waiting for it."""
        x = x.detach().contiguous()
        self.sent.append((dist.isend(x, group=self.tensor, group_dst=self.stage + step), x))

    def receive(self, step: int, like: Tensor) -> Tensor:
        """A tensor such as `like` from the stage `step` further."""
        x = torch.empty_like(like, memory_format=torch.contiguous_format)
        dist.recv(x, group=self.tensor, group_src=self.stage + step)
        return x

    def backward(self, loss: Tensor) -> None:
        """Nothing: the gradients of the pieces are there already."""

    @contextlib.contextmanager
    def gradient_sync(self, last: bool) -> Iterator[None]:
        yield
        if not last:
            return
        used = torch.tensor([p.grad is not None for p in self.parameters], dtype=torch.int32)
        dist.all_reduce(used)
        for p in (p for p, some in zip(self.parameters, used.tolist(), strict=True) if some):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # of another stage's parameter: empty
            if id(p) not in self._cut:
                dist.all_reduce(p.grad, group=self.tensor)
            if self.copies > 1 and p.numel():
                dist.all_reduce(p.grad, group=self.data)


class Taken(torch.autograd.Function):
    """The stream of the stage before; its gradient goes back there. The anchor asks for a gradient; x gives the
    shape."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, line: Pipeline) -> Tensor:
        ctx.line = line
        return line.receive(-1, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        ctx.line.send(-1, gradient)
        return gradient.new_zeros(()), None, None


class Given(torch.autograd.Function):
    """The stream, which goes to the next stage; its gradient comes from there."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, line: Pipeline) -> Tensor:
        ctx.line = line
        line.send(1, y)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return ctx.line.receive(1, gradient), None
