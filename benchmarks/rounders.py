"""The numbers that the packages hqq and auto-round choose for matrices in few bits, each as its grid: w = (q - z) s.

pip install --no-deps hqq auto-round accelerate py-cpuinfo threadpoolctl
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyformer import hub

FILE, ITERATIONS = "model.safetensors", 200  # steps of auto-round a block, its own default


class Rounded(NamedTuple):
    """A matrix w (O, I) of numbers that its grid has; s and z (O, G) of its groups."""

    weight: Tensor
    scale: Tensor
    zero: Tensor


def hqq(weight: Tensor, bits: int, group: int) -> Rounded:
    """The numbers of the package hqq (Badri and Shaji, 2023)."""
    from hqq.core.quantize import Quantizer

    options = {"group_size": group, "axis": 1, "device": "cpu", "compute_dtype": torch.float32}
    codes, meta = Quantizer.quantize(weight.data, nbits=bits, **options)
    whole = Quantizer.dequantize(codes, meta).reshape(weight.shape)
    scale, zero = (meta[name].float().reshape(len(weight), -1) for name in ("scale", "zero"))
    return Rounded(whole, scale, zero)


def auto_round(model: Any, rows: Sequence[Tensor], bits: int, group: int) -> dict[str, Rounded]:
    """The numbers that auto-round learns for the matrices of the blocks, by path.

    Cheng et al. (2023; arXiv:2309.05516). Transformers' own model is read from the directory that ours is written to,
    and what it has learned is read back.

    Args:
        model: as a published one is, with its tokenizer. rows: ids (1, T), all of one length.
    """
    import transformers
    from auto_round import AutoRound

    with tempfile.TemporaryDirectory() as folder:
        hub.save(model, folder)
        kind = transformers.AutoModelForCausalLM if model.generates else transformers.AutoModel
        theirs = kind.from_pretrained(folder, dtype=torch.float32)
        scheme = {"bits": bits, "group_size": group, "sym": False, "data_type": "int"}
        learned, _ = AutoRound(
            theirs, transformers.AutoTokenizer.from_pretrained(folder), scheme=scheme, iters=ITERATIONS,
            seqlen=rows[0].shape[1], nsamples=len(rows), batch_size=4, device_map="cpu", amp=False,
            dataset=[{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows],
        ).quantize()  # fmt: skip
        grids = {n: m for n, m in learned.named_modules() if isinstance(getattr(m, "zp", None), Tensor)}
        weight, scale, zero = (_back(folder, learned, grids, part) for part in Rounded._fields)
    return {
        path: Rounded(m.weight.data, *(t.get_submodule(path).weight.data[:, ::group] for t in (scale, zero)))
        for path, m in weight.named_modules()
        if isinstance(m, torch.nn.Linear) and path.startswith("blocks.")
    }


def _back(folder: str, learned: Any, grids: dict[str, Any], part: str) -> Any:
    """The directory's model with one number of the grid in the place of each weight."""
    import safetensors.torch

    made, file = {n: t.float() for n, t in learned.state_dict().items()}, Path(folder, FILE)
    for name, layer in grids.items() if part != "weight" else ():
        rows = layer.weight.shape[0]
        number = (layer.scale if part == "scale" else layer.zp).float().reshape(rows, -1)
        made[f"{name}.weight"] = number.repeat_interleave(layer.weight.shape[1] // number.shape[1], 1)
    kept = safetensors.torch.load_file(file)
    safetensors.torch.save_file({n: made[n].contiguous() for n in kept}, file)
    return hub.load(folder)
