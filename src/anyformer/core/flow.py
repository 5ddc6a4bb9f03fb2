"""The flow of one forward pass: everything that its parts share.

B batch, T queries now, S keys so far, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from anyformer.core.documents import lengths
from anyformer.core.state import Memory, State
from anyformer.core.taps import Taps

V = TypeVar("V")
C = TypeVar("C", bound="Companion")


class Companion:
    """Base of values that travel beside the stream, each by its type: `flow.put(Cells(4, 5))`, `flow.get(Cells, …)`.

    Attributes:
        left_by: the part that puts such a value, for the error when it is missing.
        per_position: True if it belongs to the positions of the stream, and is dropped where the length changes.
    """

    left_by: ClassVar[str] = "another part"
    per_position: ClassVar[bool] = False


@dataclass
class Flow:
    """The values that one forward pass shares. Every mixer is `forward(x, flow)`; nothing else is passed down.

    A skeleton makes it (`Skeleton.begin`). A value that one part puts for others is a `Companion`, not a new field.
    """

    positions: Tensor  # (T,) or (B, T): position of each query in its own sequence, padding not counted
    first: int = 0  # index of the first query among all tokens seen; 0 without state
    causal: bool = False
    keep: Tensor | None = None  # (B, S) padding mask over all tokens seen, True = real
    documents: Tensor | None = None  # (B, T) document of each token, where several share a row; -1 = padding
    memory: Memory | None = None  # the encoder's, for cross-attention
    state: State | None = None
    taps: Taps | None = None
    aux: dict[str, Tensor] = field(default_factory=dict)  # auxiliary losses, by name
    figures: dict[str, list[Tensor]] = field(default_factory=dict)  # metrics that parts report in training, by name
    companions: dict[type[Companion], Companion] = field(default_factory=dict)
    shared: dict[Any, Any] = field(default_factory=dict)  # cache of `once`

    def put(self, value: Companion) -> None:
        """Puts a value for later parts; it replaces one of the same type."""
        self.companions[type(value)] = value

    def find(self, kind: type[C]) -> C | None:
        """The value of that type, or None if no part put one."""
        return self.companions.get(kind)  # type: ignore[return-value]

    def get(self, kind: type[C], reader: str) -> C:
        """The value of that type, for the part called `reader`.

        Raises:
            ValueError: if no part put one, with the name of the part that would.
        """
        value = self.find(kind)
        if value is None:
            raise ValueError(
                f"{reader} reads {kind.__name__}, which {kind.left_by} leaves in the flow, and no part of this model "
                f"did; build the model with {kind.left_by}, or without {reader}"
            )
        return value

    def once(self, key: Any, make: Callable[[], V]) -> V:
        """`make()`, called once in this forward pass: for tables and masks that all layers share."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def inside(
        self, positions: Tensor, keep: Tensor | None, first: int | None = None, documents: Tensor | None = None
    ) -> Flow:
        """The flow of another sequence inside this pass: more, fewer or other positions.

        This flow does not change, so that a recomputed block finds it unchanged. Values shared by layers (`once`) and
        companions that belong to positions are dropped; losses, metrics, memory, state and taps are the same.
        """
        others = {kind: value for kind, value in self.companions.items() if not kind.per_position}
        first = self.first if first is None else first
        return replace(
            self, positions=positions, keep=keep, first=first, documents=documents, companions=others, shared={}
        )

    def apart(self, *more: Companion) -> Flow:
        """The flow of a pass whose losses and metrics are collected separately, for `take`; with `more` companions."""
        companions = {**self.companions, **{type(value): value for value in more}}
        return replace(self, aux={}, figures={}, companions=companions, shared={})

    def length(self) -> Tensor:
        """The number of positions of a text: (1,), per row (B, 1), or with documents per token (B, T, 1)."""
        if self.documents is None:
            return self.positions.amax(-1, keepdim=True) + 1
        return lengths(self.positions)[..., None]

    def slot(self, mixer: nn.Module) -> Any:
        """The decoding state of that mixer, or None.

        Raises:
            ValueError: if the state belongs to another model.
        """
        if self.state is None:
            return None
        if mixer not in self.state.slots:
            raise ValueError(
                f"the state has no entry for this {type(mixer).__name__}: it was started by another model, or before "
                "parts of this one were replaced; start a new one with model.start(batch)"
            )
        return self.state.slots[mixer]

    def keep_now(self, count: int) -> Tensor | None:
        """The padding mask of the `count` tokens of this call, (B, T) or None."""
        return None if self.keep is None else self.keep[:, self.keep.shape[1] - count :]

    def clear(self, x: Tensor) -> Tensor:
        """(B, T, D) with 0 at padding, in place of any value there, NaN included."""
        keep = self.keep_now(x.shape[1])
        return x if keep is None else x.masked_fill(~keep[..., None], 0.0)

    def add_aux(self, name: str, value: Tensor) -> None:
        """Adds an auxiliary loss to the skeleton's output."""
        self.aux[name] = self.aux[name] + value if name in self.aux else value

    def report(self, name: str, value: Tensor) -> None:
        """Adds a metric of training, one tensor a layer: the usage of experts."""
        self.figures.setdefault(name, []).append(value.detach())

    def take(self, other: Flow) -> None:
        """Adds the losses and metrics of a pass inside this one: an encoder's, a block's."""
        for name, value in other.aux.items():
            self.add_aux(name, value)
        for name, values in other.figures.items():
            self.figures.setdefault(name, []).extend(values)
