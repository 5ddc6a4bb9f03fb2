"""Every choice of a space is a recipe that builds, and two choices of one recipe are one."""

from __future__ import annotations

import random

import pytest

from anyformer.core import pages
from anyformer.edge.count import count
from anyformer.edge.space import MIXERS, Space, space

SMALL = {"dim": [16, 32], "depth": [1, 2], "vocab": [64, 96], "heads": [2, 4], "hidden": [1, 2]}


def of(page: str, **values: list) -> Space:
    return space(pages.recipe(page, "tiny", task="classify", classes=3), 12, {**SMALL, **values})


@pytest.mark.parametrize("page", ["bert", "modernbert", "roberta"])
def test_every_choice_of_a_page_is_a_recipe_that_reads(page: str) -> None:
    made, noise = of(page), random.Random(0)
    for _ in range(6):
        choice = made.drawn(noise)
        recipe = made.recipe(choice)
        assert recipe["dim"] == choice["dim"] and len(recipe["blocks"]) == choice["depth"]
        assert recipe["embed.vocab"] == choice["vocab"] and recipe["context"] in (None, 12)
        assert count(recipe, tokens=12).forward > 0
        for i in range(choice["depth"]):
            own = type(recipe[f"blocks.{i}.mixer"])
            assert own is type(MIXERS[choice[f"mixer.{i}"]](made.base["blocks.0.mixer"]))
            assert recipe[f"blocks.{i}.ffn.hidden"] == choice[f"hidden.{i}"] * choice["dim"]


def test_choices_that_make_one_recipe_are_one() -> None:
    made, noise = of("bert", dim=[16], vocab=[64], pool=["own"], bits=[8], depth=[1]), random.Random(0)
    drawn = [made.drawn(noise) for _ in range(200)]
    recipes = {repr(made.recipe(c)): c for c in drawn}
    assert len(recipes) == len({repr(sorted(c.items())) for c in drawn})
    assert all("heads.0" not in c for c in drawn if c["mixer.0"] == "fourier")


def test_a_mixer_that_does_not_fit_is_left_out_with_its_reason() -> None:
    made = of("bert")
    assert "mamba" not in made.layer["mixer"] and "decoder" in made.without["mixer=mamba"]
    assert "head.tied" in made.without["tied"]


@pytest.mark.parametrize(
    ("page", "values", "says"),
    [
        ("bert", {"width": [3]}, "no choice 'width'"),
        ("bert", {"dim": []}, "dim must be a list of at least one value"),
        ("bert", {"mixer": ["owl"]}, "no mixer 'owl' (did you mean own?)"),
        ("bert", {"mixer": ["mamba"]}, "no mixer fits: mamba: Mamba sees only earlier tokens"),
        ("bert", {"bits": [3]}, "bits must be of 4, 8, got 3"),
        ("bert", {"depth": [0, 1]}, "depth must be whole numbers from 1, got 0"),
        ("bert", {"tied": [1]}, "the recipe has no 'head.tied'"),
        ("bert", {"heads": [4], "kv_heads": [3]}, "dim 16, mixer.0 own, heads.0 4, kv_heads.0 3 does not build"),
    ],
)
def test_values_that_are_none_are_refused_by_name(page: str, values: dict, says: str) -> None:
    with pytest.raises(ValueError) as error:
        of(page, **values)
    assert says in str(error.value)


def test_a_recipe_without_the_paths_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no 'embed\.vocab', so vocab is no choice of Encoder"):
        space(pages.recipe("vit", "tiny"), 12, {"vocab": [64]})
    with pytest.raises(ValueError, match="no 'blocks', so depth is no choice of Pyramid"):
        space(pages.recipe("swin", "tiny"), 12)


def test_a_patch_that_does_not_divide_the_picture_is_left_out_with_its_reason() -> None:
    base = pages.recipe("vit", "tiny", task="classify", classes=3)
    made = space(base, 12, {"dim": [16]}, {"embed.image": 28, "embed.channels": 1})
    assert made.model["patch"] == (4, 7, 14) and "vocab" not in made.model
    assert "no whole number of patches of 8" in made.without["patch=8"]
    largest, smallest = (made.recipe(made.end(which, random.Random(0))) for which in (True, False))
    assert largest["embed.patch"] == 4 and smallest["embed.patch"] == 14 and largest["embed.channels"] == 1
    with pytest.raises(ValueError, match=r"no patch fits: 5: .*28 pixels is no whole number"):
        space(base, 12, {"patch": [5]}, {"embed.image": 28})
