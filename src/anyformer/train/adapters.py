"""Adapter files in PEFT's layout, read and written.

```
folder/  adapter_config.json           r, alpha, which modules, LoRA or DoRA
         adapter_model.safetensors     base_model.model.MODULE.lora_A.weight (R, I), .lora_B.weight (O, R),
                                       .lora_magnitude_vector (O,) for DoRA; whole modules that learned beside them
```
Modules have their *published* names, read backwards from the page's map; a model that nobody published keeps ours.

Where files hold several of our matrices in one (GPT-2: q, k and v in c_attn), adapters are stacked, which is exact: A
is theirs one below the other, B has theirs as blocks of its diagonal, and the rank is their sum. The other way, each of
our matrices takes its rows of B and all of A. I inputs, O outputs, R rank.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from anyformer import hub
from anyformer.compress.nf4 import Nf4
from anyformer.core import pages
from anyformer.core.rewrite import holding, replace
from anyformer.core.value import nearest
from anyformer.hub.formats.guard import FileRefused, atomic_write, inside
from anyformer.hub.formats.safetensors import SafeTensors
from anyformer.hub.save import hub_for
from anyformer.hub.tables.weights import Link, Split, Transpose, links
from anyformer.train import lora
from anyformer.train.adapter_config import CONFIG, WEIGHTS, account, alpha_of, compare, read_config
from anyformer.train.distributed.base import World
from anyformer.train.lora import DoraLinear, LoraLinear

PICKLE = "adapter_model.bin"
LEARNED = "learned.safetensors"  # of a checkpoint: the same by our paths, bit for bit
PREFIX = "base_model.model."
PART = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.(?!weight$)(\w+))?(?:\.weight)?")
WHOLE = re.compile(r"\.modules_to_save\.(\w+)(?=\.)")  # some files name the adapter in the middle of a name
TASKS = {  # ends of the names of published architectures
    "CausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS",
    "TokenClassification": "TOKEN_CLS", "ConditionalGeneration": "SEQ_2_SEQ_LM",
}  # fmt: skip


@dataclass(frozen=True)
class Words:
    """Names in published files: `table` of tensors; `base`, the prefix that they leave out; `task` in PEFT's words;
    `tied` other names of these tensors, which are modules of their own in PEFT."""

    table: list[Link]
    base: str
    task: str | None
    tied: tuple[Link, ...] = ()

    def name(self, link: Link) -> str:
        """Their name, as their modules have it; the first, where they store several tensors."""
        return link.theirs[0].removeprefix(self.base)

    def matrices(self) -> dict[str, Link]:
        """Their modules by name, those that can have an adapter."""
        known = (Transpose, Split)
        return {
            self.name(link).removesuffix(".weight"): link
            for link in self.table
            if link.theirs[0].endswith(".weight") and all(isinstance(op, known) for op in link.ops)
        }


def words(model: Any) -> Words:
    """The published names of a model, whatever was rewritten in it; ours, if nobody published it."""
    ours = list(pages.empty(model.recipe).state_dict())
    published = hub_for(model)
    if published is None:
        return Words([Link((name,), (name,)) for name in ours], "", None)
    hub, architecture, _ = published
    table = links(hub.weights(model.config), ours)
    task = next((task for end, task in TASKS.items() if architecture.endswith(end)), None)
    tied = tuple(link for link in table if link.tied)
    table = [link for link in table if not link.tied]
    return Words(table, hub.base if architecture in hub.bare else "", task, tied)


def write(model: Any, folder: str | Path, base: str = "") -> list[str]:
    """Writes adapters and other trained modules of a model, so that `peft.PeftModel.from_pretrained` opens them
    on the published model.

    Args:
        base: name or path of the model below, for readers.

    Returns:
        The published names of the adapted modules.

    Raises:
        ValueError: if there are no adapters, or something learns that this layout cannot say, naming it.
    """
    config, tensors, stacked = contents(model, base)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "stacked": json.dumps(stacked)}
    atomic_write(folder / WEIGHTS, save({k: v.cpu().contiguous() for k, v in tensors.items()}, metadata))
    atomic_write(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    return config["target_modules"]


@torch.no_grad()
def contents(model: Any, base: str = "") -> tuple[dict[str, Any], dict[str, Tensor], dict[str, list[int]]]:
    """The content of the files: config, tensors, and the ranks of stacked adapters."""
    adapters = lora.adapters(model)
    if not adapters:
        raise ValueError("the model has no adapters to write; lora.add(model) makes them, model.save writes a model")
    published = words(model)
    tensors: dict[str, Tensor] = {}
    ranks, alphas, stacked = {}, {}, {}
    left, transposed = set(adapters), False
    for name, link in published.matrices().items():
        paths = [o.removesuffix(".weight") for o in link.ours]
        if not left.intersection(paths):
            continue
        left.difference_update(paths)
        transposed |= any(isinstance(op, Transpose) for op in link.ops)
        parts, ranks[name], alphas[name], each = _stacked([model.get_submodule(p) for p in paths])
        tensors |= {f"{PREFIX}{name}.{part}": tensor for part, tensor in parts.items()}
        if len(paths) > 1:
            stacked[name] = each
    if left:
        raise ValueError(f"the published files have no separate matrix for {sorted(left)[0]}; leave it out of targets")
    modules = _learned_beside(model, published, tensors)
    task = (
        published.task if modules or published.task not in ("SEQ_CLS", "TOKEN_CLS") else None
    )  # these ask for a head of classes
    one = next(iter(adapters.values()))
    rank, alpha = (Counter(v.values()).most_common(1)[0][0] for v in (ranks, alphas))
    config = {
        "peft_type": "LORA", "task_type": task, "base_model_name_or_path": base, "inference_mode": True,
        "r": rank, "lora_alpha": alpha, "lora_dropout": one.dropout.p, "bias": "none", "fan_in_fan_out": transposed,
        "use_dora": isinstance(one, DoraLinear), "target_modules": list(ranks), "modules_to_save": modules or None,
        "rank_pattern": {re.escape(n): r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(n): a for n, a in alphas.items() if a != alpha},
    }  # fmt: skip
    return config, tensors, stacked


def save_model(model: Any, folder: Path, weights: dict[str, Tensor]) -> None:
    """Saves the model of a checkpoint: whole, with these weights; of one with adapters, the trained tensors."""
    if not lora.adapters(model):
        hub.save(model, folder, weights=weights)
        return
    with holding(model, weights):  # what it has itself may be a part of each, or not their mean
        write(model, folder)
        learned = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    atomic_write(folder / LEARNED, save(learned))


@torch.no_grad()
def restore(model: Any, folder: Path, world: World) -> bool:
    """Loads the trained tensors of `save_model` into a model with the same adapters, which `world` may hold in
    parts; False if it has none.

    Raises:
        ValueError: if other parameters learn in it.
    """
    if not lora.adapters(model):
        return False
    file, ours = SafeTensors(inside(folder, LEARNED)), {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name in sorted(set(ours) ^ set(file.names())):
        raise ValueError(f"{folder}: {name!r} {'is missing' if name in ours else 'is not trained in this model'}")
    for name, tensor in world.shard({name: file.get(name) for name in ours}, dict(ours)).items():
        ours[name].copy_(tensor)
    return True


def _stacked(layers: list[Any]) -> tuple[dict[str, Tensor], int, float, list[int]]:
    """Our layers, adapted or not, as one matrix of theirs: its tensors, its rank, its alpha, the rank of each part."""
    adapted = [layer for layer in layers if isinstance(layer, LoraLinear)]
    scale = adapted[0].scale
    a = torch.cat([layer.lora_a for layer in adapted])  # (R, I)
    b = torch.block_diag(*(
        layer.lora_b * (layer.scale / scale) if isinstance(layer, LoraLinear) else a.new_zeros(layer.out_features, 0)
        for layer in layers
    ))  # (O, R)  # fmt: skip
    parts = {"lora_A.weight": a, "lora_B.weight": b}
    if isinstance(adapted[0], DoraLinear):
        parts["lora_magnitude_vector"] = torch.cat([
            layer.lora_m if isinstance(layer, DoraLinear) else DoraLinear.lengths(_full(layer.weight)).to(a.dtype)
            for layer in layers
        ])  # (O,)  # fmt: skip
    each = [len(layer.lora_a) if isinstance(layer, LoraLinear) else 0 for layer in layers]
    return parts, len(a), scale * len(a), each


def _full(weight: Tensor | Nf4) -> Tensor:
    return (
        weight.dequantised() if isinstance(weight, Nf4) else weight.to(torch.promote_types(weight.dtype, torch.float))
    )


def _learned_beside(model: Any, published: Words, tensors: dict[str, Tensor]) -> list[str]:
    """Adds to `tensors` the modules that learned in full; returns their names."""
    ours = model.state_dict()
    beside = {n for n, p in model.named_parameters() if p.requires_grad and n.rpartition(".")[2] not in lora.OWN}
    modules: list[str] = []
    for link in (*published.table, *published.tied):  # one weight here, several modules there, which all get it
        if not beside.intersection(link.ours):
            continue
        module, _, last = published.name(link).rpartition(".")
        if last not in ("weight", "bias") or len(link.theirs) > 1 or f"{PREFIX}{module}.lora_A.weight" in tensors:
            raise ValueError(
                f"{link.ours[0]} is trained beside the adapters, and PEFT's files can hold only whole modules"
            )
        modules += [] if module in modules else [module]
    for link in (*published.table, *published.tied):
        if published.name(link).rpartition(".")[0] in modules:
            tensors[PREFIX + published.name(link)] = link.write(ours)[link.theirs[0]].clone()
    return modules


@torch.no_grad()
def read(model: Any, folder: str | Path) -> dict[str, LoraLinear]:
    """Puts the adapters of a folder, written here or by PEFT, into the model that they were made for.

    All other weights are frozen, as after `lora.add`.

    Returns:
        The adapted layers by path.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: naming the key or tensor that is not known here, has no place in the model, or another shape;
            nothing has changed then.
    """
    folder = Path(folder)
    if lora.adapters(model):
        raise ValueError("the model has adapters already; lora.merge(model) first")
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        raise FileRefused(
            f"{folder}: the adapters are a pickle ({PICKLE}), which can run code; convert it to {WEIGHTS}"
        )
    config, file = read_config(folder), SafeTensors(inside(folder, WEIGHTS))
    published, stacked = words(model), _ranks(file)
    places, beside, named = published.matrices(), {}, set[str]()
    parts: dict[str, dict[str, Tensor]] = {}
    for name in file.names():
        if not name.startswith(PREFIX):
            raise FileRefused(f"{folder / WEIGHTS}: tensor {name!r} does not begin with {PREFIX!r}")
        match = PART.fullmatch(short := name.removeprefix(PREFIX))
        named |= {match[3]} if match and match[3] else set(WHOLE.findall(short))
        if match:
            parts.setdefault(match[1], {})[match[2]] = file.get(name)
        elif ".original_module." not in short:  # what the base has
            beside[WHOLE.sub("", short)] = file.get(name)
    if len(named) > 1:
        raise FileRefused(
            f"{folder / WEIGHTS} holds several adapters, {', '.join(sorted(named))}; one file is one adapter"
        )
    made: dict[str, LoraLinear] = {}
    for name, tensors in parts.items():
        if name not in places:
            raise ValueError(f"{folder}: the model cannot take an adapter at {name!r}{nearest(name, list(places))}")
        paths = [o.removesuffix(".weight") for o in places[name].ours]
        layers = [model.get_submodule(path) for path in paths]
        each = _apart(f"{folder}: {name}", layers, tensors, config, alpha_of(config, name), stacked.get(name))
        made |= {path: adapter for path, adapter in zip(paths, each, strict=True) if adapter is not None}
    modules = {published.name(link).rpartition(".")[0] for link in (*published.table, *published.tied)}
    compare(f"{folder}", config, places, modules, parts, beside)
    whole = _whole_modules(model, published, dict(beside), folder)
    for path, adapter in made.items():
        replace(model, path, adapter)
    model.requires_grad_(False)
    for adapter in made.values():
        for parameter in lora.own(adapter).values():
            parameter.requires_grad_(True)
    held = dict(model.named_parameters())
    for path, tensor in whole.items():
        held[path].copy_(tensor)
        held[path].requires_grad_(True)
    if model.ledger is not None:
        model.ledger.files[CONFIG] = account(config)
    return lora.adapters(model)


def _ranks(file: SafeTensors) -> dict[str, list[int]]:
    """Rows of A of each adapter, where this library stacked them."""
    try:
        ranks = json.loads(file.metadata.get("stacked", "{}"))
    except ValueError:
        return {}
    return ranks if isinstance(ranks, dict) else {}


def _apart(
    where: str, layers: list[Any], tensors: dict[str, Tensor], config: dict[str, Any], alpha: float, stacked: Any
) -> list[LoraLinear | None]:
    """The adapter of one matrix of theirs as one for each of our layers; None for a layer that it leaves alone."""
    wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if config.get("use_dora") else set())
    if set(tensors) != wanted:
        raise ValueError(f"{where} has {', '.join(sorted(tensors))}; expected {', '.join(sorted(wanted))}")
    a, b, rows = tensors["lora_A"], tensors["lora_B"], [layer.out_features for layer in layers]
    rank = a.shape[0]
    shapes = {
        "lora_A": (rank, layers[0].in_features),
        "lora_B": (sum(rows), rank),
        "lora_magnitude_vector": (sum(rows),),
    }
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name] or not rank:
            raise ValueError(f"{where}.{name} has shape {tuple(tensor.shape)}, the model needs {shapes[name]}")
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    kind = DoraLinear if config.get("use_dora") else LoraLinear
    ours: list[LoraLinear | None] = []
    for i, (layer, part) in enumerate(zip(layers, b.split(rows), strict=True)):
        keep = _columns(b.split(rows), stacked, i)
        if keep.start == keep.stop and kind is LoraLinear:  # DoRA's has a length all the same
            ours.append(None)
            continue
        small = a[keep]
        adapter = kind(layer, len(small), scale * len(small), float(config["lora_dropout"]))
        adapter.lora_a.copy_(small)
        adapter.lora_b.copy_(part[:, keep])
        if isinstance(adapter, DoraLinear):
            adapter.lora_m.copy_(tensors["lora_magnitude_vector"].split(rows)[i])
        ours.append(adapter)
    return ours


def _columns(parts: tuple[Tensor, ...], stacked: Any, i: int) -> slice:
    """The columns of B that part i uses: its own where the adapters were stacked here, else all."""
    rank = parts[0].shape[1]
    if not isinstance(stacked, list) or len(stacked) != len(parts) or not all(type(n) is int for n in stacked):
        return slice(0, rank)
    ends = [sum(stacked[: j + 1]) for j in range(len(stacked))]
    own = slice(ends[i] - stacked[i], ends[i])
    outside = torch.cat((parts[i][:, : own.start], parts[i][:, own.stop :]), 1)
    return own if min(stacked) >= 0 and ends[-1] == rank and not outside.any() else slice(0, rank)


def _whole_modules(model: Any, published: Words, beside: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The modules that were trained in full, by our paths.

    Raises:
        ValueError: naming the module, if it has no place, or PEFT has made two weights of one that is tied here.
    """
    table = {published.name(link): link for link in published.table if len(link.theirs) == 1}
    ours = dict(model.named_parameters())
    names = {o: name for name, link in table.items() for o in link.ours}
    tied = {published.name(link): names[link.ours[0]] for link in published.tied if link.ours[0] in names}
    for other, main in tied.items():
        both = [beside[name] for name in (main, other) if name in beside]
        if len(both) == 1 or (len(both) == 2 and not torch.equal(*both)):
            raise ValueError(
                f"{folder}: {main!r} and {other!r} are one weight in this model, and the adapter trained one without "
                "the other; load the model with tied=False, which separates them"
            )
        if other in beside:
            beside.setdefault(main, beside[other])
            del beside[other]
    tensors: dict[str, Tensor] = {}
    for name, tensor in beside.items():
        if name not in table:
            raise ValueError(f"{folder}: tensor {name!r} is not in the model{nearest(name, list(table))}")
        if any(o not in ours for o in table[name].ours):
            raise ValueError(f"{folder}: {name!r} is held in 4 bits in this model; load it without")
        shapes = [tuple(ours[o].shape) for o in table[name].ours]
        tensors |= dict(zip(table[name].ours, table[name].read([tensor], shapes), strict=True))
    return tensors
