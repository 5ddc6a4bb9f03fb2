"""Layouts of a training run on many GPUs: the memory of each, the time of a step, and what the run needs in all.

    GPUs = data x tensor x pipeline x context
    step = (m + p - 1) t + exposed communication,   t = micro-batch's operations / (peak x utilisation)

m micro-batches in p stages, forward and backward in turn: p - 1 of m + p - 1 places are empty (Narayanan et al., 2021;
arXiv:2104.04473). ZeRO's stages 1 to 3 (arXiv:1910.02054) divide moments, gradients and weights among the processes
that share data; stage 3 is FSDP. Activations divide by tensor and context (sequence parallelism, arXiv:2205.05198).
Tensor parallelism splits what `train.distributed.tensor` splits; experts divide among processes of data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from anyformer.scale.gpus import GPU, GPUS
from anyformer.scale.shape import Shape
from anyformer.train.memory import GB, Estimate

BF16 = 2  # bytes
FEWEST = 512  # tokens of a row in one process of context parallelism
MICRO = (1, 2, 4, 8, 16)  # rows of a micro-batch
MORE = (*range(2, 17), *(1 << i for i in range(5, 13)))  # times as many GPUs, of which the least that fits is named


@dataclass(frozen=True)
class Assumptions:
    """The assumptions of a plan. Each can be set.

    Attributes:
        utilisation: of the GPU's peak, by products while they run; communication and empty places come on top.
        overlap: share of communication that runs beside computation, where it can (gradients, weights, keys).
        reserve: share of a GPU's memory for fragmentation, buffers and the libraries.
        batch: tokens of a step. network: GB a second of a GPU to other machines.
        watts: of a GPU with its share of the host. pue: energy of the building to that of its computers. carbon: kg CO2
            of a kWh.
    """

    utilisation: float
    overlap: float
    reserve: float
    batch: float
    network: float
    watts: float
    pue: float
    carbon: float


WHY = {  # name -> (least, most, the same as factors?, why the default)
    "utilisation": (0.35, 0.6, False, "large bf16 products reach 40 to 60 % of a data sheet"),
    "overlap": (0.0, 1.0, False, "some collectives wait for each other"),
    "reserve": (0.05, 0.2, False, "fragmentation, NCCL and CUDA"),
    "batch": (0.5, 2.0, True, "4 million tokens, as runs of 10 to 200 B parameters use; fewer for short runs"),
    "network": (0.5, 2.0, True, "what machines of this GPU usually have"),
    "watts": (0.7, 1.3, True, "the board's limit, and a quarter for the host"),
    "pue": (1.05, 1.6, False, "a hyperscale building (Patterson et al., 2021: 1.10)"),
    "carbon": (0.02, 0.8, False, "the mean of the United States (Patterson et al., 2021: 0.429)"),
}


def defaults(gpu: GPU, tokens: float) -> dict[str, float]:
    """The assumptions that nobody set."""
    batch = min(4e6, max(5e5, tokens / 5000))
    watts = 330.0 if gpu.name == "v100" else 1.25 * gpu.watts  # 330 W was measured, with the host (Patterson et al.)
    return {
        "utilisation": 0.5, "overlap": 0.7, "reserve": 0.1, "batch": batch, "network": gpu.network / GB,
        "watts": watts, "pue": 1.1, "carbon": 0.429,
    }  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """One layout. `expert` of `data` processes share experts; `zero` is a stage, 3 = FSDP; `rows` of a micro-batch,
    `micro` of these a step and process. `memory` is of the fullest GPU. `seconds`: of a step, by cause."""

    data: int
    tensor: int
    pipeline: int
    context: int
    expert: int
    zero: int
    recompute: bool
    rows: int
    micro: int
    memory: Estimate
    seconds: dict[str, float]

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    @property
    def exposed(self) -> float:
        """Seconds of a step in which communication stops computation."""
        return self.step - self.seconds["compute"] - self.seconds["bubble"]

    def days(self, shape: Shape, tokens: float) -> float:
        """Of a run."""
        return tokens / (self.micro * self.rows * self.data * shape.context) * self.step / 86400

    def __str__(self) -> str:
        named = {"data": self.data, "tensor": self.tensor, "pipeline": self.pipeline, "context": self.context}
        axes = [f"{name} {size}" for name, size in {**named, "expert": self.expert}.items() if size > 1]
        sharded = {0: "", 1: "ZeRO-1", 2: "ZeRO-2", 3: "FSDP"}[self.zero if self.data * self.context > 1 else 0]
        return ", ".join([*axes, *filter(None, [sharded, "recompute" if self.recompute else ""])]) or "one GPU"


def layouts(shape: Shape, gpus: int, gpu: GPU, given: Assumptions) -> list[Layout]:
    """All layouts, whether they fit or not; those without a row for each process are none."""
    rows = int(given.batch / shape.context)
    return [
        layout
        for tensor, pipeline, context, expert in _axes(shape, gpus, gpu)
        for micro_rows in MICRO
        if (data := gpus // (tensor * pipeline * context)) * micro_rows <= rows
        for zero in (range(4) if data * context > 1 else (0,))
        for again in (False, True)
        for layout in [_layout(shape, gpu, given, (data, tensor, pipeline, context, expert), zero, again, micro_rows)]
    ]


def fits(layout: Layout, gpu: GPU, given: Assumptions) -> bool:
    """True if there is memory for it, with the reserve."""
    return layout.memory.peak <= gpu.memory * (1 - given.reserve)


def best(shape: Shape, gpus: int, gpu: GPU, given: Assumptions, count: int = 5) -> list[Layout]:
    """The quickest layouts that fit, of each set of axes the best one.

    Raises:
        ValueError: if none fits, with the leanest layout, and the nearest numbers and kinds of GPUs that do.
    """
    every = layouts(shape, gpus, gpu, given)
    if not every:
        rows = int(given.batch / shape.context)
        raise ValueError(
            f"gpus: {gpus} cannot share a batch of {rows} rows of {shape.context} tokens, however a row is split; take "
            f"fewer GPUs, or a batch of at least {gpus * shape.context / 1e6:.3g}m tokens"
        )
    speed = [(e.step / (e.micro * e.rows * e.data), e) for e in every if fits(e, gpu, given)]
    if not speed:
        raise ValueError(_refusal(shape, gpus, gpu, given, min(every, key=lambda e: e.memory.peak)))
    chosen: dict[Any, Layout] = {}
    for _, layout in sorted(speed, key=lambda pair: (pair[0], pair[1].memory.peak)):
        axes = (layout.data, layout.tensor, layout.pipeline, layout.context, layout.expert)
        chosen.setdefault(axes, layout)
    return list(chosen.values())[:count]


def _refusal(shape: Shape, gpus: int, gpu: GPU, given: Assumptions, lean: Layout) -> str:
    def any_fits(number: int, kind: GPU) -> bool:
        return any(fits(e, kind, given) for e in layouts(shape, number, kind, given))

    more = next((f"{gpus * n}x{gpu.name}" for n in MORE if any_fits(gpus * n, gpu)), "")
    kinds = [f"{gpus}x{kind.name}" for kind in GPUS.values() if kind.memory > gpu.memory and any_fits(gpus, kind)]
    nearest = " or ".join([*filter(None, [more]), *kinds[:2]])
    return (
        f"no layout fits: the leanest on {gpus}x{gpu.name} ({lean}) needs {lean.memory}, and a GPU has "
        f"{gpu.memory * (1 - given.reserve) / GB:.1f} GB, {given.reserve:.0%} of {gpu.memory / GB:.0f} kept free; "
        + (f"the nearest that fits: {nearest}" if nearest else "no number and no kind of GPU that is known fits")
    )


def _axes(shape: Shape, gpus: int, gpu: GPU) -> Iterator[tuple[int, int, int, int]]:
    """tensor, pipeline, context and expert that divide heads, blocks, rows, experts and GPUs."""
    powers = [1 << i for i in range(18)]
    divides = [n for n in powers if n <= gpu.node and shape.divisor % n == 0 and gpus % n == 0]
    for tensor in divides if shape.split else [1]:
        for context in (n for n in powers if n == 1 or (shape.keys and shape.context / n >= FEWEST)):
            left, rest = divmod(gpus, tensor * context)
            for pipeline in range(1, shape.depth + 1) if not rest else ():
                if left % pipeline:
                    continue
                data = left // pipeline
                for expert in range(1, max(1, shape.kinds) + 1):
                    if max(1, shape.kinds) % expert == 0 and data % expert == 0:
                        yield tensor, pipeline, context, expert


def _layout(s: Shape, gpu: GPU, given: Assumptions, axes: tuple[int, ...], zero: int, again: bool, rows: int) -> Layout:
    data, tensor, pipeline, context, expert = axes
    micro = int(given.batch / s.context) // (data * rows)
    stage = -(-s.depth // pipeline) / s.depth  # share of the blocks in the fullest stage
    ends = s.tables + s.outside if pipeline == 1 else max(s.tables, s.outside)  # tables first, head last
    dense, routed = stage * (s.split / tensor + s.blocks) + ends, stage * s.experts / (tensor * expert)
    group = data * context
    parts = [(dense, group), (routed, group // expert)]

    def held(each: float, from_stage: int) -> float:
        return sum(n * each / (share if zero >= from_stage else 1) for n, share in parts)

    # of FSDP two blocks are whole at a time: the one that computes, and the next
    gathered = 2 * (s.split / tensor + s.blocks + s.experts / (tensor * expert)) / s.depth * s.weights * (zero == 3)
    one = s.kept[0] / s.depth if again else 0.0  # a block that is computed again
    kept = rows * (s.kept[again] * stage * min(micro, pipeline) + one) / (tensor * context)
    sizes = held(s.weights, 3) + gathered, held(s.gradients, 2), held(s.optimizer, 1), kept
    flops = s.flops[again] * micro * rows * s.context * stage / (tensor * context)
    weights, gradients, optimizer, activations = map(int, sizes)
    memory = Estimate(weights, gradients, optimizer, activations, int(sum(sizes)), int(flops))
    seconds = _seconds(s, gpu, given, axes, zero, again, rows, micro, memory.flops, dense + routed)
    return Layout(data, tensor, pipeline, context, expert, zero, again, rows, micro, memory, seconds)


def _seconds(
    s: Shape, gpu: GPU, given: Assumptions, axes: tuple[int, ...], zero: int, again: bool, rows: int, micro: int,
    flops: float, local: float,
) -> dict[str, float]:  # fmt: skip
    """Of a step, by cause. A ring of n sends (n - 1) / n of the bytes in each of its two halves."""
    data, tensor, pipeline, context, expert = axes
    compute = flops / (gpu.flops * given.utilisation)
    places = micro + pipeline - 1
    stage, tokens = -(-s.depth // pipeline), rows * s.context / context  # blocks, and tokens of a micro-batch
    passes = 3 if again else 2  # forward, backward, and forward again

    def bandwidth(processes: int) -> float:
        return gpu.link if processes <= gpu.node else given.network * GB

    def seen(time: float, beside: float) -> float:
        """The part of a communication that is not hidden beside a computation."""
        return max(time * (1 - given.overlap), time - beside)

    made = {"compute": compute, "bubble": compute / micro * (pipeline - 1)}
    ring = (tensor - 1) / tensor
    made["tensor"] = places * stage * passes * 2 * 2 * ring * tokens * s.width * BF16 / gpu.link
    keys = s.keys * stage / s.depth * tokens * (context - 1) / tensor * BF16 * (passes + 1)  # and gradients, backward
    made["context"] = places * seen(keys / bandwidth(tensor * context), compute / micro)
    ahead = 2 * tokens * s.width * BF16 / tensor * (pipeline > 1)
    made["pipeline"] = places * seen(ahead / bandwidth(tensor * context * pipeline), compute / micro)
    routed = s.sent * stage / s.depth * tokens / tensor * BF16 * 2 * passes * (expert - 1) / expert
    made["expert"] = places * routed / bandwidth(tensor * context * expert)
    group = data * context
    once = (group - 1) / group * local * s.weights / bandwidth(min(gpu.node, tensor) * group * pipeline)
    each = compute / micro
    if zero == 3:  # weights forward and backward, gradients, for each micro-batch
        made["data"] = micro * seen(3 * once, each)
    elif zero == 2:  # gradients for each micro-batch, new weights
        made["data"] = micro * seen(once, each * 2 / 3) + seen(once, each / 3)
    else:
        made["data"] = seen(2 * once, each * 2 / 3)  # beside the last backward
    return made


@dataclass(frozen=True)
class Energy:
    """Of a run. kWh of the building, kg of CO2."""

    kwh: float
    carbon: float


def energy(gpus: int, watts: float, days: float, pue: float, carbon: float) -> Energy:
    """kWh = GPUs x W x hours x PUE / 1000; kg CO2 = kWh x kg a kWh (Patterson et al., 2021; arXiv:2104.10350)."""
    kwh = gpus * watts * days * 24 * pue / 1000
    return Energy(kwh, kwh * carbon)
