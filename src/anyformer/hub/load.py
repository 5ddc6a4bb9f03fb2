"""Reading a model: find the file's page, build the model without memory, fill it tensor by tensor, keep the ledger."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anyformer.core import pages
from anyformer.core.hyper import changed
from anyformer.hub import choose, generation, shape
from anyformer.hub.fill import Filling, class_tables
from anyformer.hub.formats import ct2, gptq
from anyformer.hub.formats.gguf import open_gguf
from anyformer.hub.formats.guard import inside, read_json
from anyformer.hub.formats.safetensors import DIFFUSERS, MODEL, TensorFile, open_weights
from anyformer.hub.ledger import Ledger
from anyformer.hub.noising import FILE as NOISING
from anyformer.hub.noising import lines_of, read_noising
from anyformer.hub.pooling import account, read_pooling
from anyformer.hub.processors import assumed, read_processor
from anyformer.hub.tables import config as tables
from anyformer.hub.tables.weights import Hub, Link, links
from anyformer.parts.factored import KEY as FACTORS
from anyformer.parts.factored import put_factors
from anyformer.parts.quantised import KEY as GRIDS
from anyformer.parts.quantised import put_grids

if TYPE_CHECKING:
    from anyformer.skeletons.base import Skeleton

WRITTEN = ("hf", "diffusers")  # formats that `save` writes
NATIVE = "anyformer"  # model_type of models without a published format
OURS = Hub(NATIVE, (), lambda c: [])


def load(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    fresh: Iterable[str] = (),
    ignore: Iterable[str] = (),
    allow_pickle: bool = False,
    **changes: Any,
) -> Skeleton:
    """A published model, ready to use: `load("folder")`, `load("file.gguf")`, `load("owner/name")`.

    Strict: every tensor, every config key and every key of the files beside them is used or known to carry nothing, or
    it is an error that names it. The status of each is in `model.ledger`.

    Args:
        source: a Hugging Face directory, a folder of CTranslate2, a GGUF file, or a hub id (through huggingface_hub;
            its cache is enough, offline).
        dtype: of the weights; by default as stored (GGUF and 8 bits: float32). A file with several types becomes one:
            that of its config.
        device: of the weights.
        fresh: patterns of our paths that the file can lack: they get first weights (`["heads.*"]` to fine-tune).
        ignore: keys of config.json and of the files beside it that are passed over. Use it for keys that anyformer does
            not know and that change no number; the ledger keeps them.
        allow_pickle: read pytorch_model.bin where there is no safetensors file.
        changes: hyperparameters that differ from the file's config, e.g. `image=384`; `task="none"` reads another
            class of the same files. Of a model in our own format: paths of its recipe.

    Raises:
        ValueError: naming the tensor or key, if anything is missing, left over, of another shape, or contradictory.
        FileNotFoundError: if there is no such model.
    """
    fresh, ignore = _several("fresh", fresh), _several("ignore", ignore)
    path = _find(source, allow_pickle)
    file, config, known = _opened(path, allow_pickle)
    if known is None:
        return _finish(_native(path, config, file, fresh, dtype, device, changes), path, {}, OURS, ignore)
    page, hub = known
    hyper, lines, stored = _read(page, hub, config, ignore, changes)
    model = shape.empty(page, hub, hyper, file)
    ledger = Ledger(str(path), hub.format, config=lines)

    def table(hyper: Any) -> list[Link]:
        return links(hub.weights(hyper), shape.empty(page, hub, hyper, file).state_dict())

    others = functools.cache(lambda: class_tables(page, hub, hyper, table))
    untied = functools.cache(
        lambda: model.state_dict().keys() - shape.empty(page, hub, stored, file).state_dict().keys()
    )
    filling = Filling(model, hub, file, ledger, dtype, device, fresh, others, untied)
    filling.run(links(hub.weights(hyper), model.state_dict()))
    model.page, model.config, model.ledger = page.name, hyper, ledger
    unignored = {k: v for k, v in config.items() if k not in ignore} if hub.format in WRITTEN else {}
    model.origin = {"hub": hub.name, "format": hub.format, "config": unignored, **filling.habits}
    if hub.format == "ct2":
        model.origin["generation"] = ct2.habits(path, config)
    return _finish(model, path, file.metadata if hub.format == "gguf" else {}, hub, ignore)


def _opened(path: Path, allow_pickle: bool) -> tuple[TensorFile, dict[str, Any], choose.Known | None]:
    """The weights of a file or folder, its settings, and its page and map; None for our own format."""
    if path.is_file():
        file: TensorFile = open_gguf(path)
        page, hub, config = _gguf_config(file)
        return file, config, (page, hub)
    if ct2.is_ct2(path):
        stored = ct2.CTranslate2(path)
        page, hub = choose.by_name(stored.kind, "ct2")
        keys = [name for entry in hub.config for name in entry.names]
        return stored, ct2.config_of(path, stored, keys), (page, hub)
    config = _json(path, "config.json")
    file = open_weights(path, allow_pickle, DIFFUSERS if choose.of_diffusers(config) else MODEL)
    if gptq.is_gptq(config):
        file, config = gptq.Gptq(file, config[gptq.KEY]), gptq.without(config)
    return file, config, None if config.get("model_type") == NATIVE else choose.by_config(config)


def outline(source: str | Path, *, ignore: Iterable[str] = (), **changes: Any) -> Any:
    """The model that a config.json describes, on the meta device: its recipe, its parameters and the ledger of the
    config's keys, without weights.

    Args:
        source: the file, or the folder that holds it.
        ignore, changes: as of `load`.

    Raises:
        ValueError, FileNotFoundError: as `load`.
    """
    path, ignore = Path(source).expanduser(), _several("ignore", ignore)
    folder, name = (path, "config.json") if path.is_dir() else (path.parent, path.name)
    config = gptq.without(_json(folder, name))
    if config.get("model_type") == NATIVE:
        model: Any = shape.stored(config.get("recipe"), path)
        _put_forms(model, config, path)
        model.ledger, model.origin = Ledger(str(path), NATIVE), {"hub": NATIVE, "format": "hf", "config": config}
        return model
    page, hub = choose.by_config(config)
    hyper, lines, _ = _read(page, hub, config, ignore, changes)
    model = shape.empty(page, hub, hyper)
    model.page, model.config, model.ledger = page.name, hyper, Ledger(str(path), hub.format, config=lines)
    model.origin = {"hub": hub.name, "format": hub.format, "config": dict(config)}
    return model


def _read(
    page: pages.Page, hub: Hub, config: Mapping[str, Any], ignore: tuple[str, ...], changes: Mapping[str, Any]
) -> tuple[Any, list[tables.Line], Any]:
    """The hyperparameters with the caller's changes, the lines of the ledger, and the hyperparameters of the file."""
    fixed = choose.implied(hub, config)
    stored, lines = tables.read(hub.config, config, page.config, fixed, ignore)
    for name in hub.settled:
        if changes.get(name, was := getattr(stored, name)) != was:
            raise ValueError(
                f"the file holds a {choose.architecture(config) or page.name}, whose {name} is {was!r}: its weights "
                f"learned that, and {name}={changes[name]!r} would read them without a word as another model's"
            )
    return changed(stored, changes, page.name), lines, stored


