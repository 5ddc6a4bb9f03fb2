"""Memory and computation of a training step, estimated before the first one without allocating anything.

A copy of the model whose tensors have shapes and no content (PyTorch's fake tensors) does one step, and the bytes of
all live tensors are counted: weights, gradients, optimiser state, activations, temporaries. So the estimate is that of
the kernels of this device, for any page and any change of its tree. Allocations inside a kernel are not counted, nor is
fragmentation: glibc aligns tensors to 64 bytes, and a process can need up to two thirds more than this estimate. A dry
run of two steps that change nothing shows it. A small model does that step with content: the counts are the same, and
it takes less time than to follow shapes.

Operations are counted in the same pass (`core.operations`). `torch.distributed._tools.MemTracker` counts memory in a
similar way, but is private.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.machine import matmul_rate
from anyformer.core.operations import LiveTensors
from anyformer.core.recompute import recompute, recomputing
from anyformer.data.batches import Batch
from anyformer.train import master_weights, optim, precision, random_state
from anyformer.train.objectives import Contrastive, plain
from anyformer.train.progress import Screen
from anyformer.train.settings import Settings
from anyformer.train.step_loss import Loss

GB = 1e9
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DRY_RUN_FROM = 100  # a run of so many steps begins with a dry run
SMALL = 32e6  # bytes of weights, up to which a step with content takes less time than one without
FEW = 1 << 20  # elements of a batch times its longest axis, up to which that step is small whatever the attention


@dataclass(frozen=True)
class Estimate:
    """Memory of a step in bytes, and its operations.

    Attributes:
        weights: parameters and buffers. `gradients`: of the trained ones. `optimizer`: its state, and the running mean
            of the weights where there is one. `activations`: tensors kept for the backward pass.
        peak: the most that lives at one time.
        flops: floating-point operations of the matrix products and attention of a step.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    flops: int

    def __str__(self) -> str:
        named = {"weights": self.weights, "gradients": self.gradients, "optimiser": self.optimizer}
        parts = ", ".join(f"{k} {v / GB:.2f}" for k, v in {**named, "activations": self.activations}.items())
        return f"{self.peak / GB:.2f} GB at most ({parts})"


class NotEstimable(ValueError):
    """The memory of a model depends on the content of its tensors."""


def estimate(model: nn.Module, batch: Batch, objective: Any, settings: Settings) -> Estimate:
    """Memory of a step with such batches; model and random generators stay as they are.

    Raises:
        NotEstimable: if a model that is not small looks at the content of its tensors (a router's choice), which cannot
            be followed.
    """
    device = next(model.parameters()).device
    if small(model, batch):
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            batch = {name: value.to(device) for name, value in batch.items()}
            return _step(copy.deepcopy(model).train(), batch, objective, settings, device)

    from torch._subclasses import fake_tensor
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        with FakeCopyMode(mode):
            fake = copy.deepcopy(model)  # type: ignore[no-untyped-call]
        fakes = {name: mode.from_tensor(value).to(device) for name, value in batch.items()}
        try:
            return _step(fake.train(), fakes, objective, settings, device)
        except (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException) as error:
            raise NotEstimable(
                f"memory cannot be predicted: the model depends on the content of a tensor ({error})"
            ) from None


def small(model: nn.Module, batch: Batch) -> bool:
    """True for a model and a batch whose step is tried with content, which takes the memory that it is to foretell."""
    size = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    return size <= SMALL and sum(t.numel() * max(t.shape, default=1) for t in batch.values()) <= FEW


