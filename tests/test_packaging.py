"""The package's description: one version, a README that a package index can show, a citation, extras that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import anyformer as af

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SUBSTITUTIONS = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]
RELATIVE = r"\]\((?!https?://|#)|src=\"(?!https?://)"  # a link or a picture that only a checkout can resolve


def published(text: str) -> str:
    """A README as the package index gets it."""
    for rule in SUBSTITUTIONS:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


def code(text: str) -> list[str]:
    return re.findall(r"^```.*?^```", text, re.M | re.S)


def test_the_version_is_written_once() -> None:
    assert "version" in PYPROJECT["project"]["dynamic"] and "version" not in PYPROJECT["project"]
    assert f'__version__ = "{af.__version__}"' in (ROOT / PYPROJECT["tool"]["hatch"]["version"]["path"]).read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "version" not in citation and citation["license"] == PYPROJECT["project"]["license"]
    assert [author["name"] for author in citation["authors"]] == [a["name"] for a in PYPROJECT["project"]["authors"]]


def test_the_readme_of_the_package_index_has_no_link_into_the_checkout() -> None:
    text = (ROOT / "README.md").read_text()
    assert re.search(RELATIVE, text)
    assert not re.search(RELATIVE, re.sub(r"^```.*?^```", "", published(text), flags=re.M | re.S))
    assert code(published(text)) == code(text)


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("see [docs/log.md](docs/log.md).", "see docs/log.md."),
        ("[`models/`](src/anyformer/models), [x](y.md#z)", "`models/`, x"),
        ("![a picture](docs/a.svg)\n", "\n"),
        ('<img width="600" src="docs/a.svg" alt="a">', ""),
        ("[Python](https://python.org) [below](#below)", "[Python](https://python.org) [below](#below)"),
        ("![p](https://x.org/p.svg)", "![p](https://x.org/p.svg)"),
        ('taps["blocks.0"](x) and heads[0](y)', 'taps["blocks.0"](x) and heads[0](y)'),
    ],
)
def test_relative_links_become_text(text: str, new: str) -> None:
    assert published(text) == new


def test_extras_refer_to_extras_that_exist() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    named = {name for deps in extras.values() for d in deps for name in re.findall(r"^anyformer\[(.*)\]$", d)}
    assert {name for group in named for name in group.split(",")} <= extras.keys()
