"""The oracle: the same model in `transformers` or `diffusers`, by way of files, never by its names in memory.

`transformers` is imported when a check first needs it. A model is made from the config that our map writes, gets
revealing weights, and is saved; from these files ours is loaded.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import dataclasses
import importlib.util
import inspect
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anyformer.contract import codecs, diffusers, retrieved, subjects
from anyformer.contract.check import LeftOut
from anyformer.contract.mended import mended
from anyformer.contract.probe import Batch, Failed
from anyformer.contract.subjects import Subject, redrawn, words
from anyformer.contract.tracing import SEED
from anyformer.core import pages
from anyformer.hub.formats.ct2 import is_ct2
from anyformer.hub.tables.weights import Hub, links
from anyformer.parts.sound.stacked import StackedLogits

SCRATCH = "anyformer-contract-"  # the prefix of temporary folders


NO_ORACLE = "needs transformers: pip install 'anyformer[dev]'"


def available() -> bool:
    """True if `transformers` is installed."""
    return importlib.util.find_spec("transformers") is not None


@dataclass(frozen=True, eq=False)
class Oracle:
    """A model of theirs, the folder that it was saved in, and ours loaded from there."""

    theirs: Any
    folder: Path
    ours: Any

    def doubled(self) -> Oracle:
        """Both in float64."""
        return Oracle(copy.deepcopy(self.theirs).double(), self.folder, copy.deepcopy(self.ours).double())

    def run(self, batch: Batch) -> dict[str, Tensor]:
        """Their outputs for a batch, under our names, with hidden states (see `trace`)."""
        with torch.no_grad():
            outputs = self.named(self.call(batch))
        if "input_ids" in batch.inputs:  # some return the stream with padding that they added
            T = batch.inputs["input_ids"].shape[1]
            outputs = {n: v[:, :T] if n.isdigit() else v for n, v in outputs.items()}
        return outputs

    def call(self, batch: Batch) -> Any:
        """Their own output for a batch."""
        theirs, inputs = self.restored(), self.inputs(batch)
        torch.manual_seed(SEED)
        takes = inspect.signature(self.theirs.forward).parameters
        if self.hub is not None and self.hub.format == "diffusers":
            return diffusers.call(theirs, inputs)
        if "audio_codes" in takes:
            return codecs.call(theirs, inputs)
        if "context_input_ids" in takes:
            return retrieved.call(theirs, inputs)
        offset = getattr(getattr(getattr(self.ours, "embed", None), "positions", None), "offset", 0)
        counts = "position_ids" in takes and not self.on_axes
        if counts and (batch.keep is not None or offset):  # positions count real tokens, by the mask
            keep = torch.ones_like(inputs["input_ids"]) if batch.keep is None else batch.keep.long()
            inputs["position_ids"] = (keep.cumsum(1) - 1).clamp(min=0) + offset
        if "interpolate_pos_encoding" in takes:
            inputs["interpolate_pos_encoding"] = True  # type: ignore[assignment]
        if "future_values" in takes and "future_values" not in inputs:  # read by no layer, and asked for all the same
            inputs["future_values"] = torch.zeros_like(inputs["past_values"])[:, : theirs.config.prediction_length]
        if "use_cache" in takes:
            inputs["use_cache"] = False  # type: ignore[assignment]
        if (books := self.books) is None:
            return theirs(**inputs, output_hidden_states=True)
        prefix = self.ours.target
        out = theirs(**codecs.stacked(inputs, f"{prefix}input_ids"), output_hidden_states=True)
        out["logits"] = codecs.unstacked(out["logits"], books)
        return out

    @property
    def books(self) -> int | None:
        """The books of a decoder of stacked codes, or None."""
        head = getattr(self.ours, "head", None)
        return len(head.books) if isinstance(head, StackedLogits) else None

    @property
    def on_axes(self) -> bool:
        """True if their places on three axes follow from the mask."""
        return hasattr(getattr(self.theirs, "model", None), "get_rope_index")

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The inputs of a batch under their names."""
        other = {} if self.hub is None else self.hub.inputs
        inputs = {other.get(name, name): value for name, value in batch.inputs.items()}
        if self.on_axes:
            ids = inputs["input_ids"]
            inputs.setdefault("attention_mask", torch.ones_like(ids))
            if "mm_token_type_ids" in inspect.signature(self.theirs.forward).parameters:  # 1 a picture's, 2 a video's
                kinds = enumerate((self.ours.media[name].token for name in ("image", "video")), 1)
                inputs["mm_token_type_ids"] = sum(number * (ids == token).int() for number, token in kinds)
        return inputs

    def restored(self) -> Any:
        """Their model, restored after loading: a short text switches BigBird to full attention permanently."""
        base = getattr(self.theirs, "base_model", None)
        if restore := getattr(base, "set_attention_type", None):
            restore(self.theirs.config.attention_type)
        return self.theirs

    def named(self, out: Any) -> dict[str, Tensor]:
        """Their output under our names."""
        logits = [v for k, v in out.items() if k.endswith("logits") and k not in self.outputs()]
        held = [f"heads.{name}" for name in getattr(self.ours, "heads", ())]
        heads = held or ["logits"] * bool(logits)
        by_name = dict(zip(heads, logits, strict=True)) if logits else {}
        renamed = {"last_hidden_state": "hidden", "pooler_output": "pooled", "encoder_last_hidden_state": "memory"}
        by_name |= {ours: out[theirs] for theirs, ours in renamed.items() if out.get(theirs) is not None}
        for name in {"hidden_states", "encoder_hidden_states", "decoder_hidden_states"} - self.outputs().keys():
            stack = name.removesuffix("hidden_states").replace("_", ".")
            by_name |= {f"{stack}{i}": value for i, value in enumerate(out.get(name) or ())}
        for theirs, name in self.outputs().items():
            if name.startswith("heads.") and hasattr(self.ours, "heads") and name not in held:
                continue  # a class of theirs without that head
            value = out
            for key in theirs.split("."):
                value = None if value is None else value.get(key)
            if value is None:  # of another class of these files
                continue
            if name.startswith("heads.") and isinstance(value, tuple):  # the parameters of a law
                value = torch.stack(value, -1)
            several = isinstance(value, tuple)
            by_name |= {f"{name}.{i}": state for i, state in enumerate(value)} if several else {name: value}
        return by_name

    @property
    def hub(self) -> Hub | None:
        """The map of their files."""
        kind = (self.ours.origin or {}).get("hub")
        known = () if self.ours.page is None else pages.page(self.ours.page).module.HUBS
        return next((hub for hub in known if hub.name == kind), None)

    def outputs(self) -> Mapping[str, str]:
        """Their names of outputs, with ours."""
        return {} if self.hub is None else self.hub.outputs

    def defaults(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config with their defaults for absent keys."""
        if self.hub is not None and self.hub.format == "diffusers":
            return diffusers.filled(self.theirs, config)
        return type(self.theirs.config).from_dict(config).to_dict()


_made: dict[tuple[str, str], Oracle] = {}


def oracle(subject: Subject, hub: Hub | None) -> Oracle:
    """The oracle of a subject; made once in each process."""
    key = (subject.name, "" if hub is None else hub.name)
    if key not in _made:
        _made[key] = meet(subject, hub)
    return _made[key]


def forget() -> None:
    """Frees the models, oracles and folders of all checks."""
    for side in _made.values():
        if side.folder.name.startswith(SCRATCH):
            shutil.rmtree(side.folder, ignore_errors=True)
    _made.clear()
    subjects.forget()


def meet(subject: Subject, hub: Hub | None) -> Oracle:
    """The oracle of a subject, made now.

    Raises:
        LeftOut: without transformers.
    """
    if not available():
        raise LeftOut(NO_ORACLE)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from anyformer.hub import load, save

    if subject.path is not None:
        theirs, folder = _published(subject, Path(subject.path)), Path(subject.path)
        return Oracle(theirs, folder, subject.model)
    assert hub is not None
    folder = scratch()
    theirs = build(subject, hub)
    redrawn(theirs)
    if hub.format != "diffusers":
        theirs.tie_weights()
    written(theirs, folder, hub)
    ours = load(folder)
    if rewritten(subject.config, ours.config):  # by their config class (T5 is always tied there): theirs from our files
        ours, folder = copy.deepcopy(subject.model), scratch()
        ours.origin = {"hub": hub.name}
        save(ours, folder)
        theirs = reference(type(theirs).from_pretrained(folder)).eval()
    return Oracle(theirs, folder, ours)


def written(theirs: Any, folder: Path, hub: Hub, **more: Any) -> None:
    """Their files under the names in memory, where transformers 5.23 writes others for ESM: its norms as `gamma` and
    `beta`, its frequencies under a layer with the number `*`."""
    if hub.format == "diffusers":
        return diffusers.write(theirs, folder, more.get("state_dict") or theirs.state_dict())
    theirs.save_pretrained(folder, **more)
    file = folder / "model.safetensors"
    if not hub.tails or not file.exists():
        return
    tensors = load_file(file)
    names = {name: name.replace("encoder.layer.*.attention.self.", "") for name in tensors}
    for old, new in hub.tails.items():
        names = {
            name: renamed.removesuffix(old) + new if renamed.endswith(old) else renamed
            for name, renamed in names.items()
        }
    if list(names.values()) != list(tensors):
        save_file({renamed: tensors[name] for name, renamed in names.items()}, file, metadata={"format": "pt"})


def rewritten(before: Any, after: Any) -> list[str]:
    """The hyperparameters that changed on the way, except None that became its default."""
    fields = [f.name for f in dataclasses.fields(before) if getattr(before, f.name) is not None]
    return [name for name in fields if getattr(before, name) != getattr(after, name)]


def build(subject: Subject, hub: Hub) -> Any:
    """Their class, made from the config that our map writes; on the meta device if that is the present one."""
    import transformers

    published = words(subject, hub)
    assert published is not None
    if hub.format == "diffusers":
        return reference(diffusers.build(*published)).eval()
    try:
        config = transformers.AutoConfig.for_model(hub.name, **published[1])
        return reference(getattr(transformers, published[0])._from_config(config)).eval()
    except TypeError as error:  # most often a null in a computation of their class
        nulls = [k for k, v in published[1].items() if v is None]
        raise Failed(f"transformers refuses the config that the map writes ({error}); null in it: {nulls}") from error


def accepts(subject: Subject, hub: Hub) -> bool:
    """True if their config class accepts these hyperparameters; it refuses some, with several errors."""
    import transformers

    published = words(subject, hub)
    if hub.format == "diffusers":
        return published is not None
    try:
        return published is not None and transformers.AutoConfig.for_model(hub.name, **published[1]) is not None
    except Exception:
        return False


def reference(model: Any) -> Any:
    """Their model with plain attention and experts; no token is exempt from training by its id: the padding mask marks
    padding."""
    for table in (m for m in model.modules() if isinstance(m, nn.Embedding)):
        table.padding_idx = None
    if getattr(model, "_supports_sdpa", False):
        model.set_attn_implementation("eager")
    if getattr(model, "_can_set_experts_implementation", bool)():
        model.set_experts_implementation("eager")
    for part in model.modules():
        mended(part)
    return model


def _published(subject: Subject, path: Path) -> Any:
    """A checkpoint as `transformers` loads it, in the class of the task if that is another one."""
    import transformers

    if path.is_file():
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        return reference(model).eval()
    if is_ct2(path):  # transformers reads the directory that we save of it
        from anyformer.hub import save

        path = scratch()
        save(subject.model, path)
    config = json.loads((path / "config.json").read_text())
    named = (config.get("architectures") or [None])[0]
    if "task" in subject.options:
        from anyformer.hub.save import hub_for

        named = published[1] if (published := hub_for(subject.model)) else named
    kind = getattr(transformers, named) if named else transformers.AutoModel
    return reference(kind.from_pretrained(path, dtype=torch.float32)).eval()


@contextlib.contextmanager
def in_training(model: Any) -> Iterator[None]:
    """Their model in training, with the statistics of its norms as before behind it."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield model.train()
    finally:
        model.eval()
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


def scratch() -> Path:
    """A temporary folder, removed at the end of the process."""
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def their_gradients(side: Oracle, hub: Hub) -> dict[str, Tensor]:
    """The gradients of their model, under the names and in the form of their files."""
    # With both names of a tied table: `save_pretrained` keeps that of the files, whichever module comes first
    every = side.theirs.named_parameters(remove_duplicate=False)
    gradients = {name: p.grad for name, p in every if p.grad is not None}
    with tempfile.TemporaryDirectory() as folder:
        written(side.theirs, Path(folder), hub, state_dict=gradients)
        file = diffusers.weights_in(folder)
        return {name: file.get(name).clone() for name in file.names()}


def as_theirs(side: Oracle, hub: Hub, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names (weights, gradients) under the names and in the form of their files."""
    from anyformer.hub.save import hub_for

    published = hub_for(side.ours)
    if published is None:
        raise Failed("no map expresses this model")
    made: dict[str, Tensor] = {}
    for link in links(hub.weights(side.ours.config), tensors):
        made |= {} if link.tied else link.write(tensors)
    return {k.removeprefix(hub.base) if published[1] in hub.bare else k: v for k, v in made.items()}


def fresh(model: Any) -> Any:
    """A copy that a check can change."""
    return copy.deepcopy(model)
