"""Reading a model: find the page that knows the file, build it without memory, fill it tensor by tensor, keep the
ledger."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core import pages
from anyformer.core.recipe import Recipe, nearest
from anyformer.hub.formats.gguf import GGUF
from anyformer.hub.formats.guard import inside, read_json
from anyformer.hub.formats.safetensors import TensorFile, open_weights
from anyformer.hub.ledger import Ledger, TensorLine
from anyformer.hub.pooling import read_pooling
from anyformer.hub.processors import read_processor
from anyformer.hub.tables import config as tables
from anyformer.hub.tables.weights import Hub, Link, links

NATIVE = "anyformer"  # model_type of models that nobody published


def load(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    fresh: Iterable[str] = (),
    allow_pickle: bool = False,
    **changes: Any,
) -> Any:
    """A published model, ready to use: `load("folder")`, `load("file.gguf")`, `load("owner/name")`.

    Strict: every tensor and every config key is used or known to carry nothing, or it is an error that names it. What
    became of each is in `model.ledger`.

    Args:
        source: a Hugging Face directory, a GGUF file, or a hub id (through huggingface_hub; its cache is enough,
            offline).
        dtype: of the weights; by default as stored (GGUF: float32).
        device: where they go.
        fresh: patterns of our paths that the file may lack; they get first weights (`["heads.*"]` to fine-tune).
        allow_pickle: read pytorch_model.bin where there is no safetensors file.
        changes: hyperparameters that differ from the file's config, e.g. `image=384`.

    Raises:
        ValueError: naming the tensor or key, if anything is missing, left over, of another shape, or contradictory.
        FileNotFoundError: if there is no such model.
    """
    path = _find(source)
    if path.is_file():
        file: TensorFile = GGUF(path)
        page, hub, config = _gguf_config(file)
        extras: dict[str, Any] = {}
    else:
        file, config = open_weights(path, allow_pickle), _json(path, "config.json")
        extras = (
            {"generation": _json(path, "generation_config.json")} if (path / "generation_config.json").exists() else {}
        )
        if pooling := read_pooling(path):
            extras["pooling"] = pooling
        if config.get("model_type") == NATIVE:
            model = _native(path, config, file, fresh, dtype, device)
            model.origin.update(extras)
            return _finish(model, path, {}, None)
        page, hub = _page_for(str(config.get("model_type")), "hf")
    fixed = _implied(hub, config)
    hyper, lines = tables.read(hub.config, config, page.config, {k: v for k, v in fixed.items() if k not in changes})
    hyper = dataclasses.replace(hyper, **_checked(page, changes))
    model = pages.empty(page.recipe(hyper))
    ledger = Ledger(str(path), hub.format, config=lines)
    _fill(model, links(hub.weights(hyper), model.state_dict()), hub, file, ledger, tuple(fresh), dtype, device)
    model.page, model.config, model.ledger = page.name, hyper, ledger
    model.origin = {
        "hub": hub.name,
        "format": hub.format,
        "config": dict(config) if hub.format == "hf" else {},
        **extras,
    }
    return _finish(model, path, file.metadata if hub.format == "gguf" else {}, hub.processor)


def _finish(model: Any, path: Path, metadata: Mapping[str, Any], processor: str | None) -> Any:
    from anyformer.hub.text.tokenizer import Tokenizer

    if path.is_file():
        from anyformer.hub.text.gguf_tokenizer import tokenizer_from_gguf

        model.tokenizer = tokenizer_from_gguf(metadata, str(path))
    elif Tokenizer.exists(path):
        model.tokenizer = Tokenizer.load(path)
    if path.is_dir() and model.takes == "pixel_values":
        model.processor = read_processor(path, processor)
    return model.eval()


def _find(source: str | Path) -> Path:
    """The folder or file on this machine; a hub id is fetched, or found in the cache of huggingface_hub."""
    path = Path(source).expanduser()
    if path.exists():
        if path.is_file() and path.suffix != ".gguf":
            raise ValueError(f"{path} is a file, but no .gguf; give the folder that holds config.json and the weights")
        return path
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise FileNotFoundError(f"there is no file or folder {name!r}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"there is no folder {name!r}; to fetch it from the hub: pip install 'anyformer[hub]'"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except Exception as error:  # its errors come from several libraries; all mean that the model is not to be had
        raise FileNotFoundError(
            f"{name!r} is no folder here, and the hub did not give it: {str(error).splitlines()[0]}"
        ) from error


def _json(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).exists():
        raise FileNotFoundError(f"{folder} has no {name}: it is no model directory, or its save was not finished")
    found = read_json(inside(folder, name))
    if not isinstance(found, dict):
        raise ValueError(f"{folder / name} must hold a dictionary, got {type(found).__name__}")
    return found


def _page_for(name: str, form: str) -> tuple[pages.Page, Hub]:
    """The page and map that know files of this kind."""
    known = {hub.name: (page, hub) for page in pages.pages() for hub in page.module.HUBS if hub.format == form}
    if name not in known:
        what = "model_type" if form == "hf" else "architecture"
        raise ValueError(
            f"no page knows the {what} {name!r}{nearest(name, list(known))}; known are {', '.join(sorted(known))}. "
            "docs/adding-an-architecture.md shows how to add one"
        )
    return known[name]


def _gguf_config(file: TensorFile) -> tuple[pages.Page, Hub, dict[str, Any]]:
    """The page, the map and the architecture's own metadata; a head that is not stored is the token table."""
    name = str(file.metadata.get("general.architecture"))
    page, hub = _page_for(name, "gguf")
    config = {k: _short(v) for k, v in file.metadata.items() if k.startswith(f"{name}.")}
    config.setdefault(f"{name}.vocab_size", len(file.metadata.get("tokenizer.ggml.tokens", ())) or None)
    return page, hub, {**config, "tied": "output.weight" not in file.names()}