def _step(model: nn.Module, batch: Batch, objective: Any, settings: Settings, device: torch.device) -> Estimate:
    recompute(model, *settings.activation_checkpointing)
    master_weights.to_float32(model, settings.precision)
    trained = [p for p in model.parameters() if p.requires_grad]
    live = LiveTensors()
    for tensor in (*model.parameters(), *model.buffers()):
        live.add(tensor)
    weights = live.now
    optimizer = optim.make(model, settings)
    with live:
        loss = _loss(Loss(model, objective, settings), batch)
        activations = live.now - weights
        loss.backward()
        del loss
        gradients, most = sum(p.nbytes for p in trained), live.most
        held = live.now
        optimizer.step()
        state = live.now - held
    # The state is there from the second step on, and the gradients during all of the later of accumulated batches.
    state += sum(p.nbytes for p in trained) if settings.ema else 0
    through = most + state + (gradients if settings.accumulate > 1 else 0)
    peak = max(through, weights + gradients + state)
    return Estimate(weights, gradients, state, activations, peak, live.flops * settings.accumulate)


def _loss(criterion: Loss, batch: Batch) -> Tensor:
    """The loss of a batch, in the precision of the run."""
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    loss: Tensor = criterion(inputs, labels, _one(criterion.objective, labels), 1.0)
    return loss


def _one(objective: Any, labels: Tensor) -> Tensor | float:
    """A count of 1, for each kind of labels where an objective has several."""
    own = getattr(objective, "counted", None)
    return 1.0 if own is None else torch.ones_like(own(labels), dtype=torch.float32)


@dataclass(frozen=True)
class DryRun:
    """Time and memory of two steps that changed nothing.

    Attributes:
        first, seconds: of the first and the second one; the first one compiles.
        bytes: the peak of the process, fragmentation included; on a GPU, of allocated memory. None if the system does
            not report it.
    """

    first: float
    seconds: float
    bytes: int | None


def dry_run(model: nn.Module, batch: Batch, objective: Any, settings: Settings) -> DryRun:
    """Two steps with one batch, with learning rate 0 and gradients of 0 for the update, so that no weight changes.

    Gradients and the optimiser's state are thrown away and the random generators put back: the run is the same with and
    without it. `Estimate.peak` counts live tensors; this measures the process.
    """
    states, training = random_state.random_states(), model.training
    with contextlib.ExitStack() as undo:
        undo.callback(master_weights.restore_types, model, master_weights.to_float32(model, settings.precision))
        undo.enter_context(recomputing(model, *settings.activation_checkpointing))
        done = _two_steps(model, batch, objective, settings)
    model.train(training)
    random_state.restore_random(states)
    return done


def _two_steps(model: nn.Module, batch: Batch, objective: Any, settings: Settings) -> DryRun:
    trained = [p for p in model.parameters() if p.requires_grad]
    device = next(model.parameters()).device
    optimizer, criterion = optim.make(model, settings), Loss(model, objective, settings)
    if settings.compile:
        criterion.run = precision.compiled(criterion.run, device)
    optimizer.rate(0.0)
    model.train()
    known, seconds = _begin(device), list[float]()
    for _ in range(2):
        began = time.perf_counter()
        for _ in range(settings.accumulate):
            loss = _loss(criterion, {name: value.to(device) for name, value in batch.items()})
            loss.backward()
        for p in trained:
            if p.grad is not None:
                p.grad.zero_()
        float(torch.nn.utils.clip_grad_norm_(trained, settings.grad_clip, foreach=True))  # a GPU is done
        del loss
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return DryRun(seconds[0], seconds[1], _most(device) if known else None)


