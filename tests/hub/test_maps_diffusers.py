"""Directories of diffusers: the config names a class, the weights have names of their own. Written and read by format
alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anyformer.hub import load, save
from anyformer.hub.load import outline
from anyformer.hub.tables.weights import Hub
from tests.hub import statue

CLASS = "StatueTransformer2DModel"


@pytest.fixture(autouse=True)
def _page():
    with statue.page(statue.THEIRS):
        yield


def rewritten(folder: Path, **changes: object) -> None:
    """The config of a folder with these keys; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize("limit", [10**9, 500], ids=["one file", "several"])
def test_a_model_is_written_as_diffusers_lays_it_out_and_read_again(tmp_path: Path, limit: int) -> None:
    model = statue.made()
    assert save(model, tmp_path, limit) == CLASS
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"_class_name": CLASS, "_diffusers_version": "0.35.0", "width": 4, "layers": 3, "words": 11}
    names = {path.name for path in tmp_path.iterdir()} - {"config.json"}
    assert all(name.startswith("diffusion_pytorch_model") for name in names)
    assert ("diffusion_pytorch_model.safetensors.index.json" in names) is (limit == 500)
    assert ("diffusion_pytorch_model.safetensors" in names) is (limit != 500)
    again = load(tmp_path)
    assert (again.ledger.format, again.page) == ("diffusers", "statue")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert outline(tmp_path).recipe == model.recipe


def test_what_the_files_said_is_written_back(tmp_path: Path) -> None:
    save(statue.made(), tmp_path)
    rewritten(tmp_path, _diffusers_version="0.20.1", _name_or_path="a/b")
    save(load(tmp_path), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        (tmp_path / "config.json").read_text()
    )
    name = "diffusion_pytorch_model.safetensors"
    one, other = load_file(tmp_path / name), load_file(tmp_path / "again" / name)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_saving_again_in_other_files_leaves_no_former_ones(tmp_path: Path) -> None:
    for limit in (500, 10**9, 500):
        save(statue.made(seed=limit % 7), tmp_path, limit)
        names = [path.name for path in tmp_path.iterdir()]
        single = "diffusion_pytorch_model.safetensors" in names
        assert single is (limit != 500) and (len(names) == 2) is single
        assert load(tmp_path).page == "statue"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "StatueTransformer3DModel"},
            "no page reads the _class_name .*Statue",
        ),
        ({"_class_name": None}, "no weights; looked for model.safetensors"),
        ({"_class_name": [3]}, "must be a list of class names"),
        ({"model_type": "bert"}, "no weights; looked for model.safetensors"),
        ({"angle": 3}, "unknown config keys: angle=3"),
        ({"width": None}, "lacks 'width'"),
    ],
)
def test_a_config_that_is_no_such_model_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    save(statue.made(), tmp_path)
    rewritten(tmp_path, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(tmp_path)


def test_the_weights_are_looked_for_under_the_names_of_diffusers(tmp_path: Path) -> None:
    save(statue.made(), tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"looked for diffusion_pytorch_model\.safetensors, .*index.json"):
        load(tmp_path)


def test_a_pickle_of_theirs_is_refused_unless_asked_for(tmp_path: Path) -> None:
    save(statue.made(), tmp_path)
    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"a pickle \(diffusion_pytorch_model.bin\)"):
        load(tmp_path)
    with pytest.warns(UserWarning, match="reading diffusion_pytorch_model.bin"):
        assert load(tmp_path, allow_pickle=True).page == "statue"


@pytest.mark.parametrize("first", [statue.HF, statue.THEIRS], ids=["transformers", "diffusers"])
def test_a_model_of_two_formats_is_written_in_that_of_its_files(tmp_path: Path, first: Hub) -> None:
    second = statue.THEIRS if first is statue.HF else statue.HF
    with statue.page(first):
        save(statue.made(), tmp_path / "one")
    with statue.page(second, first):
        save(load(tmp_path / "one"), tmp_path / "again")
    assert {p.name for p in (tmp_path / "again").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}