def _several(name: str, values: Iterable[str]) -> tuple[str, ...]:
    """An option that takes several texts, as a tuple; a single text is refused, since it would count as its letters."""
    if isinstance(values, str):
        raise ValueError(f"{name} must be a list of texts, got the text {values!r}; give [{values!r}]")
    return tuple(values)


def _finish(model: Any, path: Path, metadata: Mapping[str, Any], hub: Hub, ignore: tuple[str, ...]) -> Any:
    """The model with the files beside its weights: tokenizer, processor, noising, generation config, pooling."""
    from anyformer.hub.text.tokenizer import Tokenizer

    if path.is_dir():
        if (path / "generation_config.json").exists():
            settings = _json(path, "generation_config.json")
            model.ledger.files["generation_config.json"] = generation.account(
                "generation_config.json", settings, ignore
            )
            model.origin["generation"] = {k: v for k, v in settings.items() if k not in ignore}
        elif unmet := generation.unmet(model.origin["config"]):
            model.ledger.notes.append(f"`generate` is refused: it cannot do {', '.join(unmet)} of config.json")
        if pooling := read_pooling(path):
            model.ledger.files.update(account(pooling, ignore))
            model.origin["pooling"] = pooling
    if path.is_file():
        from anyformer.hub.text.gguf_tokenizer import tokenizer_from_gguf

        model.tokenizer = tokenizer_from_gguf(metadata, str(path))
    elif Tokenizer.exists(path):
        model.tokenizer = Tokenizer.load(path, ignore)
        model.ledger.files.update(model.tokenizer.ledger)
    if path.is_dir():
        model.processor = read_processor(path, hub.processor, ignore, model.processed, around_of(hub, model))
        if model.processor is None and model.origin["format"] == "ct2":
            model.processor = assumed(model)
        if model.processor is not None:
            model.ledger.files.update(model.processor.ledger())
        model.noising = read_noising(path, ignore)
        if model.noising is not None:
            model.ledger.files[NOISING] = lines_of(model.noising)
    return model.eval()