def _begin(device: torch.device) -> bool:
    """From now on, `_most` counts anew; False where it cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with contextlib.suppress(OSError):  # no such file, or not allowed
            Path("/proc/self/clear_refs").write_text("5")
            return True
    return device.type == "cuda"


def _most(device: torch.device) -> int:
    """The most bytes that the process held on the device since `_begin`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def advice(
    model: nn.Module, batch: Batch, objective: Any, settings: Settings, room: int | None
) -> tuple[Estimate, str]:
    """The estimate, and advice if it is more than `room` bytes, else ""; each change is estimated too."""
    needed = estimate(model, batch, objective, settings)
    if room is None or needed.peak <= room:
        return needed, ""
    rows = len(batch["labels"])
    changes: dict[str, tuple[Batch, Settings]] = {}
    if not settings.activation_checkpointing:
        changes["activation_checkpointing ['blocks.*']"] = (
            batch,
            dataclasses.replace(settings, activation_checkpointing=("**.blocks.*",)),
        )
    if settings.precision == "fp32":
        changes["precision bf16"] = batch, dataclasses.replace(settings, precision="bf16")
    pairs = isinstance(plain(objective), Contrastive)
    each = 2 if pairs else 1  # rows per example of `batch`
    for part in (2, 4, 8, 16):
        if count := rows // each // part:
            fewer = {name: value[: count * each] for name, value in batch.items()}
            more = dataclasses.replace(settings, accumulate=settings.accumulate * part)
            if pairs:  # accumulated batches do not see each other
                changes[f"batch {count}, with fewer negatives"] = fewer, settings
            else:
                changes[f"batch {count} and accumulate {more.accumulate}"] = fewer, more
    peaks = {name: estimate(model, b, objective, s).peak for name, (b, s) in changes.items()}
    fits = [name for name, peak in peaks.items() if peak <= room]
    list_ = ", ".join(f"{name}: {peak / GB:.2f} GB" for name, peak in peaks.items())
    summary = f"that fits with {fits[0]}" if fits else "none of these alone is enough: use a smaller model"
    return needed, (
        f"a step needs {needed}, and {room / GB:.2f} GB are free; {summary} ({list_}). memory=… sets another limit"
    )


def room(device: torch.device) -> int | None:
    """Free bytes on the device; None if the system does not report them."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    file = Path("/proc/meminfo")
    if device.type != "cpu" or not file.exists():
        return None
    return 1024 * next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("MemAvail"))


def check_memory(
    screen: Screen, model: nn.Module, batch: Batch, objective: Any, settings: Settings, memory: float | None
) -> None:
    """Shows the memory of the run before its first step, and gives the display its reference values.

    Args:
        memory: GB that the run may use; by default the free memory.

    Raises:
        ValueError: if it will not fit, with advice.
    """
    device = next(model.parameters()).device
    free = room(device) if memory is None else int(memory * GB)
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    screen.memory = lambda: resident(device)
    if screen.console.quiet and memory is None and small(model, batch):
        return  # nobody reads the estimate, and what would not fit would not be tried either
    try:
        needed, problem = advice(model, batch, objective, settings, held + free if free is not None else None)
    except NotEstimable as error:
        screen.message(str(error))
        return
    if problem:
        raise ValueError(problem)
    summary = f"a step needs {needed}"
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if (settings.steps >= DRY_RUN_FROM or settings.compile) and alone and not screen.console.quiet:  # for the eye alone
        done = dry_run(model, batch, objective, settings)
        if settings.compile:
            screen.message(gain(done, dry_run(model, batch, objective, dataclasses.replace(settings, compile=False))))
        summary += f" and about {done.seconds:.2g} s; all of them {done.seconds * settings.steps / 60:.0f} min"
        if done.bytes is not None:
            summary += f". The process takes {done.bytes / GB:.2f} GB in all"
        screen.peak = matmul_rate(device, PRECISIONS[settings.precision])
    screen.message(summary)
    screen.flops = float(needed.flops)


def gain(compiled: DryRun, plain: DryRun) -> str:
    """The gain of compiling here, from steps both ways."""
    times = plain.seconds / compiled.seconds
    told = f"compiled, a step takes {compiled.seconds:.2g} s, as it is {plain.seconds:.2g} s: {times:.2f} times as fast"
    return told + (f"; compiling took {compiled.first:.0f} s" if times > 1 else "; compile=False is faster here")


def resident(device: torch.device) -> int | None:
    """Bytes that the process holds on the device now; None if the system does not report them."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    file = Path("/proc/self/statm")
    if device.type != "cpu" or not file.exists():
        return None
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
