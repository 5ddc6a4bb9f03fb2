"""Files of EnCodec: both generations of names, derived keys, the processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.hub.processors import CodecProcessor

OLD = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = redrawn(af.build("encodec", "tiny", residual=2, lstm=2))
    model.processor = CodecProcessor(model.rate)
    model.save(tmp_path)
    return tmp_path


def test_names_of_both_generations_are_read_and_written_back(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = {n: n for n in tensors}
    for new, old in OLD.items():
        names = {n: renamed.replace(new, old) for n, renamed in names.items()}
    assert (
        "encoder.layers.1.block.1.conv.weight_g" in names.values()
        and "encoder.layers.4.conv.weight_v" in names.values()
    )
    save_file({names[n]: t for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    model = af.load(folder)
    model.save(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == set(names.values()) and all(torch.equal(again[names[n]], tensors[n]) for n in tensors)


def test_derived_keys_are_compared(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())

    def says(**changes: object) -> None:
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    says(frame_rate=20, hop_length=6, codebook_nbits=4, num_quantizers=3, codebook_dim=None)
    af.load(folder)
    for name, value in {"frame_rate": 21, "num_quantizers": 4, "codebook_dim": 7, "codebook_nbits": 5}.items():
        says(**{name: value})
        with pytest.raises(ValueError, match=f"config key '{name}' is {value}"):
            af.load(folder)
    says(norm_type="layer_norm")
    with pytest.raises(ValueError, match="'norm_type' is 'layer_norm'; expected one of weight_norm, time_group_norm"):
        af.load(folder)


def test_the_processor_makes_the_inputs_of_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    steps = af.load(folder).processor
    assert steps == CodecProcessor(120) and str(steps) == "1 channel of 120 Hz"
    theirs = transformers.EncodecFeatureExtractor.from_pretrained(folder)
    noise = np.random.default_rng(0)
    rows = [noise.normal(0, 0.1, n).astype(np.float32) for n in (50, 31)]
    wanted = theirs(rows, sampling_rate=120, return_tensors="pt")
    made = steps([(row, 120) for row in rows])
    assert torch.equal(made["input_values"].mT, wanted["input_values"])
    assert torch.equal(made["attention_mask"], wanted["padding_mask"].long())
    both = CodecProcessor(120, 2)
    assert torch.equal(both((rows[0], 120))["input_values"][..., 1], made["input_values"][:1, ..., 0])  # one in both
    stereo = np.stack((rows[0], -rows[0]), 1)
    assert np.abs(CodecProcessor(120)((stereo, 120))["input_values"].numpy()).max() < 1e-7  # the mean
    with pytest.raises(ValueError, match="the sound has 3 channels, and 2 are needed"):
        both((np.zeros((9, 3), np.float32), 120))
    content = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**content, "angle": 1}))
    with pytest.raises(ValueError, match="angle=1"):
        af.load(folder)
