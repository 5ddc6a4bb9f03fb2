"""Items 4 and 5: every hyperparameter and every option does something; published sizes have their counts."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import random
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from anyformer.contract.check import LeftOut, check
from anyformer.contract.numbers import FEW, LONG
from anyformer.contract.oracle import available, build
from anyformer.contract.probe import Batch, draw, expect, outputs
from anyformer.contract.subjects import Subject, apart, compositions, redrawn, subjects, weights
from anyformer.core import hyper, pages
from anyformer.core.recipe import Recipe
from anyformer.core.value import Value
from anyformer.hub.tables.weights import links
from anyformer.media.patterns import PATTERNS
from anyformer.parts.approximate.linear import FEATURES
from anyformer.parts.attention.kernels import KERNELS
from anyformer.parts.codes import DRAWS
from anyformer.parts.ffn import ACTIVATIONS
from anyformer.parts.series.laws import LAWS
from anyformer.parts.series.window import SCALINGS

# Options that must not change any number: their effect, and the check of it.
NO_NUMBER = {
    ("Attention", "kernel"): "how attention is computed; that all kernels agree is item 9",
    ("GlobalAttention", "kernel"): "as that of Attention",
    ("BlockSparse", "kernel"): "as that of Attention",
    ("LatentAttention", "kernel"): "as that of Attention",
    ("MediaAttention", "kernel"): "as that of Attention",
    (
        "Interleaved",
        "placeholder",
    ): "which tokens stand for pictures; in examples a mask says it: tests/hub/test_flamingo.py",
    ("TurnedInput", "kernel"): "as that of Attention",
    ("TurnedInput", "heads"): "as those of Attention; the frequencies in its files fit heads of one width",
    ("TimeBatchNorm", "momentum"): "how the running means follow; tests/parts/test_conformer.py",
    ("TurnedAttention", "kernel"): "as that of Attention",
    ("LayerScale", "start"): "first weights; tests/parts/test_norms.py",
    ("Books", "commitment"): "weight of a loss of training; tests/parts/test_codec.py",
    ("Codec", "rate"): "how many samples are a second, for bandwidths and files; tests/parts/test_codec.py",
    ("Composer", "pattern"): "how codes are laid out before they enter; tests/generate/test_composing.py",
    ("Composer", "stereo"): "which codes are of which channel, behind the network; tests/generate/test_composing.py",
    ("StagedLM", "layout"): "which ids are whose; tests/generate/test_cascade.py",
    **{
        ("Layout", name): "as the layout of StagedLM; the sizes of its tables are those of Tokens and Logits"
        for name in ("stage", "text", "semantic", "codes", "coarse", "fine")
    },
    ("Delay", "together"): "as the pattern of Composer",
    ("ConvGrid", "image"): "the usual size of pictures, for examples and training",
    ("Autoencoder", "mean"): "the scale of `decode`; tests/parts/test_dalle.py",
    ("Autoencoder", "std"): "as its mean",
    ("BlockSparse", "planned"): "which blocks texts of 1024 tokens and more draw: tests/parts/test_blocksparse.py",
    ("Mamba", "chunk"): "how the recurrence is computed; that it does not matter is item 10",
    ("Mamba2", "chunk"): "as that of Mamba",
    ("LinearAttention", "chunk"): "as that of Mamba",
    ("Favor", "chunk"): "as that of Mamba",
    ("GatedDelta", "chunk"): "as that of Mamba",
    ("Block", "gain"): "first weights; tests/parts/test_block.py",
    ("ProteinTokens", "theta"): "first values of a stored buffer; tests/parts/test_proteins.py",
    ("Folder", "lines"): "how many rows of pairs attention takes at a time; tests/parts/test_folding.py",
    ("DualTower", "scale"): "first weights; tests/hub/test_clip.py",
    ("ChunkedMLP", "chunk"): "the tokens that are computed at a time; that it does not matter is item 10",
    (
        "CTC",
        "blank",
    ): "the symbol that stands for none, in the loss and in reading; tests/train/test_sound_objectives.py",
    **{
        (kind, name): "how passages are found and written in front of a question; tests/know/test_reader.py"
        for kind in ("RagToken", "RagSequence")
        for name in ("passages", "longest", "prefix", "titled", "between")
    },
    ("EncoderDecoder", "begin_id"): "the token that `generate` begins a target with",
}
WORDS = {
    "act": tuple(ACTIVATIONS),
    "feature": tuple(FEATURES),
    "kernel": KERNELS,
    "wiring": ("pre", "post", "sandwich", "parallel"),
    "pairs": ("half", "adjacent"),
    "draws": (*DRAWS, "few", "many"),
    "law": tuple(LAWS),
    "scaling": SCALINGS,
    "scaler": SCALINGS,
    "attention": ("prob", "full"),
    "pattern": tuple(PATTERNS),
}


def recorder(config: Any) -> tuple[Any, set[str]]:
    """The same hyperparameters, and a set that collects the dotted names of those read."""
    seen: set[str] = set()
    return _recorder(config, seen, ""), seen


def _recorder(config: Any, seen: set[str], where: str) -> Any:
    held = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    inner = {n: v for n, v in held.items() if dataclasses.is_dataclass(v) and not isinstance(v, Value)}

    class Recorder(type(config)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            if name in held and name not in inner:
                seen.add(where + name)
            return super().__getattribute__(name)

    proxy = object.__new__(Recorder)
    proxy.__dict__.update(held | {n: _recorder(v, seen, f"{where}{n}.") for n, v in inner.items()})
    return proxy


@check(4, "page")
def every_hyperparameter_is_read(name: str) -> float:
    """Building the recipes of `tiny` and all cases reads every hyperparameter."""
    page = pages.page(name)
    read: set[str] = set()
    for subject in subjects(name):
        proxy, seen = recorder(subject.config)
        expect(page.recipe(proxy) == subject.recipe, f"{subject}: the recipe depends on more than the hyperparameters")
        read |= seen
    unread = hyper.kinds(page.config).keys() - read
    expect(not unread, f"unused hyperparameters: {sorted(unread)}")
    return 0.0


@check(4, "page")
def every_hyperparameter_changes_the_recipe(name: str) -> float:
    """For each hyperparameter there is a case in which another value gives another recipe."""
    page, drawn = pages.page(name), [s.config for s in subjects(name)]
    idle = []
    sizes = [hyper.leaves(c) for c in (*drawn, *page.sizes.values())]
    for leaf, kind in hyper.kinds(page.config).items():
        values: list[Any] = list(dict.fromkeys(leaves[leaf] for leaves in sizes if leaf in leaves))
        word = leaf.rpartition(".")[2]
        others = dict.fromkeys([*values, *(o for v in values for o in alternatives(word, v, str(kind)))])
        if not any(changes(page, config, leaf, other) for config in drawn for other in others):
            idle.append(leaf)
    expect(not idle, f"no value of {idle} changes the recipe: drop it, or add a case to CASES in which it does")
    return 0.0


def changes(page: pages.Page, config: Any, name: str, value: Any) -> bool:
    """True if this value of a hyperparameter gives another recipe."""
    try:
        return page.recipe(hyper.changed(config, {name: value})) != page.recipe(config)
    except (ValueError, TypeError, KeyError):  # a value that the page refuses
        return False


def alternatives(name: str, value: Any, declared: str) -> list[Any]:
    """Other values of an option, by its value or, if that is None, by its declared type."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value * 2, max(1, value // 2), max(0, value - 1)]
        case float():
            return [value * 2 + 0.5, value / 2, 0.25]
        case str():
            return [w for w in WORDS.get(name, ()) if w != value]
        case None:
            kinds: dict[str, list[Any]] = {"int": [2, 1, 3], "float": [0.5], "bool": [True, False]}
            return [v for kind, values in kinds.items() if kind in declared for v in values]
    return []


