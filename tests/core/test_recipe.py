"""Recipes and values: what their options may hold, when two of them are equal, how they are stored."""

import copy
import dataclasses
import inspect
import json
import math
import pickle
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from anyformer.core import pages
from anyformer.core.check import Frozen, fit, kinds_of
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe, signature
from anyformer.core.value import Value
from anyformer.media.patterns import Parallel
from anyformer.media.stages import Layout
from anyformer.parts import (
    MLP,
    Alibi,
    Attention,
    Block,
    Classifier,
    LayerNorm,
    LayerScale,
    Mean,
    RMSNorm,
    Rotary,
    Times,
    Tokens,
    Window,
)
from anyformer.parts.sound.codec import Convolutions
from anyformer.skeletons import Encoder

pages.pages()
PARTS = sorted(Part.kinds)
VALUES = sorted(name for name, cls in Value.kinds.items() if dataclasses.is_dataclass(cls) and dataclasses.fields(cls))
NUMBERS = [math.nan, math.inf, -math.inf, 10**400]
WRONG: dict[Any, list[Any]] = {
    int: ["4", 4.0, True, [4], {"a": 4}, 10**30, Attention, LayerNorm.of(), *NUMBERS],
    float: ["0.5", True, [0.5], {"a": 1}, Attention, LayerNorm.of(), *NUMBERS],
    bool: [0, 1, 1.0, "true", [True], {"a": True}],
    str: [1, 1.0, True, ["pre"], {"a": "b"}, Attention],
    Recipe: [1, "norm", [LayerNorm.of()], LayerNorm, LayerNorm(4), Window(1)],
}


def wrong(kind: Any) -> list[Any]:
    """Values that an annotation does not allow."""
    allowed = typing.get_args(kind) if typing.get_origin(kind) not in (None, Recipe) else (kind,)
    kinds = [k for k in allowed if k in WRONG] + [Recipe for k in allowed if typing.get_origin(k) is Recipe]
    return [v for v in WRONG[kinds[0]] if _refused(v, kind)] if kinds else []


def _refused(value: Any, kind: Any) -> bool:
    try:
        fit(value, kind, "")
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("name", PARTS)
def test_each_option_of_each_part_refuses_values_of_another_type(name):
    part = Part.kinds[name]
    known, kinds = signature(part), kinds_of(part.__init__)
    needed = {n: _some(kinds.get(n)) for n, default in known.items() if default is inspect.Parameter.empty}
    for option in known:
        for value in wrong(kinds.get(option, Any)):
            with pytest.raises(ValueError, match=rf"{part.__name__}\.{option}(\.\w+)?: expected .*, got "):
                Recipe(part, {**needed, option: value})


def _some(kind: Any) -> Any:
    """A value that fits, where a part needs one."""
    for choice in _choices(kind):
        if choice is Recipe or typing.get_origin(choice) is Recipe:
            takes = typing.get_args(choice) or (LayerNorm,)
            fitting = [Part.kinds[name] for name in PARTS if issubclass(Part.kinds[name], takes)]
            return _recipe(min(fitting, key=lambda part: len(_needs(part))))
    if typing.get_origin(kind) is Sequence:
        return [_some(typing.get_args(kind)[0])]
    some = _some(typing.get_args(kind)[-1]) if typing.get_origin(kind) in (dict, Mapping) else LayerNorm.of()
    plain = (1, 1.0, True, "a", [1], [Attention.of()], [Alibi.of()], {"a": some}, Window(1), None)
    values = (Convolutions(), Parallel(), Layout(stage="fine", text=1, semantic=1, codes=1, coarse=1, fine=1))
    return next(v for v in (*plain, *values) if not _refused(v, kind))


def _needs(part: type[Part]) -> list[str]:
    """The options that a part has no defaults of."""
    return [name for name, default in signature(part).items() if default is inspect.Parameter.empty]


def _recipe(part: type[Part]) -> Recipe:
    """The part as a recipe, with some value for each option that it needs."""
    return Recipe(part, {name: _some(kinds_of(part.__init__).get(name, Any)) for name in _needs(part)})


