"""Cases that wait for `make test-all`, beside those that prove nearly the same in `make test`."""

from typing import Any

import pytest


def later(*cases: Any) -> list[Any]:
    """Values of a parameter, or tuples of values, marked slow."""
    return [pytest.param(*(c if isinstance(c, tuple) else (c,)), marks=pytest.mark.slow) for c in cases]
