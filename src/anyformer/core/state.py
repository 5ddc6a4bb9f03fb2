"""Decoding state of a model, outside its modules. B batch, S tokens so far, D width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn


class Slot(Protocol):
    """The decoding state of one mixer. Subclasses can return to any length by default."""

    def reorder(self, index: Tensor) -> None:
        """Reorders rows: row i becomes the old row `index[i]`, for beam search or a batch that loses rows."""

    def returns_to(self, length: int) -> bool:
        """True if the state after the first `length` tokens can be restored."""
        return True

    def trim(self, length: int) -> None:
        """Drops everything after the first `length` tokens."""

    def mark(self) -> None:
        """Ensures that `trim` to the present length will be possible later."""
        return

    def bytes(self) -> int:
        """Memory held, in bytes."""

    def in_8_bits(self) -> bool:
        """Holds what comes from now on in 8 bits; False if it has no such form. It must be empty."""
        return False

    @property
    def joins(self) -> bool:
        """True if it has `shift` and `join`: rows can be added while others are decoded."""
        return False

    def shift(self, count: int) -> None:
        """Puts `count` positions of padding in front of every row; below 0, drops as many, which are padding."""
        raise ValueError(f"rows of {type(self).__name__} cannot join others")

    def crop(self, count: int) -> None:
        """Drops `count` positions in front of what it keeps of the encoder's memory, which are padding."""
        return

    def join(self, other: Any) -> None:
        """Adds the rows of another slot of the same mixer, which has seen as many tokens."""
        raise ValueError(f"rows of {type(self).__name__} cannot join others")


@dataclass(frozen=True)
class Memory:
    """The output of an encoder for cross-attention, with its own padding mask."""

    stream: Tensor  # (B, S, D)
    keep: Tensor | None = None  # (B, S) padding mask, True = real; None = all

    def rows(self, index: Tensor) -> Memory:
        """The memory of the rows `index`, in that order."""
        return Memory(self.stream[index], None if self.keep is None else self.keep[index])

    def joined(self, other: Memory) -> Memory:
        """The rows of both; a shorter memory is padded on the left."""
        if self.keep is None and other.keep is None and self.stream.shape[1] == other.stream.shape[1]:
            return Memory(torch.cat((self.stream, other.stream)))
        mine, theirs = (masked(m.keep, m.stream.shape[0], m.stream.shape[1], m.stream.device) for m in (self, other))
        return Memory(aligned(self.stream, other.stream, 1), aligned(mine, theirs, 1))


