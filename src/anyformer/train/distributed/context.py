"""Context parallelism: the tokens of a row are split among processes, so each holds a part of a long text's
activations.

```
tokens     0 … T/n       T/n … 2T/n     …                  attention   keys and values of earlier tokens are gathered,
process    0             1              …                              their gradients added up and given back
keys of    0             0 1            0 1 …              recurrence  the state goes on to the next process,
state      starts ─────▶ goes on ─────▶                                its gradient comes back
```
A decoder reads a long prompt in pieces: each call continues from a decoding state. Here each process makes one of these
calls, and the state is made of what the processes before it have. So nothing is known of architectures: a mixer works
if the kind of its decoding state does.

Keys and values are gathered, not sent around in a ring (Liu et al., 2023; arXiv:2310.01889): with grouped heads they
are small beside the activations that are split (Llama 3 team, 2024, section 3.3.2; arXiv:2407.21783), and every kernel,
mask and bias works on them as it is. A window gathers only what it reaches, if that is less than a process has.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.mixer import OverTime
from anyformer.core.state import State
from anyformer.data.batches import Batch
from anyformer.data.labels import IGNORE
from anyformer.parts.attention.attention import Attention
from anyformer.parts.attention.cache import KeysValues, Sliding
from anyformer.parts.attention.latent import LatentAttention
from anyformer.parts.moe import Sent
from anyformer.parts.recurrent.chunked import Recurrent
from anyformer.skeletons.base import check_gaps
from anyformer.train.objectives import causal_lm, plain

EARLIER = "earlier_mask"  # the padding mask of the tokens that the processes before have


class Context:
    """The processes that share the tokens of a row; this one has the `place`-th of `count` equal pieces."""

    def __init__(self, group: Any):
        self.group, self.count, self.place = group, dist.get_world_size(group), dist.get_rank(group)
        self.model: Any = None

    def cut(self, batch: Batch) -> Batch:
        """This process's piece of each row, and the mask of the pieces before it. A length that does not divide is
        padded on the right.

        Raises:
            ValueError: for an input that is not one entry a token, packed documents, or padding inside a text.
        """
        rows, time = batch["labels"].shape if batch["labels"].ndim == 2 else (len(batch["labels"]), -1)
        for name, value in batch.items():
            if name == "document_ids" or value.shape != (rows, time):
                why = "keep packed documents apart" if name == "document_ids" else "have no entry for each token"
                raise ValueError(
                    f"mesh.context={self.count} splits the tokens of a row, and {name} {tuple(value.shape)} {why}, "
                    f"beside labels {tuple(batch['labels'].shape)}; leave mesh.context out, or give one text a row"
                )
        if "attention_mask" in batch:
            check_gaps(self.model, batch["attention_mask"].bool(), "attention_mask")
        if more := -time % self.count:
            batch = {"attention_mask": torch.ones(rows, time, dtype=torch.long), **batch}
            batch = {name: F.pad(value, (0, more), value=_filler(name)) for name, value in batch.items()}
        size = (time + more) // self.count
        first = self.place * size
        mine = {name: value[:, first : first + size] for name, value in batch.items()}
        if first and "attention_mask" in batch:
            mine[EARLIER] = batch["attention_mask"][:, :first]
        return mine

    def join(self, loss: Any) -> None:
        """Makes the loss's model continue from the processes before this one.

        Raises:
            ValueError: for a model or an objective whose tokens cannot be split, with what stands against it.
        """
        model, objective = loss.model, loss.objective
        parts: list[Any] = []
        if loss.compiles:
            against: str | None = "a compiled step cannot wait for another process"
        elif plain(objective) is not causal_lm:
            against = f"the objective {getattr(objective, '__name__', objective)!s} reads more than one token's output"
        elif not getattr(model, "generates", False) or set(model.inputs()) - {"input_ids", "attention_mask"}:
            against = f"{type(model).__name__} is no decoder of text alone"
        else:
            parts = [m for module in model.decoding() for m in module.modules() if isinstance(m, OverTime)]
            kinds = {type(m).__name__ for m in parts if self._slot(m, 1, torch.empty(0)) is None}
            against = f"{', '.join(sorted(kinds))} cannot read a text in pieces with gradients" if kinds else None
        if against:
            raise ValueError(f"mesh.context={self.count}: {against}; use mesh.data or parallel=fsdp instead")
        self.model, self.like = model, torch.empty(0, dtype=next(model.parameters()).dtype)
        loss.run = self.run
        recurrent = [m for m in parts if isinstance(self._slot(m, 1, self.like), Recurrent)]
        self.parts = [m for m in parts if m not in recurrent]
        for m in recurrent:  # their slots are made when they are called
            m.register_forward_pre_hook(self._receive)
            m.register_forward_hook(self._hand_on)

    def run(self, **inputs: Any) -> Any:
        """The model's output for this process's piece."""
        before, ids = inputs.pop(EARLIER, None), inputs["input_ids"]
        slots = {m: self._slot(m, len(ids), self.like.to(ids.device)) for m in self.parts}
        return self.model(**inputs, state=Continued(self.place * ids.shape[1], len(ids), before, slots))

    def _slot(self, part: Any, batch: int, like: Tensor) -> Any:
        """The state of a part that other processes fill, or None if it is of another kind."""
        slot = part.start(batch, 0, like)
        if isinstance(part, Attention | LatentAttention) and type(slot) in (KeysValues, Sliding):
            return Gathered(self, slot.left if isinstance(slot, Sliding) else None)
        if type(slot) is Sent:
            return Counted(self)
        return slot if type(slot) is Recurrent else None

    def _receive(self, part: Any, args: tuple[Tensor, Flow]) -> tuple[Tensor, Flow] | None:
        x, flow = args
        if not isinstance(flow.state, Continued):
            return None
        slot = part.start(len(x), 0, self.like.to(x.device))  # a new one: a recomputed block comes here twice
        if self.place:
            anchor = torch.zeros((), device=x.device, requires_grad=torch.is_grad_enabled())
            known = flow.state.received.get(part)
            x, *held = Receive.apply(anchor, x, self, slot.held if known is None else known, known is not None)
            flow.state.received[part] = [t.detach() for t in held]
            slot.put(flow.first, *held)
        flow.state.slots[part] = slot
        return x, flow

    def _hand_on(self, part: Any, args: tuple[Tensor, Flow], y: Tensor) -> Tensor:
        flow = args[1]
        if not isinstance(flow.state, Continued) or self.place == self.count - 1:
            return y
        again = part in flow.state.sent
        flow.state.sent.add(part)
        slot: Any = flow.state.slots[part]
        return HandOn.apply(y, self, again, *slot.held)

    def send(self, step: int, *tensors: Tensor) -> None:
        """Sends tensors to the process `step` places further."""
        flat = torch.cat([t.detach().flatten().to(torch.promote_types(t.dtype, torch.float32)) for t in tensors])
        dist.send(flat, group=self.group, group_dst=self.place + step)

    def receive(self, step: int, like: Any, device: torch.device) -> tuple[Tensor, ...]:
        """Tensors of the shapes and types of `like`, from the process `step` places further."""
        kinds = {torch.promote_types(t.dtype, torch.float32) for t in like}
        wide = max(kinds, key=lambda kind: kind.itemsize)
        flat = torch.empty(sum(t.numel() for t in like), dtype=wide, device=device)
        dist.recv(flat, group=self.group, group_src=self.place + step)
        pieces = flat.split([t.numel() for t in like])
        return tuple(piece.view(t.shape).to(t.dtype) for piece, t in zip(pieces, like, strict=True))


class Continued(State):
    """The state after `first` tokens, which other processes have.

    Attributes:
        received, sent: what came from the process before, and what went to the next, in this pass: a recomputed block
            does not exchange it again, as the other process may wait for a gradient meanwhile.
    """

    repeats = True

    def __init__(self, first: int, batch: int, keep: Tensor | None, slots: dict[nn.Module, Any]):
        super().__init__(batch, slots)
        self.length = first
        self.keep = None if keep is None else keep.bool()
        self.received, self.sent = dict[nn.Module, list[Tensor]](), set[nn.Module]()

    def _leaves_gap(self, past: Tensor, now: Tensor) -> bool:
        return False  # the whole row was checked before it was cut, and nothing comes after its padding


class Gathered:
    """Keys and values of the processes before this one, or the last `left` of them."""

    length = 0

    def __init__(self, context: Context, left: int | None):
        self.context, self.left = context, left

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Keys and values (B, G, T, K) of this piece; returns those in reach."""
        own, time = torch.stack(new), new[0].shape[2]  # (kinds, B, G, T, K)
        near = self.left is not None and self.left < time
        shown = own[:, :, :, time - self.left :] if near else own  # type: ignore[operator]
        earlier = Earlier.apply(shown, self.context)
        if self.left is not None:
            earlier = earlier[:, :, :, max(0, earlier.shape[3] - self.left) :]
        return torch.cat((earlier, own), 3).unbind()


