"""Every check can fail: for each one a fault is planted in the library, and the check must find it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.contract import CHECKS, Check, oracle
from anyformer.contract.subjects import _model, compositions, hubs, subjects
from tests.contract import faults_in_files, faults_in_models  # noqa: F401  (they fill TEETH)
from tests.contract.planting import TEETH


def the_case(check: Check, on: str) -> tuple[Any, ...]:
    """The case of that check for a subject or page."""
    if check.over == "parts":
        return ()
    if check.over == "page":
        return (on.split("/")[0],)
    everything = [s for name in af.names() for s in subjects(name)] + compositions()
    subject = next(s for s in everything if s.name == on)
    return (subject, hubs(subject)[0]) if check.over == "files" else (subject,)


@pytest.fixture
def alone() -> Iterator[None]:
    """Models and oracles that were made before are not used, nor are those made here used later."""
    kept = dict(oracle._made)
    oracle._made.clear()
    _model.cache_clear()
    torch.set_num_threads(1)
    yield
    oracle._made.clear()
    oracle._made.update(kept)
    _model.cache_clear()


@pytest.mark.parametrize(
    "check", [pytest.param(c, id=str(c), marks=[pytest.mark.slow] if c.slow else []) for c in CHECKS if c.name in TEETH]
)
def test_finds_the_planted_fault(check: Check, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    on, plant = TEETH[check.name]
    case = the_case(check, on)
    if check.over == "files":
        oracle.oracle(*case)  # made before the fault, as files of others are
    plant(monkeypatch)
    case = the_case(check, on)  # a map may be another one now
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        check.once(case)


def test_every_check_has_a_fault_to_find() -> None:
    assert {c.name for c in CHECKS} == set(TEETH)