def _choices(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the one kind."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


@pytest.mark.parametrize("name", VALUES)
def test_each_field_of_each_value_refuses_values_of_another_type(name):
    cls = Value.kinds[name]
    for field, kind in kinds_of(cls).items():
        assert kind is not Any, f"{name}.{field} has no annotation that can be checked"
        for value in [*wrong(kind), Attention]:
            with pytest.raises(ValueError, match=rf"{name}\.{field}: expected .*, got "):
                cls(**{field: value})


@pytest.mark.parametrize("name", PARTS)
def test_each_option_of_each_part_has_an_annotation_that_exists_while_the_program_runs(name):
    part = Part.kinds[name]
    found, written = kinds_of(part.__init__), part.__init__.__annotations__
    for option in signature(part):
        assert option in found or option in ("args", "kwargs"), f"{name}.{option} is not annotated"
        assert found.get(option) is not Any or "Any" in str(written[option]), f"{name}.{option}: {written[option]}"


def test_a_mistake_is_named_with_its_path():
    llama = pages.recipe("llama", "tiny")
    with pytest.raises(ValueError, match=r"at 'blocks\.\*\.mixer\.heads': Attention\.heads: expected a whole number"):
        llama.but({"blocks.*.mixer.heads": "4"})
    with pytest.raises(
        ValueError, match=r"at 'blocks\.1\.mixer': Block\.mixer: .* the class Attention; write Attention"
    ):
        llama.but({"blocks.1.mixer": Attention})
    with pytest.raises(ValueError, match=r"Encoder\.heads\.classes: expected a recipe.*, got 3"):
        Encoder.of(8, Tokens.of(4), [], heads={"classes": 3})  # type: ignore[dict-item]
    stored = llama.to_json()
    stored["blocks"][0]["of"]["mixer"]["positions"]["theta"] = None
    with pytest.raises(ValueError, match=r"at 'blocks\.0\.mixer\.positions': Rotary\.theta: expected a finite number"):
        Recipe.from_json(stored)


@pytest.mark.parametrize(
    "data",
    [
        {"part": ["Attention"]}, {"part": None}, {"value": 3}, {"value": "Window"}, {"value": "Window", "left": "4"},
        {"value": "Window", "left": 1, "top": 2}, {"part": "Attention", "mask": {"value": "Mask"}}, {}, {"dict": 3}, 4,
        None,
        [{"repeat": True, "of": 1}], {"part": "Attention", "heads": {"dict": {}}}, {"value": "And", "a": 1, "b": 2},
    ],
)  # fmt: skip
def test_a_stored_recipe_that_means_nothing_is_refused(data):
    with pytest.raises(ValueError):
        Recipe.from_json(data)


@pytest.mark.parametrize("name", pages.names())
def test_a_recipe_is_what_it_was_after_json_pickle_and_copy(name):
    page = pages.page(name)
    for changes in ({}, *page.module.CASES.values()):
        recipe = page.recipe(page.at("tiny", **changes))
        for other in (
            Recipe.from_json(json.loads(json.dumps(recipe.to_json()))),
            pickle.loads(pickle.dumps(recipe)),
        ):
            assert other == recipe and hash(other) == hash(recipe) and repr(other) == repr(recipe)
        assert copy.deepcopy(recipe) is recipe


@pytest.mark.parametrize("name", PARTS)
def test_each_option_of_each_part_is_stored(name):
    part = Part.kinds[name]
    kinds = kinds_of(part.__init__)
    recipe: Recipe = Recipe(part, {option: _some(kinds.get(option, Any)) for option in signature(part)})
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Times.of(1), Times.of(1.0)),
        (Times.of(0.0), Times.of(-0.0)),
        (LayerScale.of(start=0), LayerScale.of(start=-0.0)),
        (Window(1) & ~Window(2), Window(1) & ~Window(2)),
        (pages.page("llama").at("tiny", scaling=None), pages.page("llama").at("tiny")),
    ],
)
def test_what_is_equal_has_one_hash_and_prints_alike(one, other):
    assert one == other and hash(one) == hash(other) and repr(one) == repr(other)


def test_the_order_of_named_options_counts_and_they_do_not_change():
    a, b = Classifier.of(2), Classifier.of(3)
    first = Encoder.of(8, Tokens.of(4), [], heads={"a": a, "b": b})
    second = Encoder.of(8, Tokens.of(4), [], heads={"b": b, "a": a})
    assert first != second  # the first head is `logits`
    assert first.heads == {"a": a, "b": b} and {"a": a, "b": b} == first.heads
    assert isinstance(first.heads, Frozen) and hash(first.heads) != hash(second.heads)
    for change in (
        lambda d: d.update(c=a), lambda d: d.pop("a"), lambda d: d.clear(), lambda d: d.setdefault("c", a),
        lambda d: d.__setitem__("a", b), lambda d: d.__delitem__("a"), lambda d: d.popitem(),
        lambda d: d.__ior__({"c": a}),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="is immutable"):
            change(first.heads)


