"""Item 21: every public mask and mixer in every role that it is allowed in: padded, in an encoder that a decoder reads,
option by option."""

from __future__ import annotations

import functools
import inspect
import random
from typing import Any

import anyformer.parts as public
from anyformer.contract.behaviour import Decoding
from anyformer.contract.check import ROLES, LeftOut, check
from anyformer.contract.hyper import (
    NO_NUMBER,
    alternatives,
    choices,
    declared,
    differ,
    edited,
    fingerprint,
    options,
)
from anyformer.contract.probe import close, draw, expect, run
from anyformer.contract.subjects import Subject, compositions, subjects
from anyformer.core import pages
from anyformer.core.mixer import Mixer
from anyformer.core.recipe import Recipe, signature
from anyformer.parts import Attention
from anyformer.parts.attention.masks import Causal, Full, Mask, Window
from anyformer.parts.attention.sparse_masks import BlockWindow, Dilated, Global, Prefix, Random, Strided

SAMPLES = (
    Full(),
    Causal(),
    Window(2),
    Dilated(2, 1),
    Strided(2),
    Global(2),
    Prefix(2),
    BlockWindow(3, 1),
    Random(2, 1),
)
HOMES = {  # role: a model with it, its path, and the options that the model needs
    "a decoder": ("gpt", "blocks.*.mixer", {}),
    "an encoder": ("bert", "blocks.*.mixer", {"task": "masked"}),
    "the encoder of a decoder": ("t5", "encoder.blocks.*.mixer", {}),
    "a decoder that reads a source": ("t5", "decoder.blocks.*.mixer", {}),
}
CROSS = ("t5", "decoder.blocks.*.cross")


def kinds(base: type) -> list[Any]:
    """The public classes of a kind."""
    return [k for k in vars(public).values() if inspect.isclass(k) and issubclass(k, base) and k is not base]


@functools.cache
def mixers() -> dict[str, Recipe]:
    """A small recipe of every public mixer: the first that any subject holds, or one with few heads."""
    every = [*(s for name in pages.names() for s in subjects(name) if not s.light), *compositions()]
    held = {v.part: v for s in reversed(every) for _, v in s.recipe.walk() if isinstance(v, Recipe)}
    slot = [kind for kind in kinds(Mixer) if kind.given == ("dim",)]
    return {kind.__name__: example(kind, held.get(kind)) for kind in slot}


def example(kind: Any, held: Recipe | None) -> Recipe:
    """A recipe of a mixer: that of some subject, or one with small numbers."""
    names = signature(kind)
    if held is not None:
        wanted: dict[str, Any] = {n: v for n, v in {"cross": False, "heads": 4, "kv_heads": None}.items() if n in names}
        return held.but(wanted)
    settings: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in names and parameter.default is parameter.empty:
            annotation = str(parameter.annotation)
            settings[name] = Attention.of(heads=4) if "Recipe" in annotation else 4 if name == "heads" else 3
            if name == "blocks":
                settings[name] = [pages.recipe("gpt", "tiny")["blocks"][0]]
    return kind.of(**settings)


@functools.cache
def in_roles() -> list[Subject]:
    """Every mask and mixer in every home whose slot takes it."""
    missing = {k.__name__ for k in kinds(Mask)} - {type(m).__name__ for m in SAMPLES} - {"And", "Or", "Not"}
    expect(not missing, f"the contract has no sample of the masks {sorted(missing)}")
    subjects = []
    for role, (page, place, settings) in HOMES.items():
        home = pages.recipe(page, "tiny", **settings)
        for name, mixer in mixers().items():
            try:
                subjects.append(Subject(f"{name} in {role}", home.but({place: mixer})))
            except ValueError:  # the slot takes no such part: routers, positions
                continue
        for mask in SAMPLES:
            for shown, one in ((mask, mask), (f"Window(1) | {mask}", Window(1) | mask)):
                subjects.append(Subject(f"{shown} in {role}", home.but({f"{place}.mask": one})))
    return subjects


