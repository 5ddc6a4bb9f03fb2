"""For all tests."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_token_cache(tmp_path_factory):
    """What tests tokenise does not stay in the user's cache; processes that tests start inherit it."""
    os.environ["ANYFORMER_TOKENS"] = str(tmp_path_factory.mktemp("tokens"))
