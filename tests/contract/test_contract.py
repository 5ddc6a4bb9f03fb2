"""Every check of the contract on every page, composition and part. No page is named here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyformer.contract import Check, cases


def label(check: Check, case: tuple[Any, ...]) -> str:
    return "-".join([str(check.item), str(check), *(getattr(c, "name", str(c)) for c in case)])


@pytest.mark.parametrize(
    ("check", "case"),
    [
        pytest.param(check, case, id=label(check, case), marks=[pytest.mark.slow] if check.slow else [])
        for check, case in cases()
    ],
)
def test_contract(check: Check, case: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not check.examples:
        check.run(*case)
        return

    @settings(
        max_examples=check.examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(rng=st.randoms(use_true_random=False))
    def holds(rng: Any) -> None:
        check.run(*case, rng=rng)

    holds()
