"""A model in few bits as a Hugging Face directory in GPTQ's layout (`formats.gptq`), which engines of others read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.hub.formats.gptq import BITS, KEY, LAYOUTS, METHOD, holds, words
from anyformer.hub.formats.guard import atomic_write, read_json
from anyformer.hub.formats.safetensors import MODEL, open_weights, write_safetensors
from anyformer.hub.save import hub_for, own_format_because, save
from anyformer.hub.tables.weights import links
from anyformer.parts.quantised import Grid, GridTable, full, unpacked


def save_gptq(model: Any, folder: str | Path) -> int:
    """Writes a new directory; tables of tokens, and what else is no linear layer of the file, are full numbers.

    Args:
        model: its linear layers are in few bits, all in as many and groups as large, with whole zeros.

    Returns:
        The number of matrices in few bits.

    Raises:
        ValueError: naming the path, for a matrix that the layout cannot hold; if no published format has the model, or
            its matrices are no tensors of their own there. OSError.
    """
    folder = Path(folder)
    grids = {p: m for p, m in model.named_modules() if isinstance(m, Grid) and not isinstance(m, GridTable)}
    bits, group = _form(grids)
    plain = full(model)
    if why := own_format_because(plain):
        raise ValueError(f"GPTQ's layout is of published formats, and this model has none: {why}")
    published, ours = hub_for(plain), plain.state_dict()
    assert published is not None
    save(plain, folder)
    names = {link.ours[0]: link.theirs[0] for link in links(published[0].weights(plain.config), ours) if not link.tied}
    there = open_weights(folder)
    tensors = {name: there.get(name).clone() for name in there.names()}
    found = {names.get(f"{path}.weight", ""): grid for path, grid in grids.items()}
    for path in grids:
        same = tensors.get(names.get(f"{path}.weight", ""))
        if same is None or not torch.equal(same, ours[f"{path}.weight"]):
            raise ValueError(f"{path} is no tensor of its own in the published format: GPTQ's layout cannot hold it")
    for name, grid in found.items():
        del tensors[name]
        tensors |= {f"{name.removesuffix('.weight')}.{part}": t for part, t in _layer(grid).items()}
    write_safetensors(folder, tensors, stem=MODEL)
    config = read_json(folder / "config.json")
    config[KEY] = {
        "quant_method": METHOD, "bits": bits, "group_size": group, "desc_act": False, "sym": False,
        "checkpoint_format": next(iter(LAYOUTS)), "lm_head": "head.proj" in grids,
    }  # fmt: skip
    atomic_write(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    return len(grids)


def _form(grids: dict[str, Grid]) -> tuple[int, int]:
    """The bits and the group that all matrices have."""
    if not grids:
        raise ValueError("the model has no linear layer in few bits")
    first = next(iter(grids))
    bits, group = grids[first].bits, grids[first].group
    for path, grid in grids.items():
        if grid.bits not in BITS or (grid.bits, grid.group) != (bits, group):
            raise ValueError(
                f"{path} has {grid.bits} bits in groups of {grid.group}, and {first} {bits} in groups of {group}: the "
                f"layout has one form, of {', '.join(map(str, BITS))} bits; --keep leaves a part as it is"
            )
        if not holds(grid.rows, grid.columns, bits, group):
            raise ValueError(f"{path} is {grid.rows} x {grid.columns}: no whole groups of {group} and words of 32 bits")
        if not grid.whole:
            raise ValueError(f"{path} has zeros that are no whole numbers: --zeros whole makes them so")
    return bits, group


def _layer(grid: Grid) -> dict[str, Tensor]:
    """The four tensors of a matrix."""
    q = unpacked(grid.codes, grid.bits)[:, : grid.columns]  # (O, I)
    zero = grid.zero.view(torch.float16).to(torch.int64) - LAYOUTS["gptq"]  # (O, G), from 1
    return {
        "qweight": words(q, grid.bits).mT.contiguous(), "qzeros": words(zero.mT, grid.bits).contiguous(),
        "scales": grid.scale.view(torch.float16).mT.contiguous(),
        "g_idx": (torch.arange(grid.columns) // grid.group).to(torch.int32),
    }  # fmt: skip
