"""The limits of this machine: the fastest product and the fastest read, measured once.

The figures are kept by processor, instruction set, threads, type of numbers and version of PyTorch, since each of them
changes them, in `machine.json` of the cache (`$ANYFORMER_CACHE`, `$XDG_CACHE_HOME`). Deleting the file is safe.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from anyformer.core.machine import matmul_rate, processor, read_rate
from anyformer.data import sources
from anyformer.hub.formats.guard import atomic_write, read_json

FILE = "machine.json"


@dataclass(frozen=True)
class Machine:
    """A processor as it was measured.

    Attributes:
        processor, isa: its name, and the instruction set that PyTorch uses. threads: used. dtype: of the product.
        flops: operations a second of a product of two matrices. bytes: read a second from memory.
    """

    processor: str
    isa: str
    threads: int
    dtype: str
    flops: float
    bytes: float

    def __str__(self) -> str:
        return (
            f"{self.processor} ({self.isa}, {self.threads} thread{'s' * (self.threads > 1)}): "
            f"{self.flops / 1e9:.3g} GFLOP/s in {self.dtype}, {self.bytes / 1e9:.3g} GB/s, measured"
        )


def measured(dtype: torch.dtype = torch.float32, again: bool = False) -> Machine:
    """This machine, from the cache or measured now, in about two seconds.

    Args:
        dtype: of the numbers that are multiplied. again: measure whatever the cache holds.
    """
    kind = str(dtype)[6:]
    known = (processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), kind)
    key, file = " | ".join(map(str, (*known, torch.__version__))), sources.cache() / FILE
    kept = _kept(file)
    if not again and key in kept:
        return Machine(*known, float(kept[key]["flops"]), float(kept[key]["bytes"]))
    made = Machine(*known, matmul_rate(torch.device("cpu"), dtype), read_rate())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps({**_kept(file), key: asdict(made)}, indent=1).encode())
    except OSError:  # measured again next time
        pass
    return made


def _kept(file: Path) -> dict[str, Any]:
    """The cache; a damaged one counts as empty."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return {}
    valid = isinstance(content, dict) and all(
        isinstance(v, dict) and all(isinstance(v.get(n), int | float) and v[n] > 0 for n in ("flops", "bytes"))
        for v in content.values()
    )
    return content if valid else {}
