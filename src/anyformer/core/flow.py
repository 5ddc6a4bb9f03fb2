"""What one forward pass shares (`Flow`), what decoding remembers (`State`), and how one listens in (`Taps`).

B batch, T queries now, S keys so far, H heads, K head width, D width.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from anyformer.core.documents import lengths
from anyformer.core.part import Mixer

V = TypeVar("V")


class Slot(Protocol):
    """The decoding state of one mixer."""

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row `index[i]` was: beam search, or a batch that loses rows."""

    def returns_to(self, length: int) -> bool:
        """Is what the first `length` tokens left still known?"""

    def trim(self, length: int) -> None:
        """Forgets everything after the first `length` tokens."""

    def mark(self) -> None:
        """Promises that `trim` to the present length will be possible later."""

    def bytes(self) -> int:
        """Memory held, in bytes."""


class State:
    """Decoding state of a whole model, outside its modules: one slot a mixer, made by the mixer.

    `state = model.start(batch)`, then every `model(ids, state=state)` continues where the last call ended. Rows
    share one
    length; a row that is shorter is padded on the left and says so in its attention mask.
    """

    def __init__(self, model: nn.Module, batch: int, length: int = 0):
        like = next(model.parameters())
        self.batch, self.length = batch, 0
        self.keep: Tensor | None = None  # (B, length) False = padding
        self.memory: Tensor | None = None  # (B, S, D) what an encoder made
        self.memory_keep: Tensor | None = None  # (B, S)
        self.ahead: dict[nn.Module, int] = {}  # what a mixer read before the text that is no token of it (MemoryTokens)
        self.slots: dict[nn.Module, Slot] = {
            m: m.start(batch, length, like) for m in model.modules() if isinstance(m, Mixer)
        }

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row `index[i]` was; `index` may be shorter or longer than the batch."""
        self.batch = len(index)
        for name in ("keep", "memory", "memory_keep"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[index])
        for slot in self.slots.values():
            slot.reorder(index)

    def mark(self) -> None:
        """Call before tokens that may be taken back. A recurrent or sliding state can return only to a mark."""
        for slot in self.slots.values():
            slot.mark()

    def trim(self, length: int) -> None:
        """Takes back everything after the first `length` tokens (speculation).

        Raises:
            ValueError: if a slot no longer knows what it needs; nothing has changed then.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot trim to {length} tokens: the state holds {self.length}")
        for mixer, slot in self.slots.items():
            if not slot.returns_to(length + self.ahead.get(mixer, 0)):
                raise ValueError(
                    f"{type(mixer).__name__} cannot return from {self.length} to {length} tokens: "
                    "it keeps only what it needs to go on; call state.mark() before tokens that may be taken back"
                )
        for mixer, slot in self.slots.items():
            slot.trim(length + self.ahead.get(mixer, 0))
        self.keep = None if self.keep is None else self.keep[:, :length]
        self.length = length

    def bytes(self) -> int:
        """Memory held by all slots, in bytes."""
        memory = 0 if self.memory is None else self.memory.nbytes
        return memory + sum(slot.bytes() for slot in self.slots.values())

    def advance(self, keep: Tensor | None, batch: int, count: int) -> Tensor | None:
        """Adds `count` tokens with their padding to what has been seen; returns `keep` over everything, (B, S) or
        None."""
        if batch != self.batch:
            raise ValueError(f"the state was started for a batch of {self.batch}, the input has {batch} rows")
        if keep is not None or self.keep is not None:
            device = keep.device if keep is not None else self.keep.device  # type: ignore[union-attr]
            past = (
                self.keep if self.keep is not None else torch.ones(batch, self.length, dtype=torch.bool, device=device)
            )
            now = keep if keep is not None else torch.ones(batch, count, dtype=torch.bool, device=device)
            if now.shape[1] == self.length + count:  # the mask of everything so far, as other libraries pass it
                now = now[:, self.length :]
            if count > 1 and bool((now[:, :-1] & ~now[:, 1:]).any()):
                raise ValueError(
                    "with a state, padding stands on the left only: windows, relative positions and recurrent states "
                    "count a gap as text; pad shorter rows on the left"
                )
            self.keep = torch.cat((past, now), 1)
        self.length += count
        return self.keep


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


class Taps:
    """Listens to activations by path, without changing them.

    ```python
    with Taps(model, "blocks.*", "blocks.3.mixer.weights") as taps:
        model(ids)
    taps["blocks.3.mixer.weights"]                       # (B, H, T, S)
    ```
    A name is a module's path (its output), or a module's path and an inner name that the module offers: `weights` of
    attention. `*` matches one step of a path. A pattern that matches nothing is an error, at once for modules, and
    when the
    block ends for inner names.
    """

    def __init__(self, model: nn.Module, *patterns: str):
        self.model, self.patterns = model, patterns
        self.names = {module: name for name, module in model.named_modules()}
        self.found: dict[str, Tensor] = {}
        self._inner = [p for p in patterns if not any(_fits(n, p) for n in self.names.values())]
        self._hooks: list[Any] = []

    def wants(self, module: nn.Module, inner: str) -> bool:
        """Does anybody listen to this inner value?"""
        return any(_fits(f"{self.names[module]}.{inner}", p) for p in self._inner)

    def put(self, module: nn.Module, inner: str, value: Tensor) -> None:
        """A module offers an inner value."""
        self.found[f"{self.names[module]}.{inner}"] = value

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.found:
            raise ValueError(f"nothing was recorded at {name!r}; recorded: {', '.join(self.found) or 'nothing'}")
        return self.found[name]

    def items(self) -> list[tuple[str, Tensor]]:
        """All recorded (path, value), in the order of the forward pass."""
        return list(self.found.items())

    def __enter__(self) -> Taps:
        if getattr(self.model, "taps", None) is not None:
            raise ValueError("this model is being listened to already; nest the patterns in one Taps")
        for module, name in self.names.items():
            if any(_fits(name, p) for p in self.patterns):
                self._hooks.append(module.register_forward_hook(self._recorder(name)))
        self.model.taps = self  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self.model.taps = None  # type: ignore[assignment]
        missing = [p for p in self._inner if not any(_fits(n, p) for n in self.found)]
        if missing and kind is None:
            raise ValueError(
                f"nothing in the model answers to {missing[0]!r}; module paths are listed by `anyformer inspect`"
            )

    def _recorder(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.found[name] = output

        return record


def _fits(name: str, pattern: str) -> bool:
    """`*` stands for exactly one step of a path."""
    steps, wanted = name.split("."), pattern.split(".")
    return len(steps) == len(wanted) and all(fnmatch.fnmatchcase(s, w) for s, w in zip(steps, wanted, strict=True))