def _short(value: Any) -> Any:
    """GGUF stores float32: 9.99999974e-06 was written as 1e-05."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _implied(hub: Hub, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The hyperparameters that the named architecture implies."""
    named = (config.get("architectures") or [None])[0] or next(iter(hub.architectures), None)
    if named is None:
        return {}
    if named not in hub.architectures:
        known = list(hub.architectures)
        raise ValueError(
            f"the file holds a {named!r}{nearest(named, known)}; of {hub.name!r} anyformer knows {', '.join(known)}"
        )
    return hub.architectures[named]


def _checked(page: pages.Page, changes: Mapping[str, Any]) -> Mapping[str, Any]:
    page.at("tiny", **changes)  # raises for a hyperparameter that does not exist
    return changes


def _native(path: Path, config: dict[str, Any], file: TensorFile, fresh: Iterable[str], dtype: Any, device: Any) -> Any:
    """A model of ours that no page describes: its recipe is in config.json, its tensors have our names."""
    try:
        model = pages.empty(Recipe.from_json(config.get("recipe")))
    except (AttributeError, TypeError, ArithmeticError, RuntimeError) as error:  # options of the wrong kind or size
        raise ValueError(f"{path / 'config.json'}: its recipe cannot be built: {error}") from error
    ledger = Ledger(str(path), NATIVE)
    same = [Link(name, (name,), ()) for name in model.state_dict()]
    _fill(model, same, Hub(NATIVE, (), lambda c: []), file, ledger, tuple(fresh), dtype, device)
    model.ledger, model.origin = ledger, {"hub": NATIVE, "format": "hf", "config": config}
    return model


