"""Files that name their page: no other page is imported to read them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import anyformer as af

CODE = """
import sys
import anyformer as af
af.load(sys.argv[1])
print(*(name.split(".")[2] for name in sys.modules if name.startswith("anyformer.models.") and name.count(".") == 2))
"""


@pytest.mark.parametrize("page", ["bert", "llama"])
def test_a_directory_is_read_without_the_other_pages(page: str, tmp_path: Path) -> None:
    """Pages that the page itself builds upon may come with it."""
    af.build(page, "tiny", seed=0).save(tmp_path / "model")
    command = [sys.executable, "-c", CODE, str(tmp_path / "model")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout.split()
    assert page in found and len(found) <= 6, found
