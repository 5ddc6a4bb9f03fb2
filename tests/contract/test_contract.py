"""Every check of the contract on every page, composition and part. No page is named here."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from anyformer.contract import Check, cases
from anyformer.contract.check import LeftOut
from anyformer.contract.subjects import Subject, apart_from_tiny

# (check, subject or page): the known fault that makes a case fail until it is mended.
FILL = "its option fill acts in an encoder alone"
MAMBA = "the authors draw tokens with 0.02 and projections as PyTorch does; transformers has 0.1 for all, with which a \
tied model is sure that the token just read comes again"
MARIAN = "its oracle is Marian's class, with the common 0.02; the paper's code draws tokens with dim^-1/2, which the \
scale makes as large as the sines"
FIRST = {  # pages whose publishers, or whose authors' code, draw otherwise than the class of transformers
    "mamba": MAMBA,
    "mamba2": MAMBA,
    "jamba": "no code of its authors that draws is known; by transformers' common rule every step is 0.7, \
and the state forgets within some tokens; ours are Mamba's steps, between 0.001 and 0.1",
    "transformer/tiny": MARIAN,
    "transformer/odd": MARIAN,
}
ROLES = ("a decoder", "an encoder", "the encoder of a decoder", "a decoder that reads a source")
KNOWN: dict[tuple[str, str], str] = {
    **{("initial weights match the oracle", page): why for page, why in FIRST.items()},
    **{
        ("every option has an effect in its role or is refused", f"LocalAttention in {role}"): FILL
        for role in ROLES
        if role != "an encoder"
    },
}


TOGETHER = ("page needs no oracle",)  # one process answers for all pages


def label(check: Check, case: tuple[Any, ...]) -> str:
    return "-".join([str(check.item), str(check), *(getattr(c, "name", str(c)) for c in case)])


def group(check: Check, case: tuple[Any, ...]) -> str:
    """The cases that one worker runs in a row, so that each model and each oracle is made once and then given back: a
    page's, a composition's."""
    if not case or check.name in TOGETHER:
        return check.name
    return case[0] if isinstance(case[0], str) else case[0].page or case[0].name


@functools.cache
def mark(name: str) -> Any:
    """The mark of a group, one for all its cases: there are thousands."""
    return pytest.mark.xdist_group(name)


def marked(check: Check, case: tuple[Any, ...]) -> Any:
    marks = [mark(group(check, case))]
    if check.waits(case):
        marks.append(pytest.mark.slow)
    names = [group(check, case), *(getattr(c, "name", "") for c in case[:1])]
    if why := next((KNOWN[check.name, name] for name in names if (check.name, name) in KNOWN), None):
        marks.append(pytest.mark.xfail(reason=why, strict=True))
    return pytest.param(check, case, id=label(check, case), marks=marks)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All cases; half of them wait, and are not even made where the slow ones are left out."""
    leaves = metafunc.config.option.markexpr == "not slow"
    made = [marked(check, case) for check, case in cases() if not (leaves and check.waits(case))]
    metafunc.parametrize(("check", "case"), made)


def test_contract(check: Check, case: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        check.once(case, drawn(case))
    except LeftOut as why:
        pytest.skip(f"{check.name}: left out: {why}")


def drawn(case: tuple[Any, ...]) -> int:
    """The largest number of random examples of a property: two for a case of a page whose `tiny` has all of them."""
    subject = case[0] if case else None
    return 2 if isinstance(subject, Subject) and apart_from_tiny(subject) else 100
