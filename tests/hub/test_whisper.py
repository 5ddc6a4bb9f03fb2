"""Whisper's page: published sizes, files with other values, sounds of another length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer.core import pages
from anyformer.parts import Attention, Mels
from anyformer.parts.sound.mels import sines
from anyformer.train import train

torch.set_num_threads(1)
PUBLISHED = {  # values in the published files, tied ones once
    "tiny.en": 37_760_256,
    "whisper-tiny": 37_760_640,
    "base.en": 72_593_408,
    "base": 72_593_920,
    "small": 241_734_912,
    "medium": 763_857_920,
    "large-v2": 1_543_304_960,
    "large-v3": 1_543_490_560,
    "large-v3-turbo": 808_878_080,
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_size_has_as_many_values_as_its_published_file(size: str) -> None:
    page = af.page("whisper")
    stored = pages.empty(page.recipe(page.at(size))).state_dict()
    assert sum(t.numel() for t in stored.values()) == PUBLISHED[size]
    assert sum(t.numel() for n, t in stored.items() if n != "source.places") == page.module.PARAMETERS[size]


def test_places_are_those_of_the_oracle_and_no_optimiser_sees_them() -> None:
    from transformers.models.whisper.modeling_whisper import sinusoids

    torch.testing.assert_close(sines(1500, 384), sinusoids(1500, 384), rtol=0, atol=1e-6)
    model = af.build("whisper", "tiny", seed=0)
    assert torch.equal(model.source.places, sines(9, 32))
    assert not [name for name, _ in model.named_parameters() if "places" in name]


@pytest.mark.parametrize("shape", [(1, 7, 17), (1, 7, 16), (1, 8, 18), (7, 18), (1, 7, 20)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = af.build("whisper", "tiny", seed=0)
    with pytest.raises(ValueError, match=r"input_features must be \(batch, 7, 18\), got .*pads a shorter sound"):
        model(input_features=torch.zeros(shape), decoder_input_ids=torch.tensor([[3]]))


def test_a_text_is_no_sound() -> None:
    model = af.build("whisper", "tiny", seed=0)
    with pytest.raises(ValueError, match=r"whisper writes about input_features, not about a text: .*transcribe"):
        model.generate([[1, 2, 3]])
    with pytest.raises(ValueError, match="no part of this model reads 'input_ids'"):
        model(input_ids=torch.tensor([[1]]), decoder_input_ids=torch.tensor([[3]]))


def test_a_target_has_a_limit_and_the_source_its_own() -> None:
    model = af.build("whisper", "tiny", context=5, seed=0)  # fewer tokens than the 9 positions of the source
    features = torch.randn(1, 7, 18)
    assert model(input_features=features, decoder_input_ids=torch.ones(1, 5).long()).logits.shape == (1, 5, 128)
    with pytest.raises(ValueError, match="6 tokens do not fit the context of 5"):
        model(input_features=features, decoder_input_ids=torch.ones(1, 6).long())


@pytest.mark.parametrize(("bias", "expected"), [("qv", "qvo"), ("k", "ko"), (True, "qkvo"), (False, "")])
def test_projections_have_the_named_biases(bias: bool | str, expected: str) -> None:
    attention = Attention(8, heads=2, bias=bias)
    assert "".join(n for n in "qkvo" if getattr(attention, n).bias is not None) == expected
    assert Attention(8, heads=2, bias=bias, out_bias=False).o.bias is None


@pytest.mark.parametrize("bias", ["", "qx", "o"])
def test_letters_of_no_projection_are_refused(bias: str) -> None:
    with pytest.raises(ValueError, match=r"bias is True, False, or some of the letters q, k, v; got"):
        Attention(8, heads=2, bias=bias)


@pytest.mark.parametrize(("dim", "mels", "context"), [(7, 3, 4), (2, 3, 4), (8, 0, 4), (8, 3, 0)])
def test_sizes_that_make_no_front_end_are_refused(dim: int, mels: int, context: int) -> None:
    with pytest.raises(ValueError, match="Mels: mels="):
        Mels(dim, mels=mels, context=context)


def test_keys_of_its_training_are_read_listed_and_written_back(tmp_path: Path) -> None:
    model = af.build("whisper", "tiny", seed=0)
    model.save(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    added = {"encoder_layerdrop": 0.1, "decoder_layerdrop": 0.05, "apply_spec_augment": True, "mask_time_prob": 0.05}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | added))
    again = af.load(tmp_path / "a")
    lines = {line.key: line for line in again.ledger.config}
    assert all(lines[key].status == "ignored" and "training" in lines[key].detail for key in added)
    again.save(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text()).items() >= added.items()


def test_no_task_learns_from_texts_here(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 60)
    with pytest.raises(ValueError, match=r"whisper \(EncoderDecoder\) cannot be trained on text or rows"):
        train(model="whisper", data=str(tmp_path / "text.txt"), out=str(tmp_path / "run"))
