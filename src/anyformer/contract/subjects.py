"""The subjects of the contract: every page at `tiny` and in all its `CASES`, compositions without a page, checkpoints.

A subject has a recipe and revealing weights: N(0, 0.25) everywhere, because ones hide swapped norms and zeros hide
everything. A checkpoint keeps its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core import pages
from anyformer.core.hyper import changed, leaves
from anyformer.core.recipe import Recipe
from anyformer.core.value import Value
from anyformer.hub.load import NATIVE, WRITTEN
from anyformer.hub.tables import config as tables
from anyformer.hub.tables.weights import Hub
from anyformer.parts import (
    MLP,
    AdditivePool,
    Alibi,
    Convolution,
    ConvPositions,
    Decay,
    Distances,
    ExpertChoice,
    Favor,
    Forget,
    Fourier,
    GatedDelta,
    GatedMLP,
    Hierarchical,
    LatentAttention,
    LayerScale,
    LinearAttention,
    Mamba,
    Mamba2,
    MoE,
    Nystrom,
    Projector,
    Relative,
    RelativeBias,
    RMSNorm,
    Rotary,
    Rotary2D,
    Sines2D,
    SoftCap,
    Span,
    Temperature,
    TopK,
    Window,
    deepnorm,
)
from anyformer.parts.ffn import ACTIVATIONS
from anyformer.parts.grid import RotaryAxes
from anyformer.skeletons.media import Medium
from anyformer.skeletons.spliced import with_media

STD = 0.25


@dataclass(frozen=True)
class Subject:
    """One model under examination.

    Args:
        name: `page/case`, the name of a composition, or the path of a checkpoint.
        recipe: of the model.
        page, config: the page and its hyperparameters, if there is one.
        path, options: of a checkpoint, and its options of `load`: `task`, `ignore`.
        light: a variation in one hyperparameter, drawn automatically: only the numbers (items 1-3) are checked.
    """

    name: str
    recipe: Recipe
    page: str | None = None
    config: Any = None
    path: str | None = None
    light: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def model(self) -> Any:
        """The model, in evaluation mode, shared by all checks; changes need a copy."""
        return _model(self)

    @property
    def outline(self) -> Any:
        """The model on the meta device, for questions about its modules."""
        return _outline(self)

    @property
    def published(self) -> str | None:
        """The `model_type` of a checkpoint in a published format, else None."""
        kind = (self.model.origin or {}).get("hub")
        return None if self.path is None or kind == NATIVE else kind

    @property
    def limit(self) -> int | None:
        """The model's longest text, in tokens; None = any."""
        return self.outline.context

    @property
    def decodes(self) -> bool:
        """True if the model decodes with a cache, unit by unit: tokens of a text, steps of an episode."""
        return self.outline.decodes

    @property
    def writes(self) -> bool:
        """True if the model can continue a text."""
        return self.outline.generates

    @property
    def causal(self) -> bool:
        """True if tokens see only earlier ones, in the last stack."""
        return self.recipe.part.generates

    @property
    def reads_text(self) -> bool:
        """True if the input is token ids."""
        return self.outline.reads_text

    @property
    def has_source(self) -> bool:
        """True if the model reads a source beside its target."""
        return self.outline.reads_source

    def holds(self, kind: type[Recipe] | type[Value] | type) -> bool:
        """True if the recipe holds a part or a value of this class."""
        return any(issubclass(held, kind) for held in _held(self))

    def values(self, kind: type[Value]) -> list[Any]:
        """All values of this class in the recipe, each once."""
        return list(dict.fromkeys(v for _, v in self.recipe.walk() if isinstance(v, kind)))


@functools.cache
def _held(subject: Subject) -> frozenset[type]:
    """The classes of the parts and values in the recipe."""
    found = [value for _, value in subject.recipe.walk()]
    return frozenset(map(type, found)) | {value.part for value in found if isinstance(value, Recipe)}


@functools.cache
def _model(subject: Subject) -> Any:
    if subject.path is not None:
        from anyformer.hub import load

        return load(subject.path, dtype=torch.float32, **subject.options)
    model = subject.recipe.build()
    model.page, model.config = subject.page, subject.config
    return redrawn(model).eval()


@functools.cache
def _outline(subject: Subject) -> Any:
    return subject.model if subject.path is not None else pages.empty(subject.recipe)


def forget() -> None:
    """Frees every model that was made for a check."""
    _model.cache_clear()
    _outline.cache_clear()


@torch.no_grad()
def redrawn(model: nn.Module, seed: int = 0) -> Any:
    """The model with all stored tensors drawn from N(0, STD); positive buffers, such as variances, stay positive."""
    noise = torch.Generator().manual_seed(seed)
    for tensor in weights(model):
        positive = not isinstance(tensor, nn.Parameter) and bool((tensor > 0).all())
        tensor.normal_(0.0, STD, generator=noise)
        if positive:
            tensor.abs_().add_(0.5)
    return model


