"""The oracle of directories of `diffusers`: its classes, called and saved as those of `transformers` are."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anyformer.contract.check import LeftOut
from anyformer.hub.choose import of_diffusers
from anyformer.hub.formats.safetensors import DIFFUSERS, MODEL, TensorFile, open_weights


def stem(config: Mapping[str, Any]) -> str:
    """The beginning of the names of the weights beside this config."""
    return DIFFUSERS if of_diffusers(config) else MODEL


def weights_in(folder: str | Path, allow_pickle: bool = False) -> TensorFile:
    """The weights of a folder, as its config says."""
    return open_weights(folder, allow_pickle, stem(json.loads((Path(folder) / "config.json").read_text())))


def build(name: str, config: Mapping[str, Any]) -> Any:
    """Their class of that name.

    Raises:
        LeftOut: without diffusers.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise LeftOut("needs diffusers: pip install 'anyformer[dev]'")
    diffusers: Any = importlib.import_module("diffusers")
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    return getattr(diffusers, name)(**config)


def filled(theirs: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with their defaults."""
    parameters = inspect.signature(type(theirs).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(config)


def write(theirs: Any, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Their config and these tensors, one for each name, also where modules are shared (see `shared`)."""
    theirs.save_config(folder)
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    save_file(copies, folder / f"{DIFFUSERS}.safetensors", {"format": "pt"})


def call(theirs: Any, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Their output, with the stream before each block and after the last as `hidden_states`; of two streams, the first
    and then the second one, as one sequence."""
    states, hooks = [], []

    def before(block: nn.Module, args: Any, named: Any) -> None:
        given = [*args, named.get("hidden_states"), named.get("encoder_hidden_states")]
        states.append(torch.cat([x for x in given if isinstance(x, Tensor)][:2], 1))

    def after(block: nn.Module, args: Any, named: Any, out: Any) -> None:
        several = out if isinstance(out, tuple) else (out,)
        states.append(torch.cat([x for x in reversed(several) if x is not None], 1))

    blocks = theirs.transformer_blocks
    hooks += [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    hooks.append(blocks[-1].register_forward_hook(after, with_kwargs=True))
    try:
        return {**theirs(**inputs), "hidden_states": tuple(states)}
    finally:
        for hook in hooks:
            hook.remove()


def shared(model: Any) -> None:
    """DiT's embeddings of time and class become one for all blocks, as in the paper: files hold equal copies."""
    for block in model.transformer_blocks:
        block.norm1.emb = model.transformer_blocks[0].norm1.emb


def unsquared(model: Any) -> None:
    """DiT puts patches together as a square, whatever the picture's shape: it gets a square number of them, and those
    that the picture has are put together here."""
    told, kept = model.forward, dict[str, Tensor]()

    def filled_up(part: nn.Module, inputs: Any, patches: Tensor) -> Tensor:
        kept["patches"] = patches
        side = math.ceil(math.sqrt(patches.shape[1]))
        return nn.functional.pad(patches, (0, 0, 0, side**2 - patches.shape[1]))

    def forward(hidden_states: Tensor, **inputs: Tensor) -> Any:
        out = told(hidden_states, **inputs)
        size = model.config.patch_size
        rows, columns = (n // size for n in hidden_states.shape[2:])
        pixels = kept["patches"].unflatten(2, (size, size, model.out_channels)).unflatten(1, (rows, columns))
        out.sample = torch.einsum("nhwpqc->nchpwq", pixels).flatten(4, 5).flatten(2, 3)
        return out

    model.proj_out_2.register_forward_hook(filled_up)
    model.forward = forward
