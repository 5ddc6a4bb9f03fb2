"""GPTQ's layout of linear layers in few bits, in safetensors files: whole numbers in 32-bit words.

    W_oi = scales[g, o] (q_io - zero_go)        g = g_idx[i]

| tensor | shape | |
|---|---|---|
| NAME.qweight | (I bits / 32, O) int32 | the codes of an output, the first input in the lowest bits |
| NAME.qzeros | (G, O bits / 32) int32 | zeros, first output lowest; zero - 1 in `gptq`, zero in `gptq_v2` |
| NAME.scales | (G, O) float16 | |
| NAME.g_idx | (I,) int32 | the group of each input |

`quantization_config` of config.json names bits and layout. Read as NAME.weight in float32 (O, I): the maps of pages do
not see it. O outputs, I inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anyformer.hub.formats.guard import refuse
from anyformer.hub.formats.safetensors import Entry, TensorFile

KEY, METHOD = "quantization_config", "gptq"
PARTS = ("qweight", "qzeros", "scales", "g_idx")
BITS, LAYOUTS = (2, 4, 8), {"gptq": 1, "gptq_v2": 0}  # of a word; what a layout takes off the zeros


def is_gptq(config: Mapping[str, Any]) -> bool:
    """True if a config describes this layout."""
    found = config.get(KEY)
    return isinstance(found, dict) and found.get("quant_method") == METHOD


def holds(rows: int, columns: int, bits: int, group: int) -> bool:
    """True if a matrix (O, I) is whole groups and whole words."""
    return not (columns % group or columns % (32 // bits) or rows % (32 // bits))


def without(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the same model in full numbers; any other one as it is."""
    return {k: v for k, v in config.items() if k != KEY} if is_gptq(config) else config


class Gptq(TensorFile):
    """The tensors of a file, with NAME.weight instead of the four of each linear layer.

    Raises:
        FileRefused: naming the tensor, for one that is missing or of another shape or type; for an unknown layout.
    """

    def __init__(self, file: TensorFile, described: Mapping[str, Any]):
        bits: Any = described.get("bits")
        self.path, self.metadata, self.bits = file.path, file.metadata, bits
        layout = described.get("checkpoint_format", "gptq")
        if bits not in BITS:
            raise refuse(self.path, f"{KEY}.bits", f"one of {', '.join(map(str, BITS))}", self.bits)
        if layout not in LAYOUTS:
            raise refuse(self.path, f"{KEY}.checkpoint_format", f"one of {', '.join(LAYOUTS)}", layout)
        self.less = LAYOUTS[layout]
        names = [n.removesuffix(".qweight") for n in file.names() if n.endswith(".qweight")]
        taken = {f"{name}.{part}" for name in names for part in PARTS}
        self.entries = {n: e for n, e in file.entries.items() if n not in taken}
        self.entries |= {f"{name}.weight": self._layer(file, name) for name in names}

    def _layer(self, file: TensorFile, name: str) -> Entry:
        each = 32 // self.bits
        words, outputs = file.shape(f"{name}.qweight")
        inputs, groups = words * each, file.shape(f"{name}.scales")[0]
        wanted = {
            "qweight": (torch.int32, (words, outputs)), "qzeros": (torch.int32, (groups, outputs // each)),
            "scales": (file.dtype(f"{name}.scales"), (groups, outputs)), "g_idx": (torch.int32, (inputs,)),
        }  # fmt: skip
        for part, (dtype, shape) in wanted.items():
            there = (file.dtype(f"{name}.{part}"), file.shape(f"{name}.{part}"))
            if there != (dtype, shape):
                raise refuse(self.path, f"{name}.{part}", f"{dtype} {shape}", there)
        read = partial(_weight, file, name, self.bits, self.less)
        return Entry(torch.float32, (outputs, inputs), read)


def _weight(file: TensorFile, name: str, bits: int, less: int) -> Tensor:
    """W, (O, I) float32."""
    q, zeros, scales, group = (file.get(f"{name}.{part}") for part in PARTS)
    if bool(((group < 0) | (group >= len(scales))).any()):
        raise refuse(file.path, f"{name}.g_idx", f"numbers from 0 to {len(scales) - 1}", group.tolist())
    q, zeros = _fields(q.mT, bits), _fields(zeros, bits) + less  # (O, I), (G, O)
    of = group.long()
    return scales.float()[of].mT * (q - zeros[of].mT)


def _fields(words: Tensor, bits: int) -> Tensor:
    """The numbers of words, (…, n) int32 -> (…, n 32 / bits)."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words.contiguous()[..., None] >> shifts) & (2**bits - 1)).flatten(-2)


def words(numbers: Tensor, bits: int) -> Tensor:
    """The inverse: whole numbers (…, n 32 / bits) as words (…, n) int32."""
    parts = numbers.to(torch.int64).unflatten(-1, (-1, 32 // bits)) << torch.arange(0, 32, bits)
    sums = parts.sum(-1)
    return (sums - (sums >> 31 << 32)).to(torch.int32)  # the highest bit is the sign