def weights(model: nn.Module) -> list[Tensor]:
    """The tensors that training or files set: parameters except frozen ones (Marian's sines), and stored buffers."""
    stored = model.state_dict(keep_vars=True)
    buffers = [b for name, b in model.named_buffers() if name in stored and b.is_floating_point()]
    return [*(p for p in model.parameters() if p.requires_grad), *buffers]


@functools.cache
def subjects(name: str) -> list[Subject]:
    """A page at `tiny`, in all its `CASES`, and with each activation and each switch turned, one at a time."""
    page = pages.page(name)
    tiny = page.at("tiny")
    drawn = {"tiny": tiny} | {case: page.at("tiny", **changes) for case, changes in page.module.CASES.items()}
    every = [Subject(f"{name}/{case}", page.recipe(config), name, config) for case, config in drawn.items()]
    for leaf, value in leaves(tiny).items():
        others = (
            [not value] if isinstance(value, bool) else [a for a in ACTIVATIONS if value in ACTIVATIONS and a != value]
        )
        for other in others:
            config = changed(tiny, {leaf: other})
            label = f"{name}/{leaf}={other}"
            every.append(Subject(label, page.recipe(config), name, config, light=True))
    return every


@functools.cache
def compositions() -> list[Subject]:
    """Unpublished models, each one line from a page."""
    third = pages.recipe("llama", "tiny", depth=6).but({"blocks.2::3.mixer": Mamba.of(state=4)})
    bert = pages.recipe("bert", "tiny").but(
        {"embed.positions": None, "blocks.*.mixer.positions": Rotary.of(), "**.norm": RMSNorm.of()}
    )
    vit = pages.recipe("vit", "tiny").but({"blocks.*.mixer.kv_heads": 2})
    near = pages.recipe("bert", "tiny").but({"blocks.*.mixer.mask": Window(3, 2)})
    named = {
        "detr, norms of groups": pages.recipe("detr", "tiny", norm="group", **{"net.widths": (16, 24), "net.stem": 16})
    }
    named |= {"llama, every third block Mamba": third, "bert, rotary and RMSNorm": bert, "vit, grouped heads": vit}
    named["bert, windows"] = near
    mixed = {
        1: GatedDelta.of(heads=4),
        2: Convolution.of(width=5),
        3: LinearAttention.of(heads=4),
        4: Mamba2.of(heads=4),
        5: Hierarchical.of(heads=4, size=2, cells=1, levels=2),
    }
    both = {0: Fourier.of(), 1: Nystrom.of(heads=4, landmarks=5), 2: Convolution.of(width=5)}
    both |= {3: LinearAttention.of(heads=4), 4: Favor.of(heads=4), 5: mixed[5]}
    gpt, bert = pages.recipe("llama", "tiny", depth=6), pages.recipe("bert", "tiny", depth=6, task="masked")
    named["llama, another mixer in each block"] = gpt.but({f"blocks.{i}.mixer": m for i, m in mixed.items()})
    named["bert, another mixer in each block"] = bert.but({f"blocks.{i}.mixer": m for i, m in both.items()})
    latent = {1: LatentAttention.of(heads=4, kv_rank=12, nope_dim=6, mask=Window(4))}
    latent[2] = LatentAttention.of(heads=2, kv_rank=20, q_rank=10, rope_dim=4, value_dim=24, bias=True)
    three = pages.recipe("llama", "tiny", depth=3)
    named["llama, attention over latents"] = three.but({f"blocks.{i}.mixer": m for i, m in latent.items()})
    router, expert = TopK.of(experts=4, top=2, capacity=3, factor=1.0, z=0.01), GatedMLP.of(hidden=20)
    places = pages.recipe("llama", "tiny").but({"blocks.*.ffn": MoE.of(router=router, expert=expert, shared=expert)})
    choice = MoE.of(router=ExpertChoice.of(experts=3, factor=1.5, z=0.01), expert=MLP.of(hidden=20))
    named["llama, experts with few places and a shared one"] = places
    named["bert, experts that choose"] = pages.recipe("bert", "tiny").but({"blocks.*.ffn": choice})
    return [Subject(name, recipe) for name, recipe in (named | scored() | pictured()).items()]


def scored() -> dict[str, Recipe]:
    """Models with other scores, positions and sums than their pages'."""
    scores = {
        0: [Temperature.of(0.7, learned=True), SoftCap.of(4.0)],
        1: [Forget.of()],
        2: [Span.of(far=9, ramp=3), Decay.of(0.2)],
        3: [Distances.of(far=5)],
        4: [Relative.of(far=9)],
    }
    llama = pages.recipe("llama", "tiny", depth=5).but({"blocks.1:.mixer.positions": None})
    llama = llama.but(
        {f"blocks.{i}.mixer.scores": s for i, s in scores.items()} | {"blocks.*.scale": LayerScale.of(0.5)}
    )
    bert = pages.recipe("bert", "tiny").but(
        {"embed.positions": None, "entry": ConvPositions.of(width=4, groups=2), "pool": AdditivePool.of()}
        | {"blocks.0.mixer.scores": [Alibi.of()], "bias": RelativeBias.of(heads=4, buckets=8, far=20)}
        | {f"blocks.*.{name}": value for name, value in deepnorm(2).items()}
    )
    vit = pages.recipe("vit", "tiny").but({"embed.positions": Sines2D.of(), "blocks.*.mixer.positions": Rotary2D.of()})
    return {
        "llama, other scores in each block": llama,
        "bert, convolution, ALiBi, DeepNorm, pooled": bert,
        "vit, sines and rotary on the grid": vit,
    }