def around_of(hub: Hub, model: Any) -> dict[str, Any]:
    """The keys of processor_config.json beside the steps that the files of this model have, with their values."""
    if hub.around is None:
        return {}
    tokens = sorted(model.placeholders) if model.tokenizer is not None else []
    text = model.tokenizer.core.id_to_token(tokens[0]) if len(tokens) == 1 else None
    return {**hub.around(model.config), **({} if text is None else {"image_token": text})}


def _find(source: str | Path, allow_pickle: bool) -> Path:
    """The local folder or file; a hub id is fetched, or found in the cache of huggingface_hub."""
    path = Path(source).expanduser()
    if path.exists():
        if path.is_file() and path.suffix != ".gguf":
            raise ValueError(f"{path} is a file, but not a .gguf; pass the folder with config.json and the weights")
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
    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    wanted += ["pytorch_model*.bin"] if allow_pickle else []
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # errors of several libraries; all mean that the model is unavailable
        raise FileNotFoundError(
            f"{name!r} is not a local folder, and the hub did not return it: {str(error).splitlines()[0]}"
        ) from error


def _json(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).exists():
        open_weights(folder)  # raises the error with a hint at folders with weights
        raise FileNotFoundError(f"{folder} has no {name}: it is not a model directory, or its save was interrupted")
    content = read_json(inside(folder, name))
    if not isinstance(content, dict):
        raise ValueError(f"{folder / name} must hold a dictionary, got {type(content).__name__}")
    return content


def _gguf_config(file: TensorFile) -> tuple[pages.Page, Hub, dict[str, Any]]:
    """The page, the map and the architecture's own metadata; without a stored head the table is tied."""
    name = str(file.metadata.get("general.architecture"))
    page, hub = choose.by_name(name, "gguf")
    config = {k: _plain(k, v) for k, v in file.metadata.items() if k.startswith(f"{name}.")}
    config.setdefault(f"{name}.vocab_size", len(file.metadata.get("tokenizer.ggml.tokens", ())) or None)
    return page, hub, {**config, "tied": "output.weight" not in file.names()}


def _plain(key: str, value: Any) -> Any:
    """A number of a GGUF file. It stores float32: 9.99999974e-06 was written as 1e-05. Some writers store a number for
    each layer; equal ones become one.

    Raises:
        ValueError: naming the key, if the layers differ.
    """
    if isinstance(value, np.ndarray):
        each = sorted(set(value.tolist()))
        if len(each) != 1:
            raise ValueError(
                f"metadata {key!r} is {value.tolist()!r:.100}, one number a layer; this page needs one number for all "
                "layers"
            )
        value = each[0]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _native(
    path: Path, config: dict[str, Any], file: TensorFile, fresh: Iterable[str], dtype: Any, device: Any,
    changes: Mapping[str, Any],
) -> Any:  # fmt: skip
    """A model in our own format: its recipe is in config.json, its tensors have our names; `changes` are paths of the
    recipe."""
    model: Any = shape.stored(config.get("recipe"), path / "config.json", file)
    if changes:
        model = shape.stored(model.recipe.but(changes).to_json(), path / "config.json", file)
    _put_forms(model, config, path / "config.json")
    ledger = Ledger(str(path), NATIVE)
    same = [Link((name,), (name,)) for name in model.state_dict()]
    Filling(model, OURS, file, ledger, dtype, device, tuple(fresh)).run(same)
    model.ledger, model.origin = ledger, {"hub": NATIVE, "format": "hf", "config": config}
    return model


def _put_forms(model: Any, config: Mapping[str, Any], source: Path) -> None:
    """Empty parts in few bits, or of few numbers, where a config of our own says so."""
    put_grids(model, config.get(GRIDS, {}), source)
    put_factors(model, config.get(FACTORS, {}), source)