def declared(owner: Recipe | Value, option: str) -> str:
    """The declared type of an option, as text."""
    if isinstance(owner, Recipe):
        return declared_types(owner.part)[option]
    return str(next(f.type for f in dataclasses.fields(owner) if f.name == option))  # type: ignore[arg-type]


@functools.cache
def declared_types(part: type) -> dict[str, str]:
    """The declared types of a part's options, as text."""
    parameters = inspect.signature(part.__init__).parameters  # type: ignore[misc]
    return {name: str(parameter.annotation) for name, parameter in parameters.items()}


@check(4, "page")
def every_option_has_an_effect(name: str) -> float:
    """Another value of each option of each part in the page's recipes changes parameters, outputs or accepted inputs.
    An option is proved on the first page with it only."""
    own = held(name) - held_before(name)
    if not own:
        raise LeftOut("every option of its parts is checked on an earlier page")
    wanted = own - NO_NUMBER.keys()
    shown: dict[tuple[str, str], bool] = {}
    near = subjects(name)  # for options with an effect only beside another one: `Logits.vocab` of an untied head
    elsewhere = [s for other in pages.names() if other != name for s in subjects(other) if not s.light]
    for drawn in ([s for s in near if not s.light], [*(s for s in near if s.light), *compositions()], elsewhere):
        shown |= effects(drawn, {key for key in wanted if not shown.get(key)})
    idle = [key for key, acts in shown.items() if not acts]
    expect(not idle, f"no other value of {sorted(idle)} has any effect: drop it, or add a case to CASES that uses it")
    return 0.0


