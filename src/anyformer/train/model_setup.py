"""A model prepared for a task: head of classes, image processor, adapters, trainable parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from anyformer.compress import nf4
from anyformer.core import pages
from anyformer.core.recipe import Recipe
from anyformer.core.rewrite import select
from anyformer.data.vocabulary import letters
from anyformer.hub.noising import FlowMatching
from anyformer.hub.processors import ImageProcessor, assumed, from_scratch, trained
from anyformer.parts import CTC, MLP, Attention, Block, Classifier, First, LayerNorm, Learned, Mean, Tokens
from anyformer.skeletons.denoiser import Denoiser
from anyformer.skeletons.encoder import Encoder
from anyformer.skeletons.painter import Painter
from anyformer.train import adapters, lora, master_weights

INSIDE = ("**.blocks.**",)  # every layer, but neither tables nor heads
LONGEST = 64  # tokens of a text beside a picture
HEAD = "classes"  # the name of a head of classes
ENDS = {  # names of published architectures with such a head
    "classify": "ForSequenceClassification", "tag": "ForTokenClassification", "images": "ForImageClassification",
}  # fmt: skip


def with_classifier(base: Any, task: str, names: Sequence[str], seed: int) -> tuple[Any, list[str]]:
    """An encoder with a head for these classes, as published files of its page have it where they do.

    A head for the same classes, by name, stays; another one makes room.

    Args:
        task: classify: of the whole text; tag: of each token; images: of the whole image.

    Returns:
        The model, and the paths of the parameters that have first weights.
    """
    torch.manual_seed(seed)
    recipe: Any = base.recipe
    published, words = _published(base, ENDS[task]), {str(i): name for i, name in enumerate(names)}
    if published is None:
        each = task == "tag"
        pool = None if each else recipe["pool"] or First.of()
        heads = {HEAD: Classifier.of(classes=len(names), each=each)}
        model = pages.build(recipe.but({"heads": heads, "pool": pool}), seed=seed)
    else:
        fixed, field = published
        hyper = dataclasses.replace(base.config, **fixed, **{field: len(names)})
        model = pages.build(pages.page(base.page).recipe(hyper), seed=seed)
        model.page, model.config = base.page, hyper
    return _carried(base, model, words, published is not None)


def with_things(base: Any, names: Sequence[str], seed: int) -> tuple[Any, list[str]]:
    """A model that finds things, with a head for these classes and "no object" behind them.

    A head for the same classes, by name, stays; another one makes room. Published files keep their form.

    Returns:
        The model, and the paths of the parameters that have first weights.
    """
    count, words = len(names), {str(i): name for i, name in enumerate(names)}
    own = base.page is not None and pages.page(base.page).recipe(base.config) == base.recipe
    if own:
        hyper = dataclasses.replace(base.config, classes=count)
        model = pages.build(pages.page(base.page).recipe(hyper), seed=seed)
        model.page, model.config = base.page, hyper
    else:
        model = pages.build(base.recipe.but({f"heads.{HEAD}.classes": count + 1}), seed=seed)
    return _carried(base, model, words, own)


def _carried(base: Any, model: Any, words: dict[str, str], published: bool) -> tuple[Any, list[str]]:
    """`model` with what it shares with `base`: weights, types, files beside them; and the paths of what is new.

    Args:
        words: number of a class, as text -> its name. published: the files of its page can hold it.
    """
    names = list(words.values())
    before = (base.origin or {}).get("config", {})
    config = {} if not published else {k: v for k, v in before.items() if k not in ("architectures", "num_labels")}
    labels = {"id2label": words, "label2id": {name: i for i, name in enumerate(names)}}
    model.origin = {**(base.origin or {}), "config": {**config, **labels} if config else {}, "classes": names}
    model.tokenizer, model.processor = base.tokenizer, base.processor
    same = before.get("id2label") == words
    types = {n: t.dtype for n, t in base.state_dict().items()}
    like = next(base.parameters()).dtype
    master_weights.restore_types(
        model, {n: types.get(n, like) for n, t in model.state_dict().items() if t.is_floating_point()}
    )
    mine = model.state_dict()
    known = {
        n: t for n, t in base.state_dict().items()
        if n in mine and t.shape == mine[n].shape and (same or not n.startswith(f"heads.{HEAD}."))
    }  # fmt: skip
    model.load_state_dict(known, strict=False)
    return model, [n for n, _ in model.named_parameters() if n not in known]


def with_letters(base: Any, texts: Iterable[str], seed: int) -> tuple[Any, list[str]]:
    """A model of speech with a new CTC head for the letters of these texts, and the parameters that are new.

    A page that has such a head (task=ctc) keeps being that page; else the head is the only one of the recipe.
    """
    tokenizer = letters(texts)
    sizes = {"vocab": tokenizer.vocab_size, "blank": tokenizer.pad_id}
    fields = set() if base.page is None else {f.name for f in dataclasses.fields(base.config)}
    if fields >= {"task", *sizes}:
        hyper = dataclasses.replace(base.config, task="ctc", **sizes)
        model = pages.build(pages.page(base.page).recipe(hyper), seed=seed)
        model.page, model.config = base.page, hyper
    else:
        model = pages.build(base.recipe.but({"heads": {"ctc": CTC.of(**sizes)}}), seed=seed)
    model.tokenizer, model.processor = tokenizer, base.processor
    gone = ("architectures", "vocab_size", *tokenizer.ids())
    before = (base.origin or {}).get("config", {})
    model.origin = {**(base.origin or {}), "config": {k: v for k, v in before.items() if k not in gone}}
    mine = model.state_dict()
    known = {n: t for n, t in base.state_dict().items() if n in mine and t.shape == mine[n].shape}
    model.load_state_dict(known, strict=False)
    return model, [n for n, _ in model.named_parameters() if n not in known]


def with_processor(model: Any) -> Any:
    """A model of images or sounds with its processor; one of images without it gets ours: its own size (where it has
    one), bytes to -1 … 1; one of sounds the published one.
    Saving keeps it. A new model that makes images of noise gets flow matching, too.

    Raises:
        ValueError: for a model of images from files that do not say how its images became noise.
    """
    if "timestep" in model.inputs() and model.noising is None:
        if model.ledger is not None:
            raise ValueError(
                f"{model.ledger.path} has no scheduler_config.json, so it is unknown how its images became noise in "
                "training; copy it there (diffusers keeps it in the folder scheduler)"
            )
        model.noising = FlowMatching()
    if model.processor is None and "pixel_values" not in model.inputs():
        model.processor = assumed(model)  # of sounds
    if model.processor is None and "pixel_values" in model.inputs():
        front = next(e.front for e in model.entrances() if e.front.main == "pixel_values")
        hubs = () if model.page is None else pages.page(model.page).module.HUBS
        kind = next((hub.processor for hub in hubs if hub.processor), ImageProcessor.kind)
        one_size = hasattr(front, "image")
        model.processor = (
            trained(kind, front.image, front.image, front.channels) if one_size else from_scratch(front.channels)
        )
    return model


def with_text(recipe: Recipe, vocab: int) -> Recipe:
    """A denoiser of texts with a small encoder of text that learns with it, where `recipe` is one; else `recipe`.

    The encoder is as wide as the states that the denoiser reads: two blocks, 64 tokens, the mean as the text's vector.
    """
    if not issubclass(recipe.part, Denoiser) or recipe["text"] is None:
        return recipe
    wide, vector = recipe["text"].width, recipe["conditions.text"].width
    if wide != vector:
        raise ValueError(
            f"the text's states are {wide} wide and its vector {vector}; one encoder makes both, so both must be the "
            "same: set overrides.text and overrides.pooled"
        )
    norm, heads = LayerNorm.of(), max(1, wide // 64)
    block = Block.of(mixer=Attention.of(heads=heads, bias=True), ffn=MLP.of(), norm=norm)
    # tokens of size 1: small ones look alike beside the blocks' sums, and many seeds learn one picture for all texts
    embed = Tokens.of(vocab=vocab, positions=Learned.of(context=LONGEST), scale=wide**0.5)
    text = Encoder.of(wide, embed, [block] * 2, norm=norm, pool=Mean.of(), context=LONGEST)
    return Painter.of(text, recipe)


def _published(model: Any, ending: str) -> tuple[Any, str] | None:
    """Hyperparameters of the page's files with such a head, and the name of the one that counts the classes."""
    if model.page is None or pages.page(model.page).recipe(model.config) != model.recipe:
        return None
    for hub in pages.page(model.page).module.HUBS:
        fields = [f for entry in hub.config if "id2label" in entry.names for f in entry.fields]
        for architecture, fixed in hub.architectures.items():
            if architecture.endswith(ending) and fields:
                return fixed, fields[0]
    return None


