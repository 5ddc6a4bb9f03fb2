"""A model whose steps are computed by ONNX Runtime: the same interface, the same state.

B batch, T tokens now, P tokens before, S = P + T, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer.core.flow import Flow
from anyformer.core.state import State
from anyformer.generate.engine.lower.attention import FLOOR
from anyformer.generate.engine.program import Program
from anyformer.generate.engine.step import Plan

CHUNK = 512  # tokens of one text that are read at once
MANY = 1 << 62


@dataclass
class Written:
    """The output of a step: scores of the places that were asked for, (B, N, V)."""

    logits: Tensor


class Engined:
    """A model in front of programs; what they do not compute, the model computes, on the same state.

    Every attribute is that of the model. Calls with media, positions of their own, a source, gradients, or without a
    state go to the model.

    Args:
        programs: with the most rows (B x T) that each computes, in rising order.

    Attributes:
        report: the quality of the programs, or None.
    """

    def __init__(self, model: Any, made: Plan, programs: Sequence[tuple[int, Program]], report: Any = None):
        self.model, self.plan, self.programs, self.report = model, made, list(programs), report
        self._entrance = next(e for e in model.entrances() if e.prefix == model.target)
        front = self._entrance.front
        self._ids, self._mask = model.target + front.main, self._entrance.mask
        self._seen = torch.zeros(1)

    @property
    def torch_model(self) -> Any:
        """The model as PyTorch computes it."""
        return self.model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)

    def __call__(self, *args: Any, state: State | None = None, last: bool = False, **inputs: Any) -> Any:
        given = {name: value for name, value in inputs.items() if value is not None}
        if args or state is None or not self._computes(given, state):
            return self.model(*args, state=state, last=last, **inputs)
        return Written(self._read(given, state, last))

    def _computes(self, given: dict[str, Tensor], state: State) -> bool:
        """True if a program computes this call."""
        ids = given.get(self._ids)
        if ids is None or not set(given) <= {self._ids, self._mask} or ids.ndim != 2 or ids.shape[1] == 0:
            return False
        if torch.is_grad_enabled() or self.model.training or self.model.taps is not None or state.prefix:
            return False
        if (self.plan.single and ids.shape[1] > 1) or (self.plan.memory and state.memory is None):
            return False
        # the attention node reads several tokens behind others in one row only
        return bool(ids.shape[1] == 1 or ids.shape[0] == 1 or state.length == 0)

    def _read(self, given: dict[str, Tensor], state: State, last: bool) -> Tensor:
        """The scores of all tokens of a call, or of the last one; a long text is read in chunks."""
        ids = given[self._ids]
        if ids.shape[0] > 1 or ids.shape[1] <= CHUNK or self._mask in given:
            return self._step(given, state, last)
        made = [self._step({self._ids: some}, state, last) for some in ids.split(CHUNK, 1)]
        return made[-1] if last else torch.cat(made, 1)

    def _step(self, given: dict[str, Tensor], state: State, last: bool) -> Tensor:
        before = state.length
        tensors, flow = self.model.begin(self._entrance, given, None, state, causal=True)
        ids = tensors[self._entrance.front.main]
        batch, count = ids.shape
        program = next(p for most, p in self.programs if batch * count <= most)
        inputs = self._inputs(ids.long().contiguous(), flow, before, last)
        outputs = self._state(inputs, state, flow, count)
        places = 1 if last or self.plan.single else count
        logits = ids.new_empty(batch, places, program.width, dtype=torch.float32)
        try:
            program.run(inputs, {"logits": logits, **outputs})
        except Exception:
            self._entrance.front.check_ids(tensors)
            raise
        self._advance(outputs, state, count)
        return logits

    def _inputs(self, ids: Tensor, flow: Flow, before: int, last: bool) -> dict[str, Tensor]:
        batch, count = ids.shape
        if len(self._seen) < before:
            self._seen = torch.zeros(2 * before)
        made = {"ids": ids, "positions": flow.positions.expand(batch, count).contiguous()}
        made["seen"] = self._seen[:before]
        made["places"] = torch.tensor([count - 1]) if last else torch.arange(count)
        if self.plan.needs_keep:
            whole = flow.keep if flow.keep is not None else torch.ones(batch, before + count, dtype=torch.bool)
            made["keep"] = whole.contiguous()
        if self.plan.memory:
            memory = flow.state.memory  # type: ignore[union-attr]
            shape = memory.stream.shape[:2]  # type: ignore[union-attr]
            keep = memory.keep  # type: ignore[union-attr]
            made["memory_keep"] = torch.ones(shape, dtype=torch.bool) if keep is None else keep.contiguous()
        return made

    def _state(self, inputs: dict[str, Tensor], state: State, flow: Flow, count: int) -> dict[str, Tensor]:
        """Adds the state to the inputs; returns the tensors for the new one."""
        outputs: dict[str, Tensor] = {}
        batch = len(inputs["ids"])
        for held in self.plan.held:
            slot: Any = state.slots[held.mixer]
            if held.kind == "bound":
                slot.reserve(count)
                if not slot.memory.is_contiguous() or slot.watched:
                    slot.memory, slot.watched = slot.memory.clone(memory_format=torch.contiguous_format), False
                if f"ends{held.reach}" not in inputs:
                    self._reach(inputs, held.reach, slot.length + count, count, flow)
                some = slot.memory.unbind()
                outputs |= {f"new_{name}": t for name, t in zip(held.names, some, strict=True)}
            elif held.kind == "frozen":
                some = (slot.k.contiguous(), slot.v.contiguous())
            elif held.kind == "grown":
                some = tuple(t[:, :, : slot.length].contiguous() for t in slot.memory)
                for name, t in zip(held.names, some, strict=True):
                    outputs[f"new_{name}"] = t.new_empty(batch, t.shape[1], count, t.shape[3])
            else:
                some = tuple(t.contiguous() for t in slot.held) if held.kind == "fixed" else ()
                outputs |= {f"new_{name}": torch.empty_like(t) for name, t in zip(held.names, some, strict=True)}
            inputs |= zip(held.names, some, strict=True)
        return outputs

    def _reach(self, inputs: dict[str, Tensor], left: int, length: int, count: int, flow: Flow) -> None:
        batch = len(inputs["ids"])
        inputs[f"ends{left}"] = torch.full((batch,), length - 1, dtype=torch.int32)
        inputs[f"total{left}"] = torch.tensor([length], dtype=torch.int32)
        padding = torch.zeros(batch, 1, count, length)
        if flow.keep is not None:
            padding.masked_fill_(~flow.keep[:, None, None, flow.keep.shape[1] - length :], FLOOR)
        inputs[f"padding{left}"] = padding

    def _advance(self, outputs: dict[str, Tensor], state: State, count: int) -> None:
        for held in self.plan.held:
            slot: Any = state.slots[held.mixer]
            new = [outputs[f"new_{name}"] for name in held.names] if held.kind in ("grown", "fixed") else []
            if held.kind == "bound":
                slot.length += count
            elif held.kind == "grown":
                slot.append(*new)
            elif held.kind == "fixed":
                slot.put(count, *new)