def test_a_second_value_or_part_of_a_name_is_refused():
    for base, name in ((Value, "Window"), (Part, "Attention")):
        with pytest.raises(TypeError, match=f"two classes are called {name}"):
            type(name, (base,), {"__module__": "elsewhere"})


def test_two_pages_may_define_a_part_of_the_same_name(monkeypatch):
    for name in ("one.Layer", "two.Layer"):
        monkeypatch.setitem(Part.kinds, name, None)
    for page in ("one", "two"):
        exec("class Layer(Block): pass", {"Block": Block, "__name__": f"anyformer.models.{page}"})
    recipes: list[Recipe] = [
        Recipe(Part.kinds[f"{page}.Layer"], {"mixer": None, "norm": RMSNorm.of()}) for page in ("one", "two")
    ]
    assert [r.to_json()["part"] for r in recipes] == ["one.Layer", "two.Layer"]
    assert [repr(r)[:12] for r in recipes] == ["one.Layer.of", "two.Layer.of"] and recipes[0] != recipes[1]
    assert [Recipe.from_json(r.to_json()) for r in recipes] == recipes


def test_parts_of_pages_are_found_under_their_older_names():
    for page, name in (("modernbert", "Layer"), ("bigbird", "DropNorm")):
        recipe = pages.recipe(page)
        text = json.dumps(recipe.to_json())
        assert f'"{page}.{name}"' in text
        assert Recipe.from_json(json.loads(text.replace(f'"{page}.{name}"', f'"{name}"'))) == recipe


def test_a_value_that_a_page_defines_is_found(monkeypatch):
    from anyformer.core import recipe as module

    def define() -> None:
        dataclasses.dataclass(frozen=True)(type("Late", (Value,), {"__annotations__": {"n": int}}))

    monkeypatch.setattr(pages, "import_all", define)
    monkeypatch.setattr(Value, "kinds", dict(Value.kinds))
    assert repr(module._from_json({"value": "Late", "n": 3}, [0], "")) == "Late(n=3)"


def test_recipes_are_made_fast():
    import time

    norm = RMSNorm.of()
    Block.of(mixer=Attention.of(), norm=norm, ffn=MLP.of())
    begin = time.process_time()
    for _ in range(1000):
        Block.of(mixer=Attention.of(heads=4, mask=Window(3)), norm=norm, ffn=MLP.of(hidden=8))
    assert time.process_time() - begin < 1.0  # 0.03 s when this was written


SLOTS: list[tuple[type, str, Any]] = [
    (part, option, kind)
    for part in (Part.kinds[name] for name in PARTS)
    for option, kind in kinds_of(part.__init__).items()
    if any(typing.get_origin(k) is Recipe for k in _choices(kind))
]


@pytest.mark.parametrize(("part", "option", "kind"), SLOTS, ids=[f"{p.__name__}.{o}" for p, o, _ in SLOTS])
def test_each_slot_takes_parts_of_its_kind_only(part, option, kind):
    takes = tuple(typing.get_args(k)[0] for k in _choices(kind) if typing.get_origin(k) is Recipe)
    known = {n: default for n, default in signature(part).items() if default is not inspect.Parameter.empty}
    needed = {n: _some(kinds_of(part.__init__)[n]) for n in signature(part) if n not in known}
    for other in (LayerNorm.of(), MLP.of(), Attention.of(), Classifier.of(2), LayerScale.of(), Mean.of(), Rotary.of()):
        if issubclass(other.part, takes):
            assert Recipe(part, {**needed, option: other}).options[option] == other
        else:
            with pytest.raises(
                ValueError, match=rf"{part.__name__}\.{option}: expected .*recipe of a .*, got {re.escape(repr(other))}"
            ):
                Recipe(part, {**needed, option: other})


def test_most_options_that_take_a_recipe_are_slots():
    open_ = [
        f"{name}.{option}"
        for name in PARTS
        for option, kind in kinds_of(Part.kinds[name].__init__).items()
        if Recipe in _choices(kind)
    ]
    assert not open_, f"these take a recipe of any part; say which: {open_}"
