"""Cases that wait for `make test-all`, beside those that prove nearly the same in `make test`, and large packages."""

from importlib.util import find_spec
from typing import Any

import pytest


def later(*cases: Any) -> list[Any]:
    """Values of a parameter, or tuples of values, marked slow."""
    return [pytest.param(*(c if isinstance(c, tuple) else (c,)), marks=pytest.mark.slow) for c in cases]


def needs(*packages: str, reason: str) -> None:
    """Skips the module that calls it where a package is missing; tests import it, so that others run without it."""
    if any(find_spec(package) is None for package in packages):
        pytest.skip(reason, allow_module_level=True)
