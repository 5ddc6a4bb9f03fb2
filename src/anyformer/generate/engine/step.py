"""One decoding step as a pure function of tensors: (tokens, places, state) -> (scores, new state).

B batch, T tokens now, P tokens before, S = P + T, G key/value heads, R room of buffers, K head width, M length of the
encoder's memory.

| state of a mixer | in the graph | new state |
|---|---|---|
| keys and values of `Attention` | two buffers (B, G, R, K), bound | written in place |
| other keys and values | (B, G, P, K) each | the new (B, G, T, K), appended outside |
| keys and values of an encoder's memory | (B, G, M, K) each | unchanged |
| `Recurrent` | its tensors | their successors |

The state itself is the eager one, `core.state.State`: it is reordered, trimmed, joined and marked by its own code, and
eager steps and steps of the engine can follow each other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.state import Memory, State
from anyformer.generate.engine.lower.attention import Bound, Reach, Reaches, binds, reach
from anyformer.parts.attention.attention import Attention
from anyformer.parts.attention.cache import Frozen, KeysValues, Sliding
from anyformer.parts.attention.masks import FAR
from anyformer.parts.moe import Sent
from anyformer.parts.recurrent.chunked import Recurrent

KEYS = ("k", "v")
_patching = threading.Lock()


class Unsupported(ValueError):
    """A model, or a part, that the engine does not compute; the message is the reason, in one line."""


@dataclass(frozen=True)
class Held:
    """The state of one mixer in the graph. `kind`: bound, grown, frozen, fixed, or none."""

    mixer: nn.Module
    kind: str
    names: tuple[str, ...] = ()  # of its tensors
    like: tuple[Tensor, ...] = ()  # one of each, for their sizes and types
    reach: int = FAR


@dataclass
class Plan:
    """Needs of a model for a graph: the state of its mixers, and whether it reads several tokens at once."""

    held: list[Held] = field(default_factory=list)
    reaches: tuple[int, ...] = ()
    single: bool = False  # one token at a time: a mixer is traced as it is written
    why: str = ""  # the reason
    needs_keep: bool = False
    memory: bool = False


def plan(model: Any) -> Plan:
    """The plan of a model.

    Raises:
        Unsupported: if it does not decode step by step, or a part keeps a state of another kind.
    """
    if not getattr(model, "generates", False):
        raise Unsupported(f"{type(model).__name__} writes no text token by token")
    made, reaches = Plan(), set()
    try:
        slots = model.start(1, 1).slots
    except ValueError as error:
        raise Unsupported(str(error)) from None
    for number, (mixer, slot) in enumerate(slots.items()):
        held = _held(number, mixer, slot)
        made.held.append(held)
        if held.kind == "bound":
            reaches.add(held.reach)
        elif held.kind != "none" and not (held.kind == "frozen" and type(mixer) is Attention):
            made.single, made.why = True, made.why or f"{type(mixer).__name__} has no rule for several tokens"
        made.needs_keep |= held.kind == "grown"
        made.memory |= held.kind == "frozen"
    made.reaches = tuple(sorted(reaches))
    return made


def _held(number: int, mixer: nn.Module, slot: Any) -> Held:
    pair = tuple(f"{name}{number}" for name in KEYS)
    if type(slot) in (KeysValues, Sliding):
        one = slot.memory[0]
        if binds(mixer):
            return Held(mixer, "bound", pair, (one, one), reach(mixer))
        left = slot.left if type(slot) is Sliding else FAR
        return Held(mixer, "grown", pair[: len(slot.memory)], (one,) * len(slot.memory), left)
    if type(slot) is Frozen:
        return Held(mixer, "frozen", pair, (slot.memory[0],) * 2)
    if type(slot) is Recurrent:
        return Held(mixer, "fixed", tuple(f"h{number}_{i}" for i in range(len(slot.held))), slot.held)
    if type(slot) is Sent and not slot.memory.shape[1]:  # experts without a capacity remember nothing
        return Held(mixer, "none")
    what = "a capacity, which counts earlier tokens" if type(slot) is Sent else f"a {type(slot).__name__} as its state"
    raise Unsupported(f"{type(mixer).__name__} keeps {what}, and the engine has no buffers for it")


class Grown:
    """Keys and values while a step is traced: all so far, of which the new ones are returned. It is used once."""

    def __init__(self, *past: Tensor):
        self.past, self.held = past, past

    @property
    def length(self) -> Any:
        return self.past[0].shape[2]

    @property
    def dropped(self) -> int:
        return 0

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        self.held = new
        return tuple(torch.cat(pair, 2) for pair in zip(self.past, new, strict=True))


class Still:
    """Keys and values of an encoder's memory, read long ago."""

    length = 1

    def __init__(self, k: Tensor, v: Tensor):
        self.k, self.v = k, v


class Traced(State):
    """The state while a step is traced: its slots hold inputs of the graph."""

    def __init__(self, batch: Any, length: Any, keep: Tensor | None, memory: Memory | None, slots: Any):
        super().__init__(batch, slots)
        self.length, self.whole, self.memory = length, keep, memory

    def advance(self, keep: Tensor | None, batch: int, count: int) -> Tensor | None:
        return self.whole


