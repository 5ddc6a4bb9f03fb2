"""Writing a model as a GGUF file, which llama.cpp opens: for pages whose maps have the format."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from anyformer.core import pages
from anyformer.hub.formats.gguf_writer import Make, write_gguf
from anyformer.hub.tables import config as tables
from anyformer.hub.tables.weights import Hub, links
from anyformer.hub.text.gguf_vocabulary import metadata_of
from anyformer.parts.quantised import Grid, full

Kind = Literal["float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_1"]
# llama.cpp's number of the file, the format of matrices, and that of the table and the head, which err the most
KINDS: dict[str, tuple[int, str, str]] = {
    "float32": (0, "F32", "F32"), "float16": (1, "F16", "F16"), "bfloat16": (32, "BF16", "BF16"),
    "q8_0": (7, "Q8_0", "Q8_0"), "q4_0": (2, "Q4_0", "Q8_0"), "q4_1": (3, "Q4_1", "Q8_0"),
}  # fmt: skip
FINE = ("token_embd.", "output.")
BLOCKS = {8: "Q8_0", 4: "Q4_0"}  # by bits, the format of matrices that are on its grid
BLOCK = 32  # numbers of a block


def save_gguf(model: Any, path: str | Path, kind: Kind = "float16", overwrite: bool = False) -> None:
    """Writes the weights, the hyperparameters and the tokenizer into one file.

    Matrices that are in few bits on the grid of Q8_0 or Q4_0 are stored as they are.

    Args:
        kind: the number format of other matrices; vectors are float32. With 4 bits the table of tokens and the head
            have 8.
        overwrite: also replace a file that stands there.

    Raises:
        ValueError: naming what a GGUF file cannot hold: the page, the hyperparameter, the tokenizer's rules, or a
            tensor whose rows are no whole blocks. FileExistsError without `overwrite`.
    """
    path = Path(path)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}")
    if path.suffix != ".gguf":
        raise ValueError(f"the name of a GGUF file ends in .gguf; got {path.name!r}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name, or overwrite=True")
    for name, module in model.named_modules():
        if hint := getattr(module, "unsaved", None):
            raise ValueError(f"{name} is a {type(module).__name__}, which model files cannot describe; {hint}")
    grids = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, Grid)}
    if bad := [name.removesuffix(".weight") for name, grid in grids.items() if not _held(grid)]:
        raise ValueError(
            f"{bad[0]} and {len(bad) - 1} others are in few bits, which a GGUF file has in forms of its own: "
            "convert the model that was compressed, with --dtype q4_0 or q8_0"
        )
    hub, config = gguf_hub(model)
    number, plain, fine = KINDS[kind]
    if grids:
        number = KINDS["q4_0" if any(grid.bits == 4 for grid in grids.values()) else "q8_0"][0]
    metadata: dict[str, Any] = {"general.architecture": hub.name, "general.type": "model"}
    metadata |= {"general.name": path.stem, "general.file_type": number, "general.quantization_version": 2}
    metadata |= {name: value for name, value in config.items() if name != "tied" and value is not None}
    metadata |= metadata_of(model.tokenizer, model.vocab)
    ours, tensors, scales = (full(model) if grids else model).state_dict(), dict[str, tuple[str, Make]](), {}
    scaled = {**ours, **{name: _scales(grid) for name, grid in grids.items()}}
    for link in links(hub.weights(model.config), ours):
        if link.tied:
            continue
        for name in link.theirs:
            wide = ours[link.ours[0]].ndim > 1
            stored = (fine if name.startswith(FINE) else plain) if wide else "F32"
            if (grid := grids.get(link.ours[0])) is not None:
                stored = BLOCKS[grid.bits]
                scales[name] = lambda link=link, name=name: link.write(scaled)[name]
            tensors[name] = (stored, lambda link=link, name=name: link.write(ours)[name])  # type: ignore[misc]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, metadata, tensors, scales)


def _held(grid: Grid) -> bool:
    """True for a matrix on a grid of GGUF: whole blocks, and zeros in the middle of the numbers."""
    middle = grid.zero.view(torch.float16) == 2 ** (grid.bits - 1)
    return grid.bits in BLOCKS and grid.group == BLOCK and grid.columns % BLOCK == 0 and bool(middle.all())


def _scales(grid: Grid) -> Tensor:
    """The scale of each number of a matrix, which maps move as they move the numbers."""
    return grid.scale.view(torch.float16).float().repeat_interleave(grid.group, 1)


def gguf_hub(model: Any) -> tuple[Hub, dict[str, Any]]:
    """The map of a model's page for GGUF files, and the metadata of its hyperparameters.

    Raises:
        ValueError: naming the page or the hyperparameter that a GGUF file cannot hold.
    """
    able = sorted(p.name for p in pages.pages() if any(h.format == "gguf" for h in p.module.HUBS))
    if model.page not in able:
        what = "this model is of no page" if model.page is None else f"{model.page} has no map to GGUF files"
        raise ValueError(f"{what}; these pages have one: {', '.join(able)}")
    page = pages.page(model.page)
    if page.recipe(model.config) != model.recipe:
        raise ValueError(f"a GGUF file holds the recipe of {model.page}, and this model's recipe differs from it")
    hub = next(h for h in page.module.HUBS if h.format == "gguf")
    hyper = model.config
    for f in dataclasses.fields(hyper):  # a value that changes nothing here is no reason to refuse
        if f.name not in tables.hyperparameters(hub.config) and f.default is not dataclasses.MISSING:
            usual = dataclasses.replace(hyper, **{f.name: f.default})
            hyper = usual if page.recipe(usual) == model.recipe else hyper
    config = tables.write(hub.config, hyper, {}, {})
    back, _ = tables.read(hub.config, config, page.config, {})
    if page.recipe(back) != model.recipe:
        names = [f.name for f in dataclasses.fields(hyper) if getattr(back, f.name) != getattr(hyper, f.name)]
        shown = ", ".join(f"{n}={getattr(hyper, n)!r} (read as {getattr(back, n)!r})" for n in names)
        raise ValueError(f"a GGUF file of {hub.name} cannot hold {shown}")
    return hub, config
