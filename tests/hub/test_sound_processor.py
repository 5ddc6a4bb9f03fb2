"""The sound processor: its numbers are the published ones, its files are read and written without loss, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.hub.processors import SoundProcessor, read_processor, write_processor
from anyformer.media.mels import PIECE, filters

torch.set_num_threads(1)
CONFIGS = Path(__file__).parents[3] / "shared/data/configs/whisper"
FILE: dict[str, Any] = {
    "chunk_length": 30, "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "hop_length": 160,
    "n_fft": 400, "n_samples": 480000, "nb_max_frames": 3000, "padding_side": "right", "padding_value": 0.0,
    "processor_class": "WhisperProcessor", "return_attention_mask": False, "sampling_rate": 16000,
}  # fmt: skip


def noise(count: int, size: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(count).standard_normal(count) * size).astype(np.float32)


def made(said: Any, folder: Path, name: str = "preprocessor_config.json", **options: Any) -> SoundProcessor:
    (folder / name).write_text(json.dumps(said))
    found = read_processor(folder, takes=("input_features",), **options)
    assert isinstance(found, SoundProcessor)
    return found


def oracle(**options: Any) -> Any:
    return pytest.importorskip("transformers").WhisperFeatureExtractor(**options)


SOUNDS = {
    "one sample": noise(1), "short": noise(150), "a second": noise(16000), "loud": noise(8000, 1.0),
    "odd": noise(77777), "whole window": noise(480000), "silence": np.zeros(16000, np.float32),
    "a click": np.eye(1, 5000, 2500, np.float32)[0], "constant": np.full(9000, 0.3, np.float32),
    "quiet": noise(32000, 1e-6),
}  # fmt: skip


@pytest.mark.parametrize("mels", [80, 128])
def test_features_are_the_published_ones(mels: int) -> None:
    theirs, ours = oracle(feature_size=mels), SoundProcessor(mels=mels)
    np.testing.assert_allclose(filters(mels, 201, 16000).numpy(), theirs.mel_filters.T, rtol=0, atol=1e-8)
    for name, samples in SOUNDS.items():
        expected = torch.tensor(theirs(samples, sampling_rate=16000)["input_features"])
        found = ours((samples, 16000))["input_features"]
        assert found.shape == (1, mels, 3000) and found.dtype == torch.float32
        assert float((found - expected).abs().max()) <= 1e-6, name


@pytest.mark.parametrize("options", [{"n_fft": 512, "hop_length": 128}, {"sampling_rate": 8000, "chunk_length": 2}])
def test_features_of_other_numbers_are_the_published_ones(options: dict[str, int]) -> None:
    theirs = oracle(**options)
    ours = SoundProcessor(
        rate=theirs.sampling_rate, hop=theirs.hop_length, size=theirs.n_fft, window=theirs.chunk_length
    )
    samples = noise(9000)
    expected = torch.tensor(theirs(samples, sampling_rate=theirs.sampling_rate)["input_features"])
    torch.testing.assert_close(ours((samples, ours.rate))["input_features"], expected, rtol=0, atol=1e-6)


def test_long_sounds_in_pieces_are_the_whole() -> None:
    samples = noise(160 * (PIECE + 123) + 77)
    expected = oracle()(samples, sampling_rate=16000, truncation=False, padding="longest")["input_features"]
    torch.testing.assert_close(SoundProcessor().features(samples), torch.tensor(expected)[0], rtol=0, atol=1e-6)


def test_several_sounds_are_as_each_alone() -> None:
    ours, both = SoundProcessor(mels=8), [(noise(999), 16000), (noise(4000), 16000)]
    assert torch.equal(ours(both)["input_features"], torch.cat([ours(one)["input_features"] for one in both]))


def test_another_rate_and_channels_are_converted() -> None:
    pytest.importorskip("soxr")
    ours, at = SoundProcessor(), np.arange(48000) / 48000
    tone = (0.5 * np.sin(2 * np.pi * 440 * at)).astype(np.float32)
    found, expected = (ours(s)["input_features"] for s in ((np.stack((tone, tone), 1), 48000), (tone[::3], 16000)))
    assert float((found - expected)[:, :, :90].abs().mean()) < 0.02


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((noise(480001), 16000), "the sound has 30.0 seconds, and the model reads 30 at once: .*transcribe reads any"),
        ([], "there are no sounds: the list is empty"),
        (noise(100), "The rate must be known"),
        ((np.zeros(0), 16000), "the sound is empty"),
    ],
)  # fmt: skip
def test_what_is_no_window_of_sound_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoundProcessor()(given)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_a_file_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    whole = FILE if name[:3] == "pre" else {"feature_extractor": FILE, "processor_class": "WhisperProcessor"}
    found = made(whole, tmp_path, name)
    assert found == SoundProcessor()
    (tmp_path / "out").mkdir()
    write_processor(tmp_path / "out", found)
    assert json.loads((tmp_path / "out" / name).read_text()) == whole
    assert {line.key for line in found.origin.lines} >= FILE.keys()


def test_ours_opens_there(tmp_path: Path) -> None:
    write_processor(tmp_path, SoundProcessor(mels=128))
    theirs = type(oracle()).from_pretrained(tmp_path)
    assert (theirs.feature_size, theirs.n_fft, theirs.nb_max_frames) == (128, 400, 3000)
    assert read_processor(tmp_path, takes=("input_features",)) == SoundProcessor(mels=128)


def test_a_stored_filter_matrix_is_compared_and_kept(tmp_path: Path) -> None:
    old = {**FILE, "mel_filters": filters(80, 201, 16000).tolist()}
    found = made(old, tmp_path)
    write_processor(tmp_path, found)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == old
    for wrong in ([[0.0]], "x", filters(80, 201, 8000).tolist(), filters(128, 201, 16000).tolist()):
        with pytest.raises(ValueError, match=r"'mel_filters' of shape .* is another matrix than"):
            made({**FILE, "mel_filters": wrong}, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "'feature_extractor_type' is 'Wav2Vec2FeatureExtr"),
        ({"n_samples": 1}, "'n_samples' is 1, and the other keys make it 480000"),
        ({"nb_max_frames": 2999}, "'nb_max_frames' is 2999, and the other keys make it 3000"),
        ({"padding_value": 1.0}, "padding_value"),
        ({"padding_side": "left"}, "padding_side"),
        ({"dither": 0.1}, "dither"),
        ({"sampling_rate": 0}, "rate is 0; expected at least 1"),
        ({"hop_length": -1}, "config key 'hop_length': expected a whole number from 0"),
        ({"n_fft": "x"}, "n_fft"),
        ({"feature_size": 10**9}, "feature_size"),
        ({"no_such_key": 1}, "unknown config keys: no_such_key=1"),
    ],
)  # fmt: skip
def test_a_file_that_means_something_else_is_refused_by_its_key(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        made({**FILE, **change}, tmp_path)


@pytest.mark.skipif(not CONFIGS.is_dir(), reason=f"there are no published files in {CONFIGS}")
def test_published_files_are_read_and_written_back(tmp_path: Path) -> None:
    every = sorted(CONFIGS.glob("*preprocessor_config.json"))
    assert len(every) > 1
    for path in every:
        said = json.loads(path.read_text())
        found = made(said, tmp_path)
        assert found.mels == said["feature_size"]
        write_processor(tmp_path, found)
        assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == said


def test_a_saved_model_has_its_processor(tmp_path: Path) -> None:
    model = af.build("whisper", "tiny", mels=8, frames=50, seed=0)
    model.processor = SoundProcessor(mels=8, window=1)
    model.save(tmp_path)
    again = af.load(tmp_path)
    assert again.processor == model.processor
    assert "preprocessor_config.json" in again.ledger.files
    given = again.processor((noise(9000), 16000))
    assert again(**given, decoder_input_ids=torch.tensor([[3]])).logits.shape == (1, 1, 128)