class Step(nn.Module):
    """The step of a model, for tracing: `forward(*tensors)` in the order of `names`.

    Attributes:
        names: of the inputs. outputs: names of the outputs: `logits`, then the new state.
    """

    model: Any
    front: Any

    def __init__(self, model: Any, made: Plan):
        super().__init__()
        self.__dict__["model"] = model  # no child: the weights are constants of the graph
        self.plan = made
        self.__dict__["front"] = next(e.front for e in model.entrances() if e.prefix == model.target)
        self.names = ["ids", "positions", "seen"] + ([] if made.single else ["places"])
        self.names += ["keep"] if made.needs_keep else []
        self.names += ["memory_keep"] if made.memory else []
        self.names += [f"{name}{left}" for left in made.reaches for name in ("ends", "total", "padding")]
        self.names += [name for held in made.held for name in held.names]
        self.outputs = ["logits"] + [f"new_{n}" for h in made.held if h.kind not in ("frozen", "none") for n in h.names]

    def example(self) -> tuple[list[Tensor], list[dict[int, Any]]]:
        """Inputs of all kinds, and their open axes."""
        open_, B, T, P, R, M = torch.export.Dim.DYNAMIC, 2, 1 if self.plan.single else 3, 5, 11, 7
        S, whole = P + T, {0: open_} if self.plan.single else {0: open_, 1: open_}
        made: dict[str, tuple[Tensor, dict[int, Any]]] = {
            "ids": (torch.zeros(B, T, dtype=torch.long), whole),
            "positions": (torch.arange(P, S).expand(B, T).contiguous(), whole),
            "seen": (torch.zeros(P), {0: open_}),
            "places": (torch.tensor([0, 1]), {0: open_}),
            "keep": (torch.ones(B, S, dtype=torch.bool), {0: open_, 1: open_}),
            "memory_keep": (torch.ones(B, M, dtype=torch.bool), {0: open_, 1: open_}),
        }
        for left in self.plan.reaches:
            made[f"ends{left}"] = torch.full((B,), S - 1, dtype=torch.int32), {0: open_}
            made[f"total{left}"] = torch.tensor([S], dtype=torch.int32), {}
            axes = {0: open_, 3: open_} if self.plan.single else {0: open_, 2: open_, 3: open_}
            made[f"padding{left}"] = torch.zeros(B, 1, T, S), axes
        sizes = {"bound": R, "grown": P, "frozen": M}
        for held in self.plan.held:
            for name, like in zip(held.names, held.like, strict=True):
                if held.kind == "fixed":
                    made[name] = like.new_zeros(B, *like.shape[1:]), {0: open_}
                else:
                    size = sizes[held.kind] - (held.kind == "grown" and held.reach != FAR)  # a window has dropped some
                    made[name] = like.new_zeros(B, like.shape[1], size, like.shape[3]), {0: open_, 2: open_}
        pairs = [made[name] for name in self.names]
        return [tensor for tensor, _ in pairs], [axes for _, axes in pairs]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, tensors, strict=True))
        ids, seen = given["ids"], given["seen"]
        slots = {held.mixer: self._slot(held, given) for held in self.plan.held}
        memory = Memory(None, given["memory_keep"]) if self.plan.memory else None  # type: ignore[arg-type]
        if self.plan.needs_keep:
            torch._check(given["keep"].shape[1] == seen.shape[0] + ids.shape[1])
        state = Traced(ids.shape[0], seen.shape[0], given.get("keep"), memory, slots)
        reaches = {n: Reach(*(given[f"{name}{n}"] for name in ("ends", "total", "padding"))) for n in self.plan.reaches}
        with self._placed(given["positions"], given.get("places"), Reaches(reaches)):
            logits = self.model(**{self.model.target + self.front.main: ids}, state=state).logits
        new = [t for held in self.plan.held for t in self._new(held, slots[held.mixer])]
        return (logits, *new)

    def _slot(self, held: Held, given: dict[str, Tensor]) -> Any:
        some = [given[name] for name in held.names]
        if held.kind == "grown" and held.reach == FAR:  # a window has dropped some
            torch._check(some[0].shape[2] == given["seen"].shape[0])
        kinds: dict[str, Any] = {"bound": Bound, "grown": Grown, "frozen": Still, "fixed": _begun, "none": _nothing}
        return kinds[held.kind](*some)

    def _new(self, held: Held, slot: Any) -> tuple[Tensor, ...]:
        return () if held.kind in ("frozen", "none") else tuple(slot.held)

    @contextlib.contextmanager
    def _placed(self, positions: Tensor, places: Tensor | None, reaches: Reaches) -> Iterator[None]:
        """A context in which the model takes positions from the graph's inputs, and its head reads some places only."""
        front, head, context = self.front, self.model.head, self.model.context
        whole, once = head.forward, Flow.once

        def locate(*_: Any) -> Tensor:
            return positions

        def some(x: Tensor, flow: Flow) -> Tensor:
            return whole(x if places is None else x[:, places], flow)

        def forward(inputs: Any, flow: Flow, own: Any = front.forward) -> Tensor:
            flow.put(reaches)
            return own(inputs, flow)

        with _patching:
            self.model.context = None
            front.__dict__.update(locate=locate, forward=forward)
            was = head.__dict__.get("forward")
            head.__dict__["forward"] = some
            Flow.once = lambda flow, key, make: once(flow, _hashable(key), make)  # type: ignore[method-assign,misc,assignment]
            try:
                yield
            finally:
                Flow.once = once  # type: ignore[method-assign]
                del front.__dict__["locate"], front.__dict__["forward"], head.__dict__["forward"]
                if was is not None:
                    head.__dict__["forward"] = was
                self.model.context = context


def _begun(*held: Tensor) -> Recurrent:
    """A recurrent state that has read something."""
    slot = Recurrent(*held)
    slot.length = 1
    return slot


def _nothing() -> Sent:
    return Sent(0, 0, 0, torch.empty(0))


def _hashable(key: Any) -> Any:
    """A key of `Flow.once` in which an open size is its name: PyTorch's symbols have no hash."""
    if isinstance(key, torch.SymInt):
        return "size", str(key)
    return tuple(map(_hashable, key)) if isinstance(key, tuple) else key
