"""The flow of one forward pass: everything that its parts share.

B batch, T queries now, S keys so far, H heads, K head width, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from anyformer.core.documents import lengths
from anyformer.core.state import State
from anyformer.core.taps import Taps

V = TypeVar("V")


@dataclass
class Flow:
    """What one forward pass shares. Every mixer is `forward(x, flow)`; no argument is threaded through three levels."""

    positions: Tensor  # (T,) or (B, T): place of each query in its own sequence, padding not counted
    first: int = 0  # index of the first query among all tokens seen; 0 without state
    causal: bool = False
    keep: Tensor | None = None  # (B, S) over all tokens seen, True = real
    documents: Tensor | None = None  # (B, T) of which document each token is, where several share a row; -1 = padding
    memory: Tensor | None = None  # (B, S', D) for cross-attention
    memory_keep: Tensor | None = None  # (B, S')
    types: Tensor | None = None  # (B, T) segment of each token
    wide: Tensor | None = None  # (B, T) True = sees all of its text and is seen by all of it, whatever the mask
    state: State | None = None
    taps: Taps | None = None
    bias: nn.Module | None = None  # relative bias that a stack owns: bias(queries, keys) -> (H, T, S)
    unembed: Callable[[Tensor], Tensor] | None = None  # hidden -> logits by the token table, for tied heads
    grid: tuple[int, int] | None = None  # rows and columns of an image's patches, which follow the class token
    pooled: Tensor | None = None  # (B, D) made by the skeleton's `pool`
    again: bool = False  # inside a module whose activations are made again in backward: nothing else is to be saved
    aux: dict[str, Tensor] = field(default_factory=dict)  # auxiliary losses, by name
    figures: dict[str, list[Tensor]] = field(default_factory=dict)  # what parts report while training, by name
    _made: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], V]) -> V:
        """`make()`, but once in this forward pass: tables and masks that all layers share."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def length(self) -> Tensor:
        """The number of places that a text takes: (1,), a row each (B, 1), or with documents a token each (B, T, 1)."""
        if self.documents is None:
            return self.positions.amax(-1, keepdim=True) + 1
        return lengths(self.positions)[..., None]

    def slot(self, mixer: nn.Module) -> Any:
        """The decoding state of that mixer, or None."""
        return None if self.state is None else self.state.slots[mixer]

    def keep_now(self, count: int) -> Tensor | None:
        """Padding of the `count` tokens of this call alone, (B, T) or None."""
        return None if self.keep is None else self.keep[:, self.keep.shape[1] - count :]

    def clear(self, x: Tensor) -> Tensor:
        """(B, T, D) with 0 at padding: whatever stands there, NaN included, ends here."""
        keep = self.keep_now(x.shape[1])
        return x if keep is None else x.masked_fill(~keep[..., None], 0.0)

    def add_aux(self, name: str, value: Tensor) -> None:
        """Adds an auxiliary loss to what the skeleton returns."""
        self.aux[name] = self.aux[name] + value if name in self.aux else value

    def report(self, name: str, value: Tensor) -> None:
        """Adds figures that somebody who trains wants to see, one tensor a layer: the usage of experts."""
        self.figures.setdefault(name, []).append(value.detach())

    def take(self, other: Flow) -> None:
        """Takes over the losses and figures of another pass that belongs to this one: an encoder's, a block's."""
        for name, value in other.aux.items():
            self.add_aux(name, value)
        for name, values in other.figures.items():
            self.figures.setdefault(name, []).extend(values)
