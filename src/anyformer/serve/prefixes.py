"""Beginnings of prompts that have been read before: their states are copied, and not computed again.

```
prompt   |  chunk  |  chunk  | rest |        another prompt   |  chunk  |  other …
             state of whole chunks ── copy ──> its beginning that is equal, in whole chunks
```
Only whole chunks are shared, and a chunk is computed in a pass of its own in any case: with and without the cache the
same passes are made over the same tokens, so the numbers are equal bit for bit. An owner never meets what another one
sent, since the time of an answer would tell that somebody had sent the same beginning.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn

from anyformer.core.state import State
from anyformer.parts.attention.cache import KeysValues

Key = tuple[str, str, tuple[int, ...]]  # model, owner, tokens


class Prefixes:
    """States of beginnings, those unused for longest dropped first.

    Args:
        limit: bytes of all states together; 0 = nothing is kept.

    Attributes:
        bytes: held now.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[Key, State] = OrderedDict()

    def find(self, model: Any, name: str, owner: str, ids: list[int], chunk: int, fresh: State) -> State | None:
        """A state of the longest beginning of a prompt in whole chunks, the caller's own; None if there is none.

        At least two tokens are left to read, as without the cache.

        Args:
            fresh: an empty state for the prompt, whose room the result gets.
        """
        lengths = []
        for key in self._kept:
            if key[:2] == (name, owner):
                length, most = 0, min(len(key[2]), len(ids) - 2)
                while length + chunk <= most and key[2][length : length + chunk] == tuple(ids[length : length + chunk]):
                    length += chunk
                lengths.append((length, key))
        for length, key in sorted(lengths, key=lambda pair: -pair[0]):
            kept = self._kept[key]
            if length and (length == kept.length or _plain(kept)):
                self._kept.move_to_end(key)
                return _fitted(copied(kept, model), length, fresh)
        return None

    def keep(self, model: Any, name: str, owner: str, ids: list[int], state: State) -> None:
        """Keeps a copy of the state of these tokens, if there is room for it."""
        key, size = (name, owner, tuple(ids)), state.bytes()
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        if size > self.limit:
            return
        self._kept[key] = copied(state, model)
        self.bytes += size
        while self.bytes > self.limit:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= dropped.bytes()


def copied(state: State, model: Any) -> State:
    """A state with memory of its own; the model's modules and weights stay the same."""
    same = [*model.modules(), *model.parameters(), *model.buffers()]
    return copy.deepcopy(state, {id(one): one for one in same})


def _plain(state: State) -> bool:
    """True if the state of fewer tokens is a part of it as it stands: keys and values of all tokens, nothing else."""
    slots = state.slots.values()
    return all(isinstance(slot, KeysValues) and not getattr(slot, "dropped", 0) for slot in slots)


def _fitted(state: State, length: int, fresh: State) -> State:
    """The state of the first `length` tokens, with the room of a fresh one: where keys lie in memory changes the last
    bits of their products."""
    if length < state.length:
        state.trim(length)
    for mixer, slot in state.slots.items():
        for mine, new in zip(_memories(slot), _memories(fresh.slots[mixer]), strict=True):
            if not getattr(mine, "dropped", 0) and new.memory.shape[3] >= mine.length:
                new.memory[:, :, :, : mine.length] = mine.memory[:, :, :, : mine.length]
                mine.memory = new.memory
    return state


def _memories(slot: Any) -> Iterator[KeysValues]:
    """The keys and values in a slot, those of slots inside it included."""
    if isinstance(slot, KeysValues):
        yield slot
    elif isinstance(slot, list | tuple | dict):
        for one in slot.values() if isinstance(slot, dict) else slot:
            yield from _memories(one)
    elif type(slot).__module__.startswith("anyformer.") and not isinstance(slot, nn.Module):
        yield from _memories(dict(vars(slot)))


def unshared(model: Any) -> str | None:
    """The reason why beginnings of this model's prompts cannot be shared; None if they can."""
    if not model.generates:
        return None  # it has no prompts
    if model.reads_source:
        return "it reads a whole prompt at once, the end before the beginning"
    try:
        model.start(1, 2)
    except ValueError as error:
        return f"it has no state: {error}"
    return None