class Counted:
    """The tokens that the processes before this one sent to each expert."""

    def __init__(self, context: Context):
        self.context = context

    def append(self, chosen: Tensor) -> Tensor:
        """(B, T, E) of this piece; returns the earlier tokens of each expert, (B, 1, E)."""
        own = chosen.sum(1, keepdim=True)
        counts = [torch.empty_like(own) for _ in range(self.context.count)]
        dist.all_gather(counts, own, group=self.context.group)
        return torch.stack([torch.zeros_like(own), *counts[: self.context.place]]).sum(0)


class Earlier(torch.autograd.Function):
    """(…, T, K) of each process -> those of the processes before this one, (…, place T, K); their gradients are added
    up and go back."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, context: Context) -> Tensor:
        ctx.context, ctx.shape = context, own.shape
        pieces = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(context.count)]
        dist.all_gather(pieces, own.contiguous(), group=context.group)
        return torch.cat([own[..., :0, :], *pieces[: context.place]], -2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        context, shape = ctx.context, ctx.shape
        pieces = [gradient.new_zeros(shape) for _ in range(context.count)]
        if context.place:
            pieces[: context.place] = [g.contiguous() for g in gradient.split(shape[-2], -2)]
        mine = torch.empty_like(pieces[0])
        dist.reduce_scatter(mine, pieces, group=context.group)
        return mine, None


class Receive(torch.autograd.Function):
    """x and the state of the process before; its gradient goes back there. The anchor asks for a gradient where x has
    none; a state that is `known` is not received again."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, context: Context, held: Any, known: bool) -> Any:
        ctx.context = context
        return x.view_as(x), *([t.view_as(t) for t in held] if known else context.receive(-1, held, x.device))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *held: Tensor) -> Any:  # type: ignore[override]
        ctx.context.send(-1, *held)
        return gradient.new_zeros(()), gradient, None, None, None


class HandOn(torch.autograd.Function):
    """y; the state goes to the next process, and its gradient comes from there."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, context: Context, again: bool, *held: Tensor) -> Tensor:
        ctx.context, ctx.like = context, [torch.empty_like(t, device="meta") for t in held]
        if not again:
            context.send(1, *held)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient, None, None, *ctx.context.receive(1, ctx.like, gradient.device)


def _filler(name: str) -> int:
    return IGNORE if name == "labels" else 0