def role(subject: Subject) -> Any:
    """The model, if its parts fit together.

    Raises:
        LeftOut: if a part refuses its role, with its message.
    """
    try:
        run(subject.model, draw(subject, random.Random(60), [6, 6]))
    except ValueError as error:
        raise LeftOut(f"it refuses the role: {str(error)[:60]}") from error
    return subject.model


@check(21, "role", examples=3)
def batching_changes_nothing_in_any_role(subject: Subject, rng: random.Random) -> float:
    """In a batch padded on the left, each row gives the same result as alone, without a cache and with one."""
    model, lengths = role(subject), [rng.randint(2, 13) for _ in range(3)]
    batch, worst = draw(subject, rng, lengths, "left"), 0.0
    together = run(model, batch)
    for i in range(3):
        alone = run(model, batch.row(i))
        for name in (n for n in alone if not n.startswith("aux.")):
            worst = max(worst, close(batch.real(name, together[name], i), alone[name][0], f"{name}, row {i}"))
    if not subject.decodes:
        return worst
    try:
        steps = Decoding(subject, batch)
        while steps.at < steps.total:
            steps.feed(min(rng.randint(1, 5), steps.total - steps.at))
    except ValueError as error:
        expect("step by step" in str(error) or "padding" in str(error), f"a state is refused: {error}")
        return worst
    return max(worst, steps.worst)


@check(21, "role")
def caching_changes_nothing_in_any_role(subject: Subject) -> float:
    """Prompts of several lengths in one batch have the same continuations with a cache, without it, and alone."""
    if not subject.decodes:
        raise LeftOut("it is bidirectional: no token precedes another one")
    model, prompts = role(subject), [[5, 6, 7, 8, 9, 10], [8, 9], [4, 3, 2]]
    plain = model.generate(prompts, max_new_tokens=8, temperature=0, cache=False)
    alone = [model.generate([p], max_new_tokens=8, temperature=0, cache=False)[0] for p in prompts]
    expect(plain == alone, "a row continues differently in a batch than alone")
    try:
        cached = model.generate(prompts, max_new_tokens=8, temperature=0)
    except ValueError as error:
        where = subject.name.rpartition(" in ")[2]
        expect("cannot decode step by step" in str(error) and where != "the encoder of a decoder",
               f"with a cache it is refused: {error}")  # fmt: skip
        raise LeftOut("its mixer has no state") from error
    expect(cached == plain, "it continues differently with a cache")
    return 0.0


@functools.cache
def with_options() -> list[Subject]:
    """Every mixer in every role, cross-attention included for mixers that support it."""
    subjects = [s for s in in_roles() if s.name.split(" in ")[0] in mixers()]
    home = pages.recipe(CROSS[0], "tiny")
    for name, mixer in mixers().items():
        if "cross" in signature(mixer.part):
            subjects.append(
                Subject(f"{name} in the place of cross-attention", home.but({CROSS[1]: mixer.but(cross=True)}))
            )
    return subjects


ROLES.update(role=in_roles, option=with_options)


@check(21, "option", later=lambda s: not s.name.startswith("Attention "))
def every_option_has_an_effect_in_its_role_or_is_refused(subject: Subject) -> float:
    """For each option of a mixer in this role, some other value changes the numbers, or all others are refused."""
    role(subject)
    name, silent = subject.name.split(" in ")[0], []
    usual = fingerprint(subject, subject.recipe)
    place = next(p for p, v in subject.recipe.walk() if isinstance(v, Recipe) and v.part.__name__ == name)
    if "place of cross" in subject.name:
        place = "decoder.blocks.0.cross"
    for path, owner, option, value in options(subject.recipe):
        if path.rpartition(".")[0] != place or (name, option) in NO_NUMBER or option == "cross":
            continue
        others = [*alternatives(option, value, declared(owner, option)), *choices((name, option))]
        recipes = list(edited(subject.recipe, path, [o for o in others if o != value]))
        prints = (fingerprint(subject, other) for other in recipes)
        shown = [p for p in prints if p is not None and any(r is not None for r in p[1])]  # else the parts do not fit
        if shown and not any(differ(usual, p) for p in shown):
            silent.append(option)
    expect(not silent, f"no value of {silent} has an effect here, and none is refused")
    return 0.0
