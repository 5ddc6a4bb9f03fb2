"""Counts of a model before there is one: parameters, operations, bytes, and the least time and energy of a pass.

Nothing is made but shapes (`core.operations.shapes_of`): a model of 70 billion parameters is counted in the memory of a
small one. What is counted is the pass that runs on a CPU, every product of it; a masked pair of attention counts as any
other, and experts share the tokens evenly.

    count(recipe, tokens=2048, batch=8, train=True)

A decoded token reads every weight of its step once, of a table the rows of its ids alone, and the whole state.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core import pages
from anyformer.core.operations import LiveTensors, part_of, shapes_of
from anyformer.core.recipe import Recipe
from anyformer.core.recompute import recompute
from anyformer.edge.machine import Machine
from anyformer.parts.embeddings import Table
from anyformer.parts.moe import ExpertChoice, MoE

USUAL = 1024  # tokens of a text without a longest one
PICOJOULES = {torch.float32: 2.3, torch.float16: 0.75, torch.bfloat16: 0.75}  # an operation, half of multiply and add
PICOJOULES_A_BYTE = 160.0  # read from DRAM
ADAM = 2  # numbers that the optimiser keeps for each parameter, in float32


@dataclass(frozen=True)
class PartCount:
    """One part of the model, its layers summed. `active`: parameters that one token meets."""

    parameters: int
    active: int
    forward: int
    backward: int


@dataclass(frozen=True)
class Decoding:
    """One step of decoding, of `batch` tokens. `weights`: bytes of the weights that it reads. `state`: bytes of the
    state, which it reads."""

    flops: int
    weights: int
    state: int


@dataclass(frozen=True)
class Count:
    """The result of `count`. Sizes are in bytes, operations are those of the whole batch.

    Attributes:
        tokens: of each input, by its name. embeddings: parameters of tables that ids look up.
        attention: of `forward`, scores and sums of attention. A causal mask makes half of them useless.
        backward: what a training step adds to `forward`; what a kernel computes again counts again.
        gradients, optimizer, activations, peak: of a training step; 0 unless asked for. `activations`
            live between forward and backward; `peak` is the most that lives at one time, optimiser included.
        state: of decoding behind the tokens; None if the model does not decode.
    """

    batch: int
    tokens: dict[str, tuple[int, ...]]
    dtype: str
    parameters: int
    active: int
    embeddings: int
    parts: dict[str, PartCount]
    forward: int
    attention: int
    backward: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    state: int | None
    decoding: Decoding | None

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, for machines."""
        return asdict(self)

    def least(self, machine: Machine) -> dict[str, float]:
        """The least seconds of each pass on a machine: operations at its fastest product, or bytes at its fastest read,
        whichever takes longer (Williams et al., 2009: the roofline)."""
        passes = {"forward": max(self.forward / machine.flops, self.weights / machine.bytes)}
        if self.backward:
            moved = 3 * self.weights + 3 * self.optimizer  # weights twice, gradients; the state is read and written
            passes["training step"] = max((self.forward + self.backward) / machine.flops, moved / machine.bytes)
        if self.decoding is not None:
            moved = self.decoding.weights + self.decoding.state
            passes["decoded token"] = max(self.decoding.flops / machine.flops, moved / machine.bytes)
        return passes

    def energy(self) -> dict[str, float]:
        """An estimate of the least joules of each pass: operations x pJ + bytes x pJ, of arithmetic and memory alone,
        at 45 nm (Horowitz, 2014, "Computing's energy problem"). It is no measurement of any machine."""
        each = PICOJOULES[getattr(torch, self.dtype)]
        passes = {"forward": self.forward * each + self.weights * PICOJOULES_A_BYTE}
        if self.backward:
            moved = 3 * self.weights + 3 * self.optimizer
            passes["training step"] = (self.forward + self.backward) * each + moved * PICOJOULES_A_BYTE
        if self.decoding is not None:
            moved = self.decoding.weights + self.decoding.state
            passes["decoded token"] = self.decoding.flops * each + moved * PICOJOULES_A_BYTE
        return {name: value * 1e-12 for name, value in passes.items()}