def held_before(name: str) -> frozenset[tuple[str, str]]:
    """The options of parts that earlier pages hold."""
    earlier = pages.names()[: pages.names().index(name)]
    return frozenset().union(*map(held, earlier))


@functools.cache
def held(name: str) -> frozenset[tuple[str, str]]:
    """The options of parts that a page holds in any case."""
    return frozenset(key for subject in subjects(name) for key in keys(subject.recipe))


def keys(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The options in a recipe that hold no parts themselves: (part or value, option)."""
    for _, owner, option, value in options(recipe):
        if not isinstance(value, Recipe | tuple | dict):
            yield key_of(owner, option)


def key_of(owner: Recipe | Value, option: str) -> tuple[str, str]:
    """The name of an option: of its part or value, and its own."""
    return type(owner).__name__ if isinstance(owner, Value) else owner.part.__name__, option


def choices(key: tuple[str, str]) -> list[Any]:
    """The values of an option anywhere, and recipes of any part under that name."""
    return [*harvest().get(key, ()), *harvest().get(("", key[1]), ())]


def effects(drawn: list[Subject], wanted: set[tuple[str, str]]) -> dict[tuple[str, str], bool]:
    """The wanted options with another value; True for those with an effect in one of these recipes."""
    acts: dict[tuple[str, str], bool] = {}
    for subject in drawn if wanted else ():
        for path, owner, option, value in options(subject.recipe):
            key = key_of(owner, option)
            if key not in wanted or acts.get(key) or isinstance(value, Recipe | tuple | dict):
                continue
            others = [*alternatives(option, value, declared(owner, option)), *choices(key)]
            seen, others = fingerprint(subject, subject.recipe), [o for o in others if o != value]
            if others:
                acts[key] = any(
                    differ(seen, fingerprint(subject, other)) for other in edited(subject.recipe, path, others)
                )
    return acts


@functools.cache  # each page asks for those of all others
def options(recipe: Recipe) -> list[tuple[str, Any, str, Any]]:
    """Every option in a recipe: (path, owner, option, value); of equal neighbours, only the first."""
    found: list[tuple[str, Any, str, Any]] = []
    owners: dict[str, Any] = {"": recipe} | dict(recipe.walk())
    done: set[tuple[Any, ...]] = set()
    for path, value in recipe.walk():
        above, _, option = path.rpartition(".")
        owner = owners[above]
        kind = (above.rpartition(".")[2], option, repr(owner))
        if isinstance(owner, Recipe | Value) and kind not in done:
            done.add(kind)
            found.append((path, owner, option, value))
    return found


@functools.cache
def harvest() -> dict[tuple[str, str], list[Any]]:
    """The values of each option anywhere; under ("", option) also the recipes and values in it in any part."""
    values: dict[tuple[str, str], list[Any]] = {}
    for subject in (*(s for name in pages.names() for s in subjects(name)), *compositions()):
        for _, owner, option, value in options(subject.recipe):
            key = key_of(owner, option)
            for place in (key, ("", option)) if isinstance(value, Recipe | Value) else (key,):
                if not isinstance(value, tuple | dict) and value not in values.setdefault(place, []):
                    values[place].append(value)
    return values


def edited(recipe: Recipe, path: str, values: list[Any]) -> Iterator[Recipe]:
    """The recipe with each of these values at a path."""
    for value in values:
        try:
            yield recipe.but({path: value})
        except (ValueError, TypeError):
            continue


Print = tuple[dict[str, tuple[int, ...]], list[Any]]


@functools.lru_cache(maxsize=20_000)
def fingerprint(subject: Subject, recipe: Recipe) -> Print | None:
    """The shapes of all stored tensors, and the outputs for a few inputs; None if the model cannot be built."""
    try:
        torch.manual_seed(0)
        with warnings.catch_warnings(action="ignore"):  # torch warns of matrices of size 0, which are intended here
            model = redrawn(recipe.build())
    except (ValueError, TypeError, RuntimeError, AttributeError, AssertionError):
        return None
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    rng = random.Random(7)
    most = FEW if subject.outline.pairs else LONG
    long = draw(subject, rng, [min(subject.limit or most, most)])
    padded = draw(subject, rng, [9, 5], "left")
    results = [result(model.eval(), long), result(model, draw(subject, rng, [5]).plain()), result(model, padded)]
    return shapes, [*results, result(model.train(), long)]


def result(model: Any, batch: Batch) -> dict[str, bytes] | str | None:
    """The bits of all outputs, or the message of the refusal, or None if the parts do not fit each other."""
    torch.manual_seed(1)
    try:
        with torch.no_grad():
            return {n: digest(v) for n, v in outputs(model(**batch.inputs)).items()}
    except ValueError as error:
        return str(error)
    except (RuntimeError, IndexError):
        return None


def digest(value: Tensor) -> bytes:
    """The shape and the bits of a tensor, in a few bytes."""
    bits = (value + 0.0).reshape(-1).contiguous().view(torch.uint8)
    return hashlib.sha256(repr(tuple(value.shape)).encode() + bits.numpy().tobytes()).digest()


def differ(one: Print | None, other: Print | None) -> bool:
    """True if two fingerprints differ, both of models that can be built."""
    if one is None or other is None:
        return False
    return one[0] != other[0] or any(not alike(a, b) for a, b in zip(one[1], other[1], strict=True))


def alike(a: Any, b: Any) -> bool:
    """True if two results are the same, bit for bit, or both refusals, or if either is None."""
    return a is None or b is None or (isinstance(a, str) and isinstance(b, str)) or a == b


@check(5, "page")
def published_parameter_counts(name: str) -> float:
    """Every size has the number of parameters that its page states (as published), counted without memory."""
    page = pages.page(name)
    for size, stated in page.module.PARAMETERS.items():
        counted = total(pages.empty(page.recipe(page.at(size))))
        expect(counted == stated, f"{size} has {counted:,} parameters, the page states {stated:,}")
    return 0.0


@check(5, "page", oracle=True)
def parameter_counts_match_the_oracle(name: str) -> float:
    """Two published sizes have as many parameters as in `transformers`; constants that both hold are not counted."""
    from anyformer.contract.subjects import hubs

    page = pages.page(name)
    if apart(name):
        raise LeftOut("transformers lacks the page; its ORACLE states the comparison instead")
    for size in [s for s in page.sizes if s not in ("tiny", "mini")][:2]:
        config = page.at(size)
        subject = Subject(f"{name}/{size}", page.recipe(config), name, config)
        expect(available() and bool(hubs(subject)), f"no oracle for {size}")
        with torch.device("meta"):
            theirs = build(subject, hubs(subject)[0])
        model = pages.empty(subject.recipe)
        frozen = {n for n, p in theirs.named_parameters() if not p.requires_grad}  # sines that files store
        stored = model.state_dict()
        table = links(hubs(subject)[0].weights(config), stored) if frozen else []
        constants = [link.ours for link in table if frozen.issuperset(link.theirs)]
        ours, there = (sum(t.numel() for t in weights(m)) for m in (model, theirs))
        ours -= sum(stored[name].numel() for names in constants for name in names)
        expect(ours == there, f"{size} has {ours:,} parameters here, {there:,} in transformers")
    return 0.0


def total(model: Any) -> int:
    """The number of parameters, shared ones once, without constants."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
