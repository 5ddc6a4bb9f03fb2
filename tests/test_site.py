"""The documentation site: nothing is left out of it, and what tutorials and documents print is what they show."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import anyformer as af
from docs.site import __main__ as site
from docs.site import api, gallery, tutorials
from docs.site.navigation import DOCUMENTS, ROOT, api_page, flat, modules, navigation

pytestmark = pytest.mark.usefixtures("forked")
PAGES = flat(navigation())
RUN = (
    "import json, sys, pathlib; from docs.site.tutorials import run; print(json.dumps(run(pathlib.Path(sys.argv[1]))))"
)


def hubs() -> list[Any]:
    return [pytest.param(hub, id=hub.name) for page in af.pages() for hub in page.module.HUBS if hub.format == "hf"]


def test_every_document_architecture_module_and_example_is_in_the_navigation() -> None:
    listed = {file for files in DOCUMENTS.values() for file in files.values()}
    assert {f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")} <= listed
    assert all((ROOT / file).exists() for file in listed)
    expected = {page for files in DOCUMENTS.values() for page in files}
    expected |= {f"architectures/{name}.md" for name in af.names()} | {"architectures/index.md"}
    found = pkgutil.walk_packages(af.__path__, "anyformer.", onerror=lambda name: None)
    modules = ["anyformer", *(m.name for m in found if not re.search(r"\._", m.name))]
    expected |= {api_page(name) for name in modules}
    expected |= {f"tutorials/{file.stem}.md" for file in (ROOT / "examples" / "tutorials").glob("*.py")}
    expected |= {f"examples/{file.stem}.md" for file in (ROOT / "examples").glob("*.py")}
    assert set(PAGES) == expected
    assert len(PAGES) == len(set(PAGES))


@pytest.mark.parametrize("script", tutorials.tutorials(), ids=lambda script: script.stem)
def test_a_tutorial_prints_what_the_site_shows(script: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(script)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed, shown = json.loads(done.stdout.splitlines()[-1]), tutorials.kept(script)
    code = [cell for cell in tutorials.cells(script) if not cell.prose]
    assert len(printed) == len(shown) == len(code)
    for new, old in zip(printed, shown, strict=True):
        assert tutorials.alike(new, old), f"prints\n{new}\nand the site shows\n{old}"


def test_outputs_that_differ_are_found() -> None:
    assert tutorials.alike("loss 2.31 in 40 steps", "loss  2.30 in 40 steps")
    assert not tutorials.alike("loss 2.31 in 40 steps", "loss 2.31 in 41 steps")
    assert not tutorials.alike("loss 2.31", "loss 3.31")
    assert not tutorials.alike("True", "False")


@pytest.mark.parametrize("name", ["concepts", "data", "music", "vision"])
def test_a_document_prints_what_it_shows(name: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    text, names = (ROOT / "docs" / f"{name}.md").read_text(), {"__name__": name}
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S)
    assert len(blocks) == text.count("```python")
    for code, shown in blocks:
        exec(compile(code, f"docs/{name}.md", "exec", dont_inherit=True), names)
        assert capsys.readouterr().out == shown


@pytest.mark.parametrize("page", af.pages(), ids=lambda page: page.name)
def test_an_entry_of_the_gallery_has_all_sections(page: Any) -> None:
    text = gallery.entry(page)
    sections = re.findall(r"^## (\w+)$", text, re.M)
    assert sections == ["Differences", "Wiring", "Sizes", "Files", "Recipe"]
    assert re.search(r"[Dd]iffers from (the )?(2017 )?\[", text), "no link to the relative"
    files = text.partition("## Files")[2].partition("## Recipe")[0]
    assert all(f"`{name}`" in files for hub in page.module.HUBS for name in (hub.name, *hub.architectures))
    sizes = text.partition("## Sizes")[2].partition("## Files")[0]
    assert all(f"| `{size}` | {gallery.parameters(page, size):,} |" in sizes for size in page.sizes)


@pytest.mark.parametrize("hub", hubs())
def test_the_link_to_an_oracle_leads_to_its_folder_in_transformers(hub: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="links are compared with its folders")
    for name in hub.architectures:
        folder = getattr(transformers, name).__module__.split(".")[2]
        assert gallery.oracle(hub).removeprefix(gallery.ORACLES).replace("-", "_") == folder


def test_links_lead_to_the_site() -> None:
    home = {"docs/a.md": "a.md", "docs/x.png": "x.png", "README.md": "index.md"}
    text = "[a](docs/a.md#b) ![x](docs/x.png) [licence](LICENSE) [gone](gone.md) [out](https://x.org/)\n```\n[a](docs/a.md)\n```\n"
    new = "[a](a.md#b) ![x](x.png) licence [gone](gone.md) [out](https://x.org/)\n```\n[a](docs/a.md)\n```\n"
    assert site.relinked(text, "index.md", "README.md", home) == new
    assert site.relinked("[r](../README.md)", "a.md", "docs/a.md", home) == "[r](index.md)"
    assert (
        site.relinked('<img width="9" src="docs/x.png">', "d/i.md", "README.md", home)
        == '<img width="9" src="../x.png">'
    )


def test_the_reference_of_a_package_leads_to_where_its_names_are_defined() -> None:
    text = api.page("anyformer.parts")
    assert "[`Rotary`][anyformer.parts.positions.Rotary]" in text
    assert "[`anyformer.parts.block`](block.md)" in text and "[`anyformer.parts.attention`](attention/index.md)" in text
    for name in modules():
        for home, member in re.findall(r"\]\[(anyformer[\w.]*)\.(\w+)\]", api.page(name)):
            assert getattr(importlib.import_module(home), member).__module__ == home