def count(
    recipe: Recipe[Any],
    tokens: int | None = None,
    batch: int = 1,
    train: bool = False,
    recomputed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Count:
    """Counts a model.

    Args:
        recipe: of the model.
        tokens: of every text; by default its longest, or 1024. Pictures and sounds have their usual sizes.
        batch: rows.
        train: also the backward pass, and the memory of a step with AdamW.
        recomputed: training recomputes the activations of the blocks (`core.recompute`).
        dtype: of the weights.

    Raises:
        ValueError: for fewer than one token or row, a type of numbers that is none of floats, a text that is longer
            than the model's longest, or blocks that there are not.
    """
    for name, value in (("tokens", tokens), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if dtype not in PICOJOULES:
        raise ValueError(f"dtype must be float32, float16 or bfloat16, got {str(dtype)[6:]}")
    sizes, example = _example(pages.empty(recipe), batch, tokens)
    with shapes_of(recipe, dtype) as (model, fake):
        inputs = {n: fake(v.to(dtype) if v.is_floating_point() else v) for n, v in example.items()}
        embeddings = {id(p): p.numel() for p in _tables(model)}
        active = _active(model)
        weights = sum(t.nbytes for t in _own(model))
        forward = _forward(model, inputs)
        state, decoding = _decoding(model, inputs, batch, sizes)
        back, kept, peak, gradients, optimizer = Counter[str](), 0, 0, 0, 0
        if train:
            back, kept, peak, gradients, optimizer = _training(model, inputs, recomputed, forward.parts)
        return Count(
            batch=batch,
            tokens=sizes,
            dtype=str(dtype)[6:],
            parameters=sum(p.numel() for p in model.parameters()),
            active=sum(active.values()),
            embeddings=sum(embeddings.values()),
            parts=_parts(model, active, forward.parts, back),
            forward=forward.flops,
            attention=forward.pairs,
            backward=sum(back.values()),
            weights=weights,
            gradients=gradients,
            optimizer=optimizer,
            activations=kept,
            peak=peak,
            state=state,
            decoding=decoding,
        )


def _example(model: Any, batch: int, tokens: int | None) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """Inputs of this size, and the size of each main one."""
    made, sizes, noise = dict[str, Tensor](), dict[str, tuple[int, ...]](), torch.Generator().manual_seed(0)
    for entrance in model.entrances():
        size = entrance.front.sizes()[0]
        if entrance.front.vocab is not None and len(size) == 1:
            longest = model.longest(entrance)
            size = ((USUAL if longest is None else min(longest, USUAL)) if tokens is None else tokens,)
        tensors = entrance.front.example(batch, size, noise)
        made |= {entrance.prefix + name: value for name, value in tensors.items()}
        sizes[entrance.prefix + entrance.front.main] = size
    usual = model.example(batch, {}, noise)  # what a skeleton adds beside its entrances
    made |= {name: value for name, value in usual.items() if name not in made}
    return sizes, model.complete(made)


def _own(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _tables(model: nn.Module) -> list[Tensor]:
    """The weights of the tables of tokens."""
    return list({id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding | Table)}.values())


def _active(model: nn.Module) -> dict[str, int]:
    """The parameters that one token meets, by name: of the experts their share."""
    share: dict[str, float] = {}
    for path, part in model.named_modules():
        if isinstance(part, MoE):
            router = part.router
            each = router.factor if isinstance(router, ExpertChoice) else router.pairs(1, 1)
            share |= {
                f"{path}.experts.{n}": min(1.0, each / router.experts) for n, _ in part.experts.named_parameters()
            }
    return {name: round(p.numel() * share.get(name, 1.0)) for name, p in model.named_parameters()}


class _Reads(LiveTensors):
    """Counts also the weights that products read: the bytes of each once, of a table the rows alone."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.stored = {t.untyped_storage(): t.nbytes for t in _own(model)}
        self.read: dict[Any, int] = {}
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if not func.is_view:
            for value in torch.utils._pytree.tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and (size := self.stored.get(value.untyped_storage())) is not None:
                    if func._overloadpacket in (torch.ops.aten.embedding, torch.ops.aten.index):
                        self.rows += out.nbytes
                    else:
                        self.read[value.untyped_storage()] = size
        return out

    @property
    def weights(self) -> int:
        """Bytes of weights read."""
        return sum(self.read.values()) + self.rows


@torch.no_grad()
def _forward(model: Any, inputs: Mapping[str, Tensor]) -> LiveTensors:
    with LiveTensors(model.eval()) as live:
        model(**inputs)
    return live


@torch.no_grad()
def _decoding(
    model: Any, inputs: Mapping[str, Tensor], batch: int, sizes: Mapping[str, tuple[int, ...]]
) -> tuple[int | None, Decoding | None]:
    """The bytes of the state behind the tokens, and the step of the last of them."""
    if not model.decodes:
        return None, None
    entrance = model.entrances()[-1 if model.target else 0]
    main = entrance.prefix + entrance.front.main
    length = math.prod(sizes.get(main, (0,)))
    state = model.start(batch, length)
    model(**inputs, state=state)
    size: int = state.bytes()
    if inputs[main].shape[1] < 2:
        return size, None
    reads = model.inputs()
    axis, long = reads[main].axes[:1], inputs[main].shape[1]
    along = [
        n for n, v in inputs.items() if reads[n].axes[:1] == axis and v.shape[1] == long and n.startswith(model.target)
    ]
    state = model.start(batch, length)
    model(**{n: v[:, :-1] if n in along else v for n, v in inputs.items()}, state=state)
    last = {n: inputs[n][:, -1:] for n in along if n == main or reads[n].required}
    with _Reads(model) as live:
        model(**last, state=state)
    return size, Decoding(live.flops, live.weights, state.bytes())


def _training(
    model: Any, inputs: Mapping[str, Tensor], recomputed: bool, forward: Mapping[str, int]
) -> tuple[Counter[str], int, int, int, int]:
    """The operations of a training step by part, without those of `forward`, and the bytes that it needs: activations,
    peak, gradients, optimiser."""
    if recomputed:
        recompute(model, "**.blocks.*")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = ADAM * 4 * sum(p.numel() for p in trained)
    weights = sum(t.nbytes for t in _own(model))
    with LiveTensors(model) as live:
        for tensor in _own(model):
            live.add(tensor)
        out = model(**inputs)
        loss: Any = 0.0
        for value in _values(out):
            loss = loss + (value.float().log_softmax(-1) if value is out.logits else value.float()).sum()
        activations = live.now - weights
        del out, value
        loss.backward()
    live.parts.subtract(forward)
    back = Counter({name: n for name, n in live.parts.items() if n})
    return back, activations, live.most + optimizer, sum(p.nbytes for p in trained), optimizer


def _values(out: Any) -> list[Tensor]:
    """The floating outputs that training could use, each once."""
    every = [
        out.logits,
        out.hidden,
        out.pooled,
        out.memory,
        *out.heads.values(),
        *out.aux.values(),
        *out.beside.values(),
    ]
    return list({id(v): v for v in every if v is not None and v.is_floating_point() and v.requires_grad}.values())


def _parts(
    model: nn.Module, active: Mapping[str, int], forward: Mapping[str, int], backward: Mapping[str, int]
) -> dict[str, PartCount]:
    """The counts of each part, in the order of the model."""
    table: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        row = table.setdefault(part_of(name), [0, 0, 0, 0])
        row[0] += parameter.numel()
        row[1] += active[name]
    for at, counts in ((2, forward), (3, backward)):
        for path, number in counts.items():
            table.setdefault(part_of(f"{path}.weight"), [0, 0, 0, 0])[at] += number
    return {name: PartCount(*row) for name, row in table.items()}
