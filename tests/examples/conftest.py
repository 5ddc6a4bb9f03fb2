"""For tests of examples: they find what stands beside them, as `python examples/NAME.py` does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True, scope="module")
def _beside() -> Iterator[None]:
    """Of the module: a file's own fixtures may run its example before the first test does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield
