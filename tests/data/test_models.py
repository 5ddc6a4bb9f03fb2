"""The meaning of MODEL is one for every verb."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import anyformer as af
from anyformer.core import listing, pages
from anyformer.data import sources
from anyformer.data.models import find, kind, last
from anyformer.train.model_source import model_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    af.build("gpt", "tiny", seed=0).save(made)
    return made


def test_a_name_is_of_one_kind(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(af.recipe("gpt").to_json()))
    (tmp_path / "broken.json").write_text("{")
    named: dict[str, list[Path | str]] = {
        "architecture": ["gpt", "t5"],
        "recipe": [tmp_path / "recipe.json"],
        "config": [folder / "config.json", tmp_path / "broken.json"],
        "weights": [folder, "smollm2", "owner/name", tmp_path / "nowhere.json", "model.gguf"],
    }
    assert {k: [kind(str(name)) for name in names] for k, names in named.items()} == {
        k: [k] * len(names) for k, names in named.items()
    }


def test_what_has_weights_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "get", lambda name: Path("fetched") / name)
    assert find(str(folder)) == folder
    assert find("smollm2") == Path("fetched/smollm2")
    assert find("owner/name") == "owner/name"
    with pytest.raises(FileNotFoundError, match=r"no model 'smolm2' .did you mean smollm2"):
        find("smolm2")


def test_what_has_none_is_refused_and_trained(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(af.recipe("gpt").to_json()))
    with pytest.raises(ValueError, match=r"recipe.json is a recipe, without weights: `anyformer train --mod"):
        find(str(tmp_path / "recipe.json"))
    assert model_source(str(tmp_path / "recipe.json"), None, None).facts["model"] == af.recipe("gpt").to_json()
    for read in (find, lambda name: model_source(name, None, None)):
        with pytest.raises(ValueError, match=r"config.json describes a model without weights; pass the folder"):
            read(str(folder / "config.json"))


def test_an_architecture_is_none_also_beside_a_folder_of_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "gpt")
    assert kind("gpt") == "architecture"
    with pytest.raises(ValueError, match=r"'gpt' is an architecture, without weights.*the folder here is ./gpt"):
        find("gpt")
    assert find("./gpt") == Path("gpt")


def test_a_run_is_its_merged_model_or_its_newest_checkpoint(folder: Path, tmp_path: Path) -> None:
    assert last(tmp_path) == tmp_path and last(tmp_path / "no") == tmp_path / "no"
    for name in ("step-000009", "step-000100", "step-1000000", ".step-2000000.tmp", "step-x"):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "step-3000000").mkdir()  # of adapters: no model of its own
    assert last(tmp_path) == tmp_path / "step-1000000"
    shutil.copytree(folder, tmp_path / "model")
    assert find(str(tmp_path)) == tmp_path / "model"
    assert last(folder) == folder


def test_the_listing_is_what_the_pages_say() -> None:
    assert listing.names() == pages.names()
    for page in pages.pages():
        read = listing.entry(page.name)
        assert (read.summary, read.sizes) == (page.summary, page.module.PARAMETERS)
        assert list(read.sizes) == list(page.sizes)
