"""Pages: what a name that a page does not know does, and how far a model reads."""

import dataclasses
from typing import Any, get_args, get_type_hints

import pytest
import torch

import anyformer as af
from anyformer.core.check import kinds_of
from anyformer.parts.positions import Dynamic


def texts(cls: type, path: str = "") -> list[str]:
    """The dotted names of the hyperparameters that are a choice by name."""
    found = []
    for name, kind in get_type_hints(cls).items():
        kinds = (kind, *get_args(kind))
        found += [path + name] if str in kinds else []
        nested = [k for k in kinds if isinstance(k, type) and dataclasses.is_dataclass(k)]
        found += [text for k in nested for text in texts(k, f"{path}{name}.")]
    return found


FREE = {"prefix", "titled", "between"}  # any text
CHOICES = [(page, name) for page in af.names() for name in texts(af.page(page).config) if name not in FREE]
STRETCHED = [page for page in af.names() if {"scaling", "context"} <= kinds_of(af.page(page).config).keys()]


@pytest.mark.parametrize(("page", "name"), CHOICES)
def test_an_unknown_choice_is_an_error_that_names_it(page: str, name: str) -> None:
    said = []
    for case in ({}, *af.page(page).module.CASES.values()):  # some choices count in some cases only
        try:
            af.build(page, "tiny", **{**case, name: "no such thing"})
        except ValueError as error:
            said.append(str(error))
    assert any("no such thing" in text for text in said)


@pytest.mark.parametrize("page", [page for page, name in CHOICES if name == "task"])
def test_an_unknown_task_is_an_error_that_names_page_and_tasks(page: str) -> None:
    known = {case["task"] for case in af.page(page).module.CASES.values() if "task" in case}
    with pytest.raises(ValueError, match=rf"^{page}: task must be one of .*; got 'bare'$") as error:
        af.recipe(page, "tiny", task="bare")
    assert known and all(repr(task) in str(error.value) for task in known)


@pytest.mark.parametrize("page", STRETCHED)
def test_a_model_that_stretches_as_the_text_grows_reads_beyond_its_context(page: str) -> None:
    changes: dict[str, Any] = {"context": 16, "scaling": Dynamic(2.0, 16)}
    model = af.build(page, "tiny", seed=0, **changes)
    assert model(torch.arange(40)[None]).logits.isfinite().all()
    with pytest.raises(ValueError, match="16"):
        af.build(page, "tiny", context=16)(torch.arange(40)[None])


def test_there_are_pages_of_each_kind() -> None:
    assert len(STRETCHED) > 3 and len(CHOICES) > 40
