"""Trajectories enter three places a step; an action is not seen by what is said of it; mistakes are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af


@pytest.fixture(scope="module")
def model() -> Any:
    return af.build("decision_transformer", "tiny", seed=0)


def steps(model: Any, **others: Tensor | None) -> dict[str, Tensor]:
    made = model.example(2, {"": (4,)}, torch.Generator().manual_seed(0))
    return {name: value for name, value in {**made, **others}.items() if value is not None}


@pytest.mark.parametrize(("name", "sees"), [("actions", False), ("states", True), ("returns_to_go", True)])
def test_what_is_said_of_an_action_sees_the_state_and_the_return_of_its_step(model: Any, name: str, sees: bool) -> None:
    given = steps(model)
    other = given[name].clone()
    other[:, -1] += 1
    before, after = model(**given).heads["action"], model(**{**given, name: other}).heads["action"]
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert torch.equal(before[:, -1], after[:, -1]) != sees


def test_the_next_state_is_said_by_one_who_has_seen_the_action(model: Any) -> None:
    given = steps(model)
    before = model(**given)
    after = model(**{**given, "actions": given["actions"] + 1})
    for head in ("state", "returns"):
        assert not torch.equal(before.heads[head][:, -1], after.heads[head][:, -1])


WRONG = {
    "no states": ({"states": None}, r"reads states of shape \(batch, time, state\); call model\(states=…\)"),
    "no timesteps": ({"timesteps": None}, "reads timesteps"),
    "width of states": ({"states": torch.zeros(2, 4, 5)}, r"states must be \(2, 4, 3\), got \(2, 4, 5\)"),
    "flat states": ({"states": torch.zeros(2, 4)}, r"states must be \(2, 4, 3\), got \(2, 4\)"),
    "fewer actions": ({"actions": torch.zeros(2, 3, 2)}, r"actions must be \(2, 4, 2\), got \(2, 3, 2\)"),
    "flat returns": ({"returns_to_go": torch.zeros(2, 4)}, r"returns_to_go must be \(2, 4, 1\)"),
    "other steps": ({"timesteps": torch.zeros(2, 5, dtype=torch.long)}, r"timesteps must be \(2, 4\)"),
    "late step": ({"timesteps": torch.full((2, 4), 50)}, "timestep 50 in timesteps is beyond the longest episode"),
    "unknown": ({"rewards": torch.zeros(2, 4, 1)}, "no part of this model reads 'rewards'"),
    "mask of places": ({"attention_mask": torch.ones(2, 12)}, r"attention_mask must be \(batch, tokens\) = \(2, 4\)"),
    "text": ({"input_ids": torch.zeros(2, 4, dtype=torch.long)}, "no part of this model reads 'input_ids'"),
}


@pytest.mark.parametrize(("others", "said"), WRONG.values(), ids=WRONG)
def test_wrong_inputs_are_named(model: Any, others: dict[str, Tensor | None], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model(**steps(model, **others))


def test_numbers_of_any_width_are_read(model: Any) -> None:
    given = steps(model)
    wide = {name: v.double() if v.is_floating_point() else v for name, v in given.items()}
    assert torch.equal(model(**wide).logits, model(**given).logits)


def test_it_writes_no_text(model: Any) -> None:
    with pytest.raises(ValueError):
        model.generate([[1, 2]])
