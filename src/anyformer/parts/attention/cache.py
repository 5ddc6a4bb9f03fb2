"""Layer caches: keys and values of the tokens so far. B batch, G key/value heads, T new tokens, K head width."""

from __future__ import annotations

import torch
from torch import Tensor

from anyformer.core.state import Slot, aligned, fronted
from anyformer.parts.attention.masks import FAR, Mask


def new_cache(
    mask: Mask | None, batch: int, heads: int, head_dim: int, length: int, like: Tensor, kinds: int = 2
) -> KeysValues:
    """Empty state for the keys that queries under that mask will see."""
    left = FAR if mask is None else mask.reach()[0]
    if left < FAR:
        return Sliding(batch, heads, head_dim, min(length, 2 * left + 2), like, left, kinds)
    return KeysValues(batch, heads, head_dim, length, like, kinds)


class KeysValues(Slot):
    """Keys and values of all tokens so far, in memory that doubles when it is full. Shapes: (B, G, length, K).

    `kinds` is 1 if one tensor holds keys and values at once (`LatentAttention`). In 8 bits a vector v is held as
    q = round(v / s) and s = max |v| / 127, four more bytes: each number is off by s / 2 at most.

    Attributes:
        wide: the type of keys and values that memory holds in 8 bits; None = memory holds them as they are.
    """

    def __init__(self, batch: int, heads: int, head_dim: int, room: int, like: Tensor, kinds: int = 2):
        self.memory = like.new_empty(kinds, batch, heads, room, head_dim)
        self.length = 0
        self.wide: torch.dtype | None = None
        self.watched = False  # True if a pass with gradients may have saved this memory: it is not written again

    @property
    def k(self) -> Tensor:
        return self._read(0)

    @property
    def v(self) -> Tensor:
        return self._read(1)

    def in_8_bits(self) -> bool:
        assert not self.length
        self.wide, shape = self.memory.dtype, self.memory.shape
        self.memory = self.memory.new_empty(*shape[:-1], shape[-1] + 4, dtype=torch.int8)
        return True

    def _read(self, kind: int) -> Tensor:
        held = self.memory[kind, :, :, : self.length]
        return held if self.wide is None else decoded(held, self.wide)

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Appends (B, G, T, K) of each kind, keys and values, and returns all tokens."""
        start, end = self.length, self.length + new[0].shape[2]
        if self.wide is not None:
            if torch.is_grad_enabled():
                raise ValueError("a cache in 8 bits passes no gradients: decode under torch.no_grad()")
            new = tuple(encoded(some) for some in new)
        elif self.watched or torch.is_grad_enabled():
            fresh = torch.stack(new).to(self.memory.dtype)
            self.memory, self.length = torch.cat((self.memory[:, :, :, :start], fresh), 3), end
            self.watched = torch.is_grad_enabled()
            return self.memory.unbind()
        self.reserve(new[0].shape[2])
        for kind, some in enumerate(new):
            self.memory[kind, :, :, start:end] = some
        self.length = end
        return tuple(self._read(kind) for kind in range(len(new)))

    def reserve(self, count: int) -> None:
        """Makes room for `count` more tokens."""
        if self.length + count > self.memory.shape[3]:
            self.memory = self._grown(max(self.length + count, 2 * self.memory.shape[3]))

    def _grown(self, room: int) -> Tensor:
        memory = self.memory
        grown = memory.new_empty(*memory.shape[:3], room, memory.shape[4])
        grown[:, :, :, : self.length] = memory[:, :, :, : self.length]
        return grown

    def reorder(self, index: Tensor) -> None:
        self.memory = self.memory[:, index]

    def trim(self, length: int) -> None:
        self.length = length

    @property
    def joins(self) -> bool:
        return True

    def shift(self, count: int) -> None:
        self.memory = fronted(self.memory, count, 3) if count > 0 else self.memory[:, :, :, -count:]
        self.length += count

    def join(self, other: KeysValues) -> None:
        held = aligned(self.memory[:, :, :, : self.length], other.memory[:, :, :, : other.length], 3, 1)
        room = max(slot.memory.shape[3] - slot.length for slot in (self, other))
        self.memory, self.length = held, held.shape[3]
        self.memory = self._grown(self.length + room)

    def bytes(self) -> int:
        return self.memory.nbytes


def encoded(vectors: Tensor) -> Tensor:
    """Vectors (…, K) as bytes (…, K + 4): whole numbers -127 … 127, and their step in float32."""
    step = vectors.abs().amax(-1, keepdim=True).float() / 127  # (…, 1)
    whole = (vectors.float() / step.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
    return torch.cat((whole, step.contiguous().view(torch.int8)), -1)


def decoded(held: Tensor, dtype: torch.dtype) -> Tensor:
    """The vectors (…, K) of bytes (…, K + 4)."""
    return (held[..., :-4] * held[..., -4:].contiguous().view(torch.float32)).to(dtype)


class Frozen(KeysValues):
    """Keys and values of the encoder's memory: computed once, unchanged by the length of the target."""

    def trim(self, length: int) -> None:
        pass

    def shift(self, count: int) -> None:
        pass

    def crop(self, count: int) -> None:
        super().shift(-count)


class Sliding(KeysValues):
    """Keys and values of a window: tokens out of every later query's reach are dropped, so memory stays bounded.

    `dropped` tokens are gone from the front; the rest is stored as in `KeysValues`.
    """

    def __init__(self, batch: int, heads: int, head_dim: int, room: int, like: Tensor, left: int, kinds: int = 2):
        super().__init__(batch, heads, head_dim, room, like, kinds)
        self.left, self.dropped = left, 0
        self.marked: int | None = None

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        self._slide(new[0].shape[2])
        return super().append(*new)

    def reserve(self, count: int) -> None:
        self._slide(count)
        super().reserve(count)

    def _slide(self, count: int) -> None:
        """Drops what no later query reaches, before `count` more tokens."""
        seen = self.dropped + self.length  # the next query's index: it reaches back to seen - left
        oldest = seen if self.marked is None else min(seen, self.marked)
        excess = max(0, oldest - self.left - self.dropped)
        if excess > self.left:  # moving is a copy: once for many tokens; and a long prompt's memory is freed
            self.length, self.dropped = self.length - excess, self.dropped + excess
            self.memory = self.memory[:, :, :, excess:]
            self.memory = self._grown(max(2 * self.left + 2, self.length + count))

    def returns_to(self, length: int) -> bool:
        return not self.dropped or length - self.left >= self.dropped

    def trim(self, length: int) -> None:
        self.length, self.marked = length - self.dropped, None

    def mark(self) -> None:
        self.marked = self.dropped + self.length

    def shift(self, count: int) -> None:
        """Stores no padding: dropped tokens are out of reach, and so is padding."""
        left = self.dropped + count
        self.dropped = max(0, left)
        if left < 0:
            super().shift(left)

    def join(self, other: KeysValues) -> None:
        seen = self.dropped + self.length
        super().join(other)
        self.dropped = seen - self.length
