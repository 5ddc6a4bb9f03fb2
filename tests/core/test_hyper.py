"""Hyperparameters: nested ones, their checks, and the tables that read them from files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from anyformer.contract.hyper import recorder
from anyformer.core import pages
from anyformer.core.hyper import MOST, changed, kinds, leaves
from anyformer.hub.tables import config as tables
from anyformer.hub.tables.config import Same, key, keys, must, square
from anyformer.hub.tables.nested import beside, within
from anyformer.models.llama import Llama
from anyformer.models.vit import ViT
from anyformer.parts.positions import Linear, Scaling


@dataclass(frozen=True)
class Text:
    dim: int = 8
    heads: int = 2
    kv_heads: int = 2
    rate: float = 0.1
    tied: bool = True
    widths: tuple[int, ...] = (1, 2)
    scaling: Scaling | None = None


@dataclass(frozen=True)
class Pair:
    text: Text = field(default_factory=Text)
    image: ViT = field(default_factory=lambda: pages.page("vit").at("tiny"))
    size: int = 4


TEXT = (
    *keys(hidden_size="dim", heads="heads"), key("kv", "kv_heads", default=Same("heads")),
    key("rate", "rate", default=0), key("tied", "tied", default=True), key("widths", "widths"),
    must("model_type", "pair_text"),
)  # fmt: skip
TABLE = (within("text_config", "text", Text, *TEXT), key("size", "size"))
FILE: dict[str, Any] = {
    "text_config": {"hidden_size": 16, "heads": 4, "widths": [3, 4], "model_type": "pair_text"},
    "size": 5,
}


@dataclass(frozen=True)
class Outer:
    text: Text = field(default_factory=Text)
    size: int = 4


def test_leaves_have_dotted_names_and_a_value_is_one_leaf():
    found = leaves(Pair(text=Text(scaling=Linear(2.0))))
    assert found["text.dim"] == 8 and found["size"] == 4 and found["text.scaling"] == Linear(2.0)
    assert set(found) == set(kinds(Pair)) and kinds(Pair)["text.widths"] == tuple[int, ...]
    assert leaves(Llama()) == {name: getattr(Llama(), name) for name in kinds(Llama)}


def test_leaves_are_changed_by_dotted_names_and_by_dictionaries():
    pair = Pair()
    for changes in ({"text.dim": 32, "size": 1}, {"text": {"dim": 32}, "size": 1}, {"text": Text(dim=32), "size": 1}):
        assert changed(pair, changes) == Pair(Text(dim=32), pair.image, 1)
    assert changed(pair, {"text": Text(heads=1), "text.dim": 32}) == Pair(Text(dim=32, heads=1), pair.image)
    assert changed(pair, {"text.rate": 1, "text.widths": [5]}).text == Text(rate=1.0, widths=(5,))
    assert changed(pair, leaves(pair)) == pair


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text.dims": 3}, r"pair\.text has no hyperparameter 'dims'; it has dim.*did you mean dim"),
        ({"text": {"dims": 3}}, r"pair\.text has no hyperparameter 'dims'; it has dim.*did you mean dim"),
        ({"size.x": 3}, "no hyperparameter 'size.x'"), ({"text.widths.0": 3}, "no hyperparameter 'widths.0'"),
        ({"text.dim": "3"}, r"pair\.text\.dim: expected a whole number, got '3'"),
        ({"text": 3}, r"pair\.text: expected a Text, got 3"),
        ({"text": None}, r"pair\.text: expected a Text, got None"),
        ({"text.dim": -1}, r"pair\.text\.dim: expected a whole number from 0 to 16,777,216, got -1"),
        ({"text.widths": [1, MOST + 1]}, r"pair\.text\.widths: expected a whole number from 0 to .*, got 16777217"),
        ({"text.rate": math.nan}, r"pair\.text\.rate: expected a finite number, got nan"),
        ({"image.dim": True}, r"pair\.image\.dim: expected a whole number, got True"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_leaf(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(Pair(), changes, "pair")


def test_a_page_is_changed_by_dotted_names():
    page = pages.Page("pair", SimpleNamespace(SIZES={"tiny": Pair()}))
    assert page.at("tiny", **{"text.dim": 32}).text.dim == 32
    with pytest.raises(ValueError, match=r"pair has no hyperparameter 'txt\.dim'.*did you mean text\.dim"):
        page.at("tiny", **{"txt.dim": 32})
    assert pages.build("llama", "tiny", overrides={"depth": 1}, kv_heads=1).config.depth == 1
    with pytest.raises(ValueError, match=r"llama\.depth: expected a whole number, got '1'"):
        pages.build("llama", "tiny", depth="1")
    with pytest.raises(ValueError, match=r"llama\.depth: expected a whole number from 0 to"):
        pages.build("llama", "tiny", depth=10**9)


@pytest.mark.parametrize("name", pages.names())
def test_all_sizes_and_cases_of_a_page_obey_its_annotations(name):
    page = pages.page(name)
    for config in (*page.sizes.values(), *(page.at("tiny", **case) for case in page.module.CASES.values())):
        assert changed(config, leaves(config)) == config


def test_what_is_read_of_nested_hyperparameters_is_recorded():
    proxy, seen = recorder(Pair())
    assert isinstance(proxy.text, Text) and not seen
    assert pages.page("vit").recipe(proxy.image) == pages.page("vit").recipe(Pair().image)
    assert proxy.text.dim == 8 and replace(proxy.text, dim=3).heads == 2
    assert {"text.dim", "image.dim", "image.depth"} <= seen and "size" not in seen


def test_a_nested_config_is_read_and_written():
    hyper, lines = tables.read(TABLE, FILE, Outer, {})
    assert hyper == Outer(Text(16, 4, 4, 0.0, widths=(3, 4)), 5)
    assert {(line.key, line.status, line.detail) for line in lines} >= {
        ("text_config.hidden_size", "used", "text.dim"), ("size", "used", "size"),
    }  # fmt: skip
    assert next(line for line in lines if line.key == "text_config.model_type").status == "fixed"
    assert tables.write(TABLE, hyper, {}, FILE) == FILE
    fresh = tables.write(TABLE, hyper, {}, {})
    assert fresh["text_config"]["model_type"] == "pair_text" and tables.read(TABLE, fresh, Outer, {})[0] == hyper
    assert tables.hyperparameters(TABLE) == {
        "size",
        *(f"text.{n}" for n in ("dim", "heads", "kv_heads", "rate", "tied", "widths")),
    }
    with pytest.raises(ValueError, match=r"scaling=.* cannot be written"):
        tables.write(TABLE, replace(hyper, text=replace(hyper.text, scaling=Linear(2.0))), {}, FILE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"hidden": 3}, r"unknown config keys: text_config\.hidden=3.*did you mean hidden_size"),
        ({"hidden_size": "16"}, r"config key 'text_config\.hidden_size': expected a whole number, got '16'"),
        ({"hidden_size": 10**9}, r"config key 'text_config\.hidden_size': expected a whole number from 0 to"),
        ({"model_type": "other"}, r"text_config: config key 'model_type' is 'other'; this page supports only 'pair"),
        ({"hidden_size": None}, r"text_config: the config lacks 'hidden_size'"),
        (None, r"the config lacks 'text_config'"), (3, r"config key 'text_config': expected a dictionary, got 3"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_nested_config_is_named_with_its_path(text, message):
    file: dict[str, Any] = {**FILE, "text_config": {**FILE["text_config"], **text} if isinstance(text, dict) else text}
    with pytest.raises(ValueError, match=message):
        tables.read(TABLE, file if text is not None else {"size": 5}, Outer, {})


SPELLINGS = [("rate", 1, 1.0), ("rate", "1e-5", 1e-5), ("heads", 4.0, 4), ("widths", [3.0, 4], (3, 4))]


@pytest.mark.parametrize(("name", "theirs", "ours"), SPELLINGS[:3])
def test_spellings_of_published_files_are_read_and_kept(name, theirs, ours):
    file = {**FILE["text_config"], name: theirs}
    hyper, _ = tables.read(TEXT, file, Text, {})
    value = getattr(hyper, name)
    assert value == ours and type(value) is type(ours)
    assert tables.write(TEXT, hyper, {}, file) == file


WRONG = {
    "heads": ["4", 4.5, True, [4], {"a": 4}, -1, 10**9, 10**30, math.nan, math.inf],
    "rate": ["a tenth", "nan", True, [0.1], {}, math.nan, math.inf, 1e300],
    "tied": [1, 0, "true", [True], {}], "widths": [3, "34", [3, "4"], [3, -1], {"a": 3}, [10**9]],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_of_another_type_or_absurd_size_is_refused_by_its_key(name, value):
    with pytest.raises(ValueError, match=rf"config key '{name}'(\.\d)?: expected .*, got "):
        tables.read(TEXT, {**FILE["text_config"], name: value}, Text, {})


# ------------------------------------------------------------------------------- several names, the same level, squares


def test_two_names_of_a_nested_config_must_say_the_same():
    table = (within("text_config", "text", Text, *TEXT, also=("text_config_dict",)), key("size", "size"))
    words = FILE["text_config"]
    both = {**FILE, "text_config_dict": dict(words)}
    for file in (both, {**FILE, "text_config_dict": None}, {"size": 4, "text_config_dict": words}):
        hyper, lines = tables.read(table, file, Outer, {})
        assert hyper.text == tables.read(TEXT, words, Text, {})[0] and tables.write(table, hyper, {}, file) == file
        wanted = {f"{name}.{k}" for name in file if isinstance(file[name], dict) for k in words}
        assert {line.key for line in lines} >= wanted
    changed_ = replace(hyper, text=replace(hyper.text, dim=24))
    assert {d["hidden_size"] for d in tables.write(table, changed_, {}, both).values() if isinstance(d, dict)} == {24}
    with pytest.raises(ValueError, match="'text_config' and 'text_config_dict' describe two models"):
        tables.read(table, {**FILE, "text_config_dict": {**words, "heads": 1}}, Outer, {})


def test_a_part_whose_keys_stand_beside_the_others():
    table = (beside("text", Text, *TEXT), key("size", "size"))
    file = {**FILE["text_config"], "size": 3}
    hyper, lines = tables.read(table, file, Outer, {})
    assert hyper.text == tables.read(TEXT, FILE["text_config"], Text, {})[0] and hyper.size == 3
    assert tables.write(table, hyper, {}, file) == file and {line.key for line in lines} == set(file)
    assert next(line.detail for line in lines if line.key == "hidden_size") == "text.dim"
    assert "text.dim" in tables.hyperparameters(table)
    with pytest.raises(ValueError, match=r"'hidden_size'.*'wide'"):
        tables.read(table, {**file, "hidden_size": "wide"}, Outer, {})


@pytest.mark.parametrize("value", [12, [12, 12], (12, 12), 12.0])
def test_a_square_is_one_length(value):
    table = (square("image_size", "size"),)

    @dataclass(frozen=True)
    class One:
        size: int = 4

    hyper, _ = tables.read(table, {"image_size": value}, One, {})
    assert hyper == One(12) and tables.write(table, hyper, {}, {"image_size": value}) == {"image_size": value}
    for bad in ([8, 16], [12], [[1], [1]], "12", [True, True], None):
        with pytest.raises(ValueError, match="'image_size'"):
            tables.read(table, {"image_size": bad}, One, {})