def add_adapters(model: Any, method: str, targets: Sequence[str], rank: int, alpha: float, dropout: float) -> str:
    """Prepares a model for a method: qlora puts its layers into 4 bits; lora, dora and qlora add adapters. By default
    every layer of a block gets one, but for those that published files hold interleaved with others (ESMFold's queries,
    keys and values), whose adapters no file could name.

    Returns:
        A summary, in a line.
    """
    quantised = str(nf4.quantise(model, INSIDE)) + "; " if method == "qlora" else ""
    if method == "full":
        return "all of it"
    if tuple(targets) == INSIDE:
        apart = {path for link in adapters.words(model).matrices().values() for path in link.ours}
        inside = select(model, *INSIDE, kind=(nn.Linear, nf4.Nf4Linear))
        targets = [path for path in inside if f"{path}.weight" in apart] or targets
    made = lora.add(model, rank, alpha, targets, dropout, dora=method == "dora")
    return f"{quantised}{method} of rank {rank} on {len(made)} layers"


def set_trainable(model: nn.Module, patterns: Sequence[str], alone: bool) -> None:
    """Makes the parameters at and below the paths trainable.

    Args:
        patterns: of modules (see `core.rewrite.select`), or paths of parameters: `heads.**`, `blocks.-1.**`.
        alone: all others are frozen.

    Raises:
        ValueError: for a pattern without a parameter, with the nearest paths; nothing has changed then.
    """
    named, chosen = dict(model.named_parameters()), []
    for pattern in patterns:
        if pattern in named:
            chosen.append(named[pattern])
            continue
        below = [p for module in select(model, pattern, kind=nn.Module).values() for p in module.parameters()]
        if not below:
            raise ValueError(f"nothing at {pattern!r} can be trained: there are no parameters")
        chosen += below
    if alone:
        model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
