"""Every check can fail: a fault is planted in the library for each, and the check must find it and say so itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.contract import CHECKS, Check, compositions, forget, oracle, roles
from anyformer.contract.hyper import fingerprint
from anyformer.contract.probe import Failed
from anyformer.contract.subjects import hubs, subjects
from tests.contract import faults_in_files, faults_in_models, faults_in_use  # noqa: F401  (they fill FAULTS)
from tests.contract.planting import FAULTS, Fault

BY_NAME = {check.name: check for check in CHECKS}


def the_case(check: Check, on: str) -> tuple[Any, ...]:
    """The case of that check for a subject or page."""
    if check.over == "parts":
        return ()
    if check.over == "page":
        return (on.split("/")[0],)
    if check.over in ("role", "option"):
        return (next(s for s in roles.with_options() if s.name == on),)
    page = on.split("/")[0]
    subject = next(s for s in (subjects(page) if page in af.names() else compositions()) if s.name == on)
    return (subject, hubs(subject)[0]) if check.over == "files" else (subject,)


@pytest.fixture
def alone() -> Iterator[None]:
    """Models, oracles and fingerprints that were made before are not used, nor are those made here used later."""
    forget()
    fingerprint.cache_clear()
    torch.set_num_threads(1)
    yield
    forget()
    fingerprint.cache_clear()


def marked(fault: Fault) -> Any:
    marks = [pytest.mark.xdist_group(f"mutations of {fault.on.split('/')[0] or 'parts'}")]
    return pytest.param(fault, id=str(fault), marks=[*marks, *[pytest.mark.slow] * BY_NAME[fault.check].slow])


@pytest.mark.parametrize("fault", [marked(fault) for fault in FAULTS])
def test_finds_the_planted_fault(fault: Fault, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    check = BY_NAME[fault.check]
    case = the_case(check, fault.on)
    if check.over == "files":
        oracle.oracle(*case)  # made before the fault, as files of others are
    fault.plant(monkeypatch)
    with pytest.raises(Failed, match=fault.says):
        check.once(the_case(check, fault.on))  # again: a map may be another one now


def test_every_check_has_a_fault_to_find() -> None:
    assert {c.name for c in CHECKS} == {fault.check for fault in FAULTS}
