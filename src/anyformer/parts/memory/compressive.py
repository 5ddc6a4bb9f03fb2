"""Compressive memory: tokens that leave the memory of segments stay for a while as summaries.

B batch, T queries of this call, C queries of a chunk, D width, H heads, K head width, L tokens of a segment, M tokens
of memory, N slots of compressed memory, c tokens of a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.part import check_option
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.parts.attention.kernels import reader, weights
from anyformer.parts.attention.masks import Causal, View
from anyformer.parts.attention.scores import Score
from anyformer.parts.memory.segments import Chunk, Pass, SegmentRecurrence, Source, Tail

WAYS = ("conv", "mean", "max")


@dataclass
class Slots:
    """The summaries that a call can read, in the order of the text.

    Args:
        last: (B, N) index of the last token of each; -1 = no slot.
        first: the number of the first slot in its text, or None if rows differ.
        pair: keys and values, (B, H, N, K), without gradient to the compressor.
        taught: the same with a gradient to the compressor only, or None if nothing is learned.
        error: (B, T) of the reconstruction, for each query, as far as computed.
    """

    last: Tensor
    first: int | None
    pair: tuple[Tensor, Tensor]
    taught: tuple[Tensor, Tensor] | None
    error: list[Tensor]

    def __post_init__(self) -> None:
        self.readers = {name: tuple(map(reader, getattr(self, name) or ())) for name in ("pair", "taught")}

    def near(self, near: Tensor | slice, name: str = "pair") -> tuple[Tensor, Tensor]:
        """Some slots: keys and values, (B, H, n, K)."""
        if isinstance(near, slice):
            k, v = (read(near.start, near.stop) for read in self.readers[name])
        else:
            k, v = (chosen(t, near) for t in getattr(self, name))
        return k, v


class CompressiveMemory(SegmentRecurrence):
    """Segment recurrence with a second memory: every c tokens that leave memory become one compressed slot (Rae et
    al., 2020; arXiv:1911.05507).

    ```
    ······[ compressed, N slots of c tokens ][ memory, M tokens ][ segment, L ]
          └─ distances go on: a slot counts 1 ─────┘             └ q
    ```
    Slot b summarises the layer's inputs at positions b c … b c + c - 1 of a text by f, and is visible to segments at
    least M tokens after it. `conv`: f has weights, which learn to preserve the outputs of attention:

    ```
    compression = | softmax(q k_old^T) v_old - softmax(q k_new^T) v_new |^2    old: the L oldest tokens of memory
                                                                               new: their slots, k = W_k f(old)
    ```
    the mean over real tokens and channels, in training. Its gradient reaches f only, and that of the task everything
    but f (sections 3.1 and 3.2 of the paper), so no weight between the two has to be chosen. The paper writes the
    norm, not its square.

    Takes the options of `SegmentRecurrence` and these:

    Args:
        compressed: N. `rate`: c; it divides L and M, and M is at least L.
        way: f, one of conv (a matrix for each of the c tokens, D c x D), mean, max.

    Shape: (B, T, D) -> same. State: that of `SegmentRecurrence`, the last c - 1 inputs, (B, c - 1, D), and keys and
    values of N + (M + L) / c slots.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        segment: int = 128,
        memory: int = 128,
        compressed: int = 128,
        rate: int = 4,
        way: str = "conv",
        bias: bool = True,
        out_bias: bool | None = None,
        norm: Recipe[Norm] | None = None,
        scale: float | None = None,
        scores: Sequence[Recipe[Score]] = (),
        dropout: float = 0.0,
    ):
        super().__init__(dim, heads, head_dim, segment, memory, bias, out_bias, norm, scale, scores, dropout)
        check_option("CompressiveMemory", "way", way, WAYS)
        if min(compressed, rate) < 1:
            raise ValueError(
                f"CompressiveMemory: compressed and rate must be at least 1; got compressed={compressed}, rate={rate}"
            )
        if segment % rate or memory % rate or memory < segment:
            raise ValueError(
                "CompressiveMemory: memory must be at least segment, and rate divides both, so that what leaves "
                f"memory is a whole number of slots; got memory={memory}, segment={segment}, rate={rate}"
            )
        self.compressed, self.rate, self.way = compressed, rate, way
        self.conv = nn.Conv1d(dim, dim, rate, rate) if way == "conv" else None

    @property
    def farthest(self) -> int:
        return self.reach + self.compressed

    def _call(self, x: Tensor, flow: Flow) -> Pass:
        call = super()._call(x, flow)
        call.more = self._slots(call)
        return call

    def _slots(self, call: Pass) -> Slots:
        """The summaries of earlier calls, and those that this call completes."""
        last, inputs = self._completed(call)  # (B, n), (B, n, c, D)
        new, taught = self._summary(inputs), None  # (B, n, D)
        k, v = (self._heads(name, part(new.detach())) for name, part in (("k", self.k), ("v", self.v)))  # (B, H, n, K)
        if call.learns and self.training and self.conv is not None:
            taught = self._heads("k", frozen(self.k, new), frozen), self._heads("v", frozen(self.v, new), frozen)
        if call.slot is not None:
            old_k, old_v, old = call.slot.held[3:]
            last, k, v = torch.cat((old, last), 1), torch.cat((old_k, k), 2), torch.cat((old_v, v), 2)
            taught = taught and (torch.cat((old_k, taught[0]), 2), torch.cat((old_v, taught[1]), 2))
        if orderly(call):
            first = (call.at.first + call.x.shape[1]) // self.rate - last.shape[1]
            return Slots(last, first, (k, v), taught, [])
        if call.slot is not None:  # a text that began late has empty slots in front
            last, order = last.sort(dim=1, stable=True)
            k, v = chosen(k, order), chosen(v, order)
            taught = taught and (chosen(taught[0], order), chosen(taught[1], order))
        return Slots(last, None, (k, v), taught, [])

    def _completed(self, call: Pass) -> tuple[Tensor, Tensor]:
        """Slots that this call completes: index of the last token of each, (B, n), -1 = no slot, and their
        inputs, (B, n, c, D)."""
        at, c, (B, T, _) = call.at, self.rate, call.x.shape
        x = (
            call.x.detach() if call.slot is None else torch.cat((call.slot.held[2], call.x.detach()), 1)
        )  # (B, E + T, D)
        begin = at.first + T - x.shape[1]  # index of x[:, 0]
        if orderly(call):
            first, stop = at.first // c, (at.first + T) // c
            last = torch.arange(first + 1, stop + 1, device=x.device) * c - 1
            return last.expand(B, -1), x[:, first * c - begin : stop * c - begin].unflatten(1, (stop - first, c))
        index = torch.arange(at.first, at.first + T, device=x.device)
        full = (index - at.begin + 1) % c == 0  # (1 or B, T)
        if (keep := call.flow.keep_now(T)) is not None:
            full = full & keep
        last = torch.where(full, index, -1).expand(B, -1).sort(1).values  # (B, T): the completed ones, at the end
        if not isinstance(T, torch.SymInt):
            last = last[:, max(0, T - T // c - 1) :]  # (B, n): the most that can be completed
        window = (last[..., None] - begin + torch.arange(1 - c, 1, device=x.device)).clamp(min=0)  # (B, n, c)
        return last, x[torch.arange(B, device=x.device)[:, None, None], window]

    def _summary(self, x: Tensor) -> Tensor:
        """f, (B, n, c, D) -> (B, n, D)."""
        if self.conv is None:
            return x.mean(2) if self.way == "mean" else x.amax(2)
        weight = self.conv.weight.mT.flatten(1)  # (D, c D): its stride is its width, so it is one product
        return F.linear(x.flatten(2), weight, self.conv.bias)

    def _sources(self, call: Pass, chunk: Chunk) -> list[Source]:
        """Slots, then the sources of the recurrence."""
        slots: Slots = call.more
        near = self._near(call, chunk)
        last = slots.last[:1, near] if isinstance(near, slice) else slots.last.gather(1, near)  # (1 or B, n)
        last = last[:, None]  # (1 or B, 1, n)
        newest = chunk.base[..., None] - self.memory  # (1 or B, C, 1)
        there = (last >= 0) & (last >= chunk.begin[..., None])
        seen = there & (last < newest) & (last >= newest - self.rate * self.compressed)  # (B, C, n)
        back = torch.div(newest - 1 - last, self.rate, rounding_mode="floor") + 1  # 1 = the youngest one
        bias = None if call.bias is None else self._bias(call, chunk, back)
        if slots.taught is not None:
            old = there & (last >= newest) & (last < newest + self.segment)
            self._compare(call, chunk, near, old)
        k, v = slots.near(near)
        return [Source(k, v, seen, bias, None), *super()._sources(call, chunk)]

    def _near(self, call: Pass, chunk: Chunk) -> Tensor | slice:
        """The slots in these queries' reach: those that end in a range of the text, (B, n); a slice if the range is
        the same for all rows."""
        slots: Slots = call.more
        many, c = slots.last.shape[1], self.rate
        if isinstance(many, torch.SymInt):
            return torch.arange(many, device=slots.last.device).expand_as(slots.last)
        most = min(many, (chunk.rows.stop - chunk.rows.start + 2 * self.segment) // c + self.compressed + 1)
        if slots.first is not None:
            index = call.at.first + chunk.rows.start
            oldest = index - index % self.segment - self.memory - c * self.compressed
            start = min(max(0, oldest // c - slots.first), many - most)
            return slice(start, start + most)
        oldest = chunk.base.amin() - self.memory - c * self.compressed
        start = (slots.last < oldest.clamp(min=0)).sum(1, keepdim=True).clamp(max=many - most)  # after the empty ones
        return start + torch.arange(most, device=slots.last.device)

    def _bias(self, call: Pass, chunk: Chunk, back: Tensor) -> Tensor:
        """The score parts' bias for a slot that is the `back`-th before memory: each adds 1 to the distance.

        It is computed at all distances that slots can have, and gathered for each. (B, C, n) -> (B or 1,
        H, C, n).
        """
        nearest, farthest = self.memory + 1, self.farthest
        first, count = call.at.first + chunk.rows.start, chunk.rows.stop - chunk.rows.start
        start = first - farthest
        view = View(Causal(), first, count, start, count + farthest - nearest, device=back.device)
        assert call.bias is not None
        every = call.bias(view)  # (B or 1, H, C, count + farthest - nearest)
        offset = (chunk.index - chunk.base)[..., None]  # (1 or B, C, 1)
        column = chunk.index[:, None] - start - (offset + self.memory + back)  # (B, C, n)
        rows, heads = every.shape[0] if column.shape[0] == 1 else column.shape[0], every.shape[1]
        column = column.clamp(0, every.shape[-1] - 1)[:, None].expand(rows, heads, -1, -1)
        return every.expand(rows, -1, -1, -1).gather(3, column)

    def _compare(self, call: Pass, chunk: Chunk, near: Tensor | slice, old: Tensor) -> None:
        """Adds the error of these queries' outputs from slots instead of the summarised tokens."""
        slots, at, columns = call.more, call.at, chunk.held
        key, oldest = at.keys(columns), chunk.base[..., None] - self.memory  # (n,), (1 or B, C, 1)
        tokens = (key >= oldest) & (key < oldest + self.segment) & (key >= chunk.begin[..., None])
        q = call.q[:, :, chunk.rows].detach()
        held = [t[:, :, columns].detach() for t in call.held]
        new = slots.near(near, "taught")
        wanted = weights(q, held[0], tokens[:, None], scale=self.scale) @ held[1]  # (B, H, C, K)
        attended = weights(q, new[0], old[:, None], scale=self.scale) @ new[1]
        slots.error.append((attended - wanted).square().mean((1, 3)))

    def _end(self, call: Pass) -> None:
        slots, T = call.more, call.x.shape[1]
        if slots.taught is not None:
            keep = call.flow.keep_now(T)
            error = torch.cat(slots.error, 1)  # (B, T)
            real = torch.ones_like(error) if keep is None else keep.to(error.dtype)
            call.flow.add_aux("compression", (error * real).sum() / real.sum().clamp(min=1))
        if call.slot is not None:
            x = torch.cat((call.slot.held[2], call.x.detach()), 1)
            most = self.compressed + (self.memory + self.segment) // self.rate
            newest = slice(max(0, slots.last.shape[1] - most), None)
            past = x[:, max(0, x.shape[1] - self.rate + 1) :]
            k, v = (t[:, :, newest].detach() for t in slots.pair)
            call.slot.put(T, *self._recent(call), past, k, v, slots.last[:, newest])

    def start(self, batch: int, length: int, like: Tensor) -> Tail:
        empty = like.new_zeros(batch, self.heads, 0, self.head_dim)
        none = torch.zeros(batch, 0, dtype=torch.long, device=like.device)
        return Tail(empty, empty, like.new_zeros(batch, 0, self.q.in_features), empty, empty, none)


def orderly(call: Pass) -> bool:
    """True if all rows hold one text each, from the first token on."""
    return call.at.straight and call.flow.documents is None and not isinstance(call.x.shape[1], torch.SymInt)


def chosen(t: Tensor, index: Tensor) -> Tensor:
    """Some slots by index, (B, H, N, K) by (B, n) -> (B, H, n, K)."""
    return t.gather(2, index[:, None, :, None].expand(-1, t.shape[1], -1, t.shape[3]))


def frozen(part: nn.Module, x: Tensor) -> Tensor:
    """`part(x)`, with a gradient to x only."""
    return torch.func.functional_call(part, {n: p.detach() for n, p in part.named_parameters()}, (x,))