def masked(keep: Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    """The padding mask, (B, length); without one, all is real."""
    return torch.ones(batch, length, dtype=torch.bool, device=device) if keep is None else keep


def aligned(a: Tensor, b: Tensor, axis: int, rows: int = 0) -> Tensor:
    """The rows of both, along the axis `rows`; the one that is shorter along `axis` gets 0 in front."""
    size = max(a.shape[axis], b.shape[axis])
    return torch.cat([fronted(t, size - t.shape[axis], axis) for t in (a, b)], rows)


def fronted(t: Tensor, count: int, axis: int) -> Tensor:
    """The tensor with `count` times 0 in front along an axis."""
    return t if not count else torch.cat((t.new_zeros(*t.shape[:axis], count, *t.shape[axis + 1 :]), t), axis)


class State:
    """Decoding state of a whole model, outside its modules: one slot per mixer, made by the mixer.

    `state = model.start(batch)`, then every `model(ids, state=state)` continues after the last call. Rows share one
    length; a shorter row is padded on the left and marked in its attention mask.

    Attributes:
        repeats: True if a pass may be made twice from it: it does not hold what the pass adds.
    """

    repeats: ClassVar[bool] = False

    def __init__(self, batch: int, slots: dict[nn.Module, Slot]):
        self.batch, self.length = batch, 0
        self.keep: Tensor | None = None  # (B, length) False = padding
        self.ended = False  # True if the last position of some row is padding: more text there would leave a gap
        self.memory: Memory | None = None  # the encoder's, computed once
        self.prefix: dict[nn.Module, int] = {}  # extra positions in front of the text in a mixer's cache (MemoryTokens)
        self.slots = slots

    def reorder(self, index: Tensor) -> None:
        """Reorders rows: row i becomes the old row `index[i]`; `index` can be shorter or longer than the batch."""
        self.batch = len(index)
        self.keep = None if self.keep is None else self.keep[index]
        self.memory = None if self.memory is None else self.memory.rows(index)
        for slot in self.slots.values():
            slot.reorder(index)

    def mark(self) -> None:
        """Marks the present length for a later `trim`. Recurrent and sliding states can return only to a mark."""
        for slot in self.slots.values():
            slot.mark()

    def trim(self, length: int) -> None:
        """Drops everything after the first `length` tokens (speculative decoding).

        Raises:
            ValueError: if a slot cannot return there; nothing has changed then.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot trim to {length} tokens: the state holds {self.length}")
        for mixer, slot in self.slots.items():
            if not slot.returns_to(length + self.prefix.get(mixer, 0)):
                raise ValueError(
                    f"{type(mixer).__name__} cannot return from {self.length} to {length} tokens: "
                    "it keeps only what the next tokens need; call state.mark() before tokens that may be rolled back"
                )
        for mixer, slot in self.slots.items():
            slot.trim(length + self.prefix.get(mixer, 0))
        self.keep = None if self.keep is None else self.keep[:, :length]
        self.ended = bool(self.keep is not None and length and not self.keep[:, -1].all())
        self.length = length

    def in_8_bits(self) -> int:
        """Holds what comes from now on in 8 bits, where a slot has such a form; the number of these slots."""
        return sum(slot.in_8_bits() for slot in self.slots.values())

    @property
    def joins(self) -> bool:
        """True if rows can be added while others are decoded: `join`."""
        return all(slot.joins for slot in self.slots.values())

    def shift(self, count: int, device: torch.device) -> None:
        """Puts `count` positions of padding in front of every row; below 0, drops as many, which are padding."""
        if count > 0:
            self.keep = fronted(masked(self.keep, self.batch, self.length, device), count, 1)
        elif count < 0:
            assert self.keep is not None and not self.keep[:, :-count].any()
            self.keep = None if bool(self.keep[:, -count:].all()) else self.keep[:, -count:]
        self.length += count
        for slot in self.slots.values() if count else ():
            slot.shift(count)

    def join(self, other: State, device: torch.device) -> None:
        """Adds the rows of another state of the same model, for which `joins` is true; the shorter text is padded on
        the left. The other state is used up."""
        self.shift(max(0, other.length - self.length), device)
        other.shift(max(0, self.length - other.length), device)
        if self.keep is not None or other.keep is not None:
            self.keep = torch.cat([masked(s.keep, s.batch, s.length, device) for s in (self, other)])
        if self.memory is not None and other.memory is not None:
            self.memory = self.memory.joined(other.memory)
        self.batch += other.batch
        for mixer, slot in self.slots.items():
            slot.join(other.slots[mixer])

    def pack(self, device: torch.device) -> None:
        """Drops the positions in front that are padding in every row: the state is as long as the longest row, and its
        memory as the longest source."""
        if self.keep is not None:
            self.shift(-int(self.keep.long().argmax(1).min()), device)
        if self.memory is not None and self.memory.keep is not None:
            gap = int(self.memory.keep.long().argmax(1).min())
            keep = self.memory.keep[:, gap:]
            self.memory = Memory(self.memory.stream[:, gap:], None if bool(keep.all()) else keep)
            for slot in self.slots.values() if gap else ():
                slot.crop(gap)

    def bytes(self) -> int:
        """Memory held by all slots, in bytes."""
        memory = 0 if self.memory is None else self.memory.stream.nbytes
        return memory + sum(slot.bytes() for slot in self.slots.values())

    def advance(self, keep: Tensor | None, batch: int, count: int) -> Tensor | None:
        """Adds `count` tokens with their padding mask to the state; returns the mask of all tokens, (B, S) or
        None."""
        if batch != self.batch:
            raise ValueError(f"the state was started for a batch of {self.batch}, the input has {batch} rows")
        if keep is not None or self.keep is not None:
            device = keep.device if keep is not None else self.keep.device  # type: ignore[union-attr]
            past = (
                self.keep if self.keep is not None else torch.ones(batch, self.length, dtype=torch.bool, device=device)
            )
            now = keep if keep is not None else torch.ones(batch, count, dtype=torch.bool, device=device)
            if now.shape[1] == self.length + count:  # the mask of all tokens, as other libraries pass it
                now = now[:, self.length :]
            if (keep is not None or self.ended) and self._leaves_gap(past, now):
                raise ValueError(
                    "with a state, padding must be on the left: windows, relative positions and recurrent states "
                    "count a gap as text; pad shorter rows on the left"
                )
            self.ended = keep is not None and not bool(now[:, -1].all())
            self.keep = torch.cat((past, now), 1)
        self.length += count
        return self.keep

    def _leaves_gap(self, past: Tensor, now: Tensor) -> bool:
        """True if there is padding between real tokens; a row of padding only, from here on, has none."""
        gap = (now[:, :-1] & ~now[:, 1:]).any(1)  # (B,)
        if self.length:
            gap = gap | (past.any(1) & now.any(1) & ~(past[:, -1] & now[:, 0]))
        return bool(gap.any())