def pictured() -> dict[str, Recipe]:
    """Decoders of text that see pictures by the towers of other pages."""
    vit = pages.recipe("vit", "tiny", image=8, patch=4, depth=1).but(heads={})
    clip = pages.recipe("clip", "tiny", text=None).but({"embed.image": 8, "heads": {}})
    turned = vit.but({"embed.positions": None, "blocks.*.mixer.positions": Rotary2D.of()})
    towers = {
        ("llama", "a rotary ViT"): Medium.of(token=3, tower=turned, project=Projector.of(bias=False), cut=1, grid=True),
        ("mamba", "CLIP's tower"): Medium.of(token=999, tower=clip, project=Projector.of(act="relu"), cut=1),
        ("jamba", "a ViT"): Medium.of(token=127, tower=vit),
    }
    named = {f"{text}, pictures by {name}": (text, medium) for (text, name), medium in towers.items()}
    made = {name: with_media(pages.recipe(text, "tiny"), image=medium) for name, (text, medium) in named.items()}
    axes = {"blocks.*.mixer.positions": RotaryAxes.of(sections=(1, 2, 1))}
    return {name: recipe.but(axes) if "llama" in name else recipe for name, recipe in made.items()}


def apart_from_tiny(subject: Subject) -> bool:
    """True for another case of a page than `tiny`."""
    return subject.page is not None and not subject.name.endswith("/tiny")


def whole() -> list[Subject]:
    """`tiny` of each page, then the compositions: the subjects of checks that cost seconds."""
    return [*(subjects(name)[0] for name in pages.names()), *compositions()]


HEAVY = {"compressive/tiny", "reformer/tiny", "alphafold2/tiny", "esmfold/tiny"}  # traces take 12 s and more


@functools.cache
def first_of(kind: type) -> frozenset[str]:
    """The names of the subjects, of `whole` without the heavy ones, that hold a part of this kind in a skeleton for the
    first time."""
    seen: set[tuple[type, type]] = set()
    names = []
    for subject in [s for s in whole() if s.name not in HEAVY]:
        parts = [v.part for _, v in subject.recipe.walk() if isinstance(v, Recipe)]
        pairs = {(subject.recipe.part, part) for part in (*parts, subject.recipe.part) if issubclass(part, kind)}
        if pairs - seen:
            names.append(subject.name)
        seen |= pairs
    return frozenset(names)


def checkpoint(path: str, **options: Any) -> Subject:
    """A user's own model: a folder, a GGUF file or a hub id. Options are those of `load`."""
    from anyformer.hub import load

    model = load(path, dtype=torch.float32, **options)
    folder = model.ledger.path  # a hub id is now a folder
    return Subject(path, model.recipe, model.page, model.config, folder, options=options)


def hubs(subject: Subject) -> list[Hub]:
    """The Hugging Face maps of its page that can express its hyperparameters."""
    return [hub for hub in of_page(subject) if isinstance(_published(subject, hub), tuple)]


def of_page(subject: Subject) -> list[Hub]:
    """The maps of its page to directories that both sides write."""
    return [] if subject.page is None else [h for h in pages.page(subject.page).module.HUBS if h.format in WRITTEN]


def apart(name: str) -> str | None:
    """The reference for the numbers of a page that `transformers` lacks; None for all other pages."""
    module = pages.page(name).module
    return None if any(hub.format in WRITTEN for hub in module.HUBS) else getattr(module, "ORACLE", "")


def words(subject: Subject, hub: Hub) -> tuple[str, dict[str, Any]] | None:
    """The architecture's name and the config file of this subject, or None if these files cannot express it."""
    published = _published(subject, hub)
    return None if isinstance(published, str) else published


def unsaid(subject: Subject) -> dict[str, str]:
    """The Hugging Face maps of its page that cannot express its hyperparameters, with the reasons."""
    published = {hub.name: _published(subject, hub) for hub in of_page(subject)}
    return {name: why for name, why in published.items() if isinstance(why, str)}


def _published(subject: Subject, hub: Hub) -> tuple[str, dict[str, Any]] | str:
    """The result of `words`, or the reason why these files cannot express the subject."""
    for architecture, fixed in hub.architectures.items():
        if all(getattr(subject.config, k) == v for k, v in fixed.items()):
            try:
                return architecture, tables.write(hub.config, subject.config, fixed, {})
            except ValueError as error:
                return str(error)
    return f"none of its architectures ({', '.join(hub.architectures)}) fits these hyperparameters"
