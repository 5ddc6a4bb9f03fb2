"""GPUs of data sheets: what one can do at most."""

from __future__ import annotations

import re
from dataclasses import dataclass

from anyformer.core.value import nearest


@dataclass(frozen=True)
class GPU:
    """One kind.

    Attributes:
        flops: operations a second of dense products in bf16 (fp16 where there is no bf16), sums in float32.
        memory: bytes. link: bytes a second to the others of its machine, in each direction. network: to other machines,
            as usual. node: GPUs in a machine. watts: of the board at most.
    """

    name: str
    flops: float
    memory: float
    link: float
    network: float
    node: int
    watts: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("v100", 125e12, 32e9, 150e9, 12.5e9, 8, 300),
        GPU("a100-40g", 312e12, 40e9, 300e9, 25e9, 8, 400),
        GPU("a100", 312e12, 80e9, 300e9, 25e9, 8, 400),
        GPU("h100", 989e12, 80e9, 450e9, 50e9, 8, 700),
        GPU("h200", 989e12, 141e9, 450e9, 50e9, 8, 700),
        GPU("b200", 2250e12, 180e9, 900e9, 50e9, 8, 1000),
        GPU("mi300x", 1307e12, 192e9, 448e9, 50e9, 8, 750),
        GPU("l40s", 362e12, 48e9, 32e9, 25e9, 8, 350),
        GPU("rtx4090", 165e12, 24e9, 32e9, 12.5e9, 8, 450),
    )
}


def parse(text: str) -> tuple[int, GPU]:
    """64xh100 is 64 of the kind h100.

    Raises:
        ValueError: for another form, no GPU at all, or a kind that is not known, with those that are.
    """
    found = re.fullmatch(r"(\d+)\s*[x*]\s*([\w.-]+)", text.strip().lower())
    if found is None or not int(found[1]):
        raise ValueError(f"gpus: expected a number and a kind, such as 64xh100, got {text!r}")
    if found[2] not in GPUS:
        raise ValueError(f"gpus: no kind {found[2]!r}{nearest(found[2], [*GPUS])}; known are {', '.join(GPUS)}")
    return int(found[1]), GPUS[found[2]]