def _fill(
    model: nn.Module,
    table: list[Link],
    hub: Hub,
    file: TensorFile,
    ledger: Ledger,
    fresh: tuple[str, ...],
    dtype: Any,
    device: Any,
) -> None:
    """Moves tensor after tensor from the file into the model, and writes down what became of each."""
    stored = _canonical(hub, file.names(), {n for link in table for n in (link.theirs, *link.also)})
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    missing: list[str] = []
    for link in sorted(table, key=lambda k: k.tied):  # what is tied is compared with what is there by then
        found = [n for n in (link.theirs, *link.also) if n in stored]
        if len(found) > 1:
            raise ValueError(
                f"the file holds {found[0]!r} and, under its older name, {found[1]!r}; one of them must go"
            )
        if not found:
            if all(any(fnmatch.fnmatchcase(o, p) for p in fresh) for o in link.ours) and not link.tied:
                for name in link.ours:
                    _put(model, name, _first(name, shapes[name]), dtype, device)
                    ledger.tensors.append(TensorLine(name, shapes[name], "float32", "fresh", "first weights, as asked"))
            elif not link.tied:
                missing.append(f"{link.theirs} (our {', '.join(link.ours)})")
            continue
        name = stored.pop(found[0])
        tensors = link.read(file.get(name), [shapes[o] for o in link.ours])
        if link.tied:
            _same(name, tensors[0], link.ours[0], model)
        else:
            for ours, tensor in zip(link.ours, tensors, strict=True):
                _put(model, ours, tensor, dtype, device)
        status, detail = ("derived", f"equal to {link.ours[0]}") if link.tied else ("used", ", ".join(link.ours))
        ledger.tensors.append(TensorLine(name, file.shape(name), str(file.dtype(name))[6:], status, detail))
    for canonical, name in list(stored.items()):
        if why := hub.ignored(canonical):
            ledger.tensors.append(TensorLine(name, file.shape(name), str(file.dtype(name))[6:], "ignored", why))
            del stored[canonical]
    _refuse(missing, list(stored.values()))


def _canonical(hub: Hub, names: list[str], expected: set[str]) -> dict[str, str]:
    """The names of a file as the table spells them -> as the file does: prefixes left out and older endings are put
    right."""
    bare = bool(hub.base) and not any(n.startswith(hub.base) for n in names)
    out: dict[str, str] = {}
    for name in names:
        stem, _, tail = name.rpartition(".")
        full = f"{stem}.{hub.tails[tail]}" if tail in hub.tails else name
        if bare and (hub.base + full in expected or hub.ignored(hub.base + full)):
            full = hub.base + full
        if full in out:
            raise ValueError(f"the file holds {out[full]!r} and {name!r}, which are two names of one tensor")
        out[full] = name
    return out


def _put(model: nn.Module, path: str, tensor: Tensor, dtype: Any, device: Any) -> None:
    """Makes the tensor the model's parameter or buffer at that path, without a copy where none is needed."""
    owner, _, name = path.rpartition(".")
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    module, tensor = model.get_submodule(owner), tensor.contiguous().to(device)
    setattr(module, name, tensor if name in module._buffers else nn.Parameter(tensor))  # a buffer is never trained


def _same(name: str, tensor: Tensor, ours: str, model: nn.Module) -> None:
    """A second stored copy of a tied weight must be the first one."""
    held = model.get_parameter(ours)
    if not torch.equal(tensor.to(held.dtype).to(held.device), held):
        raise ValueError(
            f"tensor {name!r} differs from {ours!r}, and the config says that they are one (tied) weight; "
            "load(..., tied=False) keeps both"
        )


def _first(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape)
    return torch.ones(shape) if len(shape) == 1 else torch.empty(shape).normal_(std=0.02)


def _refuse(missing: list[str], left: list[str]) -> None:
    """Raises if anything is missing or left over, with the nearest name on the other side."""
    if not missing and not left:
        return
    parts = []
    if missing:
        near = difflib.get_close_matches(missing[0].split(" ")[0], left, 1, 0.6)
        hint = f"; the file has {near[0]!r}" if near else ""
        parts.append(f"{len(missing)} tensors are missing in the file: {'; '.join(missing[:5])}{hint}")
    if left:
        parts.append(f"{len(left)} tensors of the file have no place in the model: {', '.join(left[:5])}")
    raise ValueError(". ".join(parts) + ". Nothing was loaded")
