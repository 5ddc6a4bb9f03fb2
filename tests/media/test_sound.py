"""Sounds are read by their meaning, or refused with their name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer.media import sound as module
from anyformer.media.sound import Sound, sound


def tone(count: int = 4000, rate: int = 16000, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(count) / rate)).astype(np.float32)


def same(found: Sound, expected: np.ndarray, atol: float = 0.0) -> None:
    assert found.samples.dtype == np.float32 and found.samples.ndim == 1
    np.testing.assert_allclose(found.samples, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("kind", "subtype", "atol"),
    [("wav", "PCM_U8", 1 / 128), ("wav", "PCM_16", 1 / 2**15), ("wav", "PCM_24", 1 / 2**23), ("wav", "PCM_32", 1e-7),
     ("wav", "FLOAT", 0.0), ("wav", "DOUBLE", 0.0), ("flac", "PCM_24", 1 / 2**23), ("wav", "ULAW", 0.02),
     ("ogg", "VORBIS", 0.05)],
)  # fmt: skip
def test_files_of_every_depth_are_the_same_sound(kind: str, subtype: str, atol: float, tmp_path: Path) -> None:
    files = pytest.importorskip("soundfile")
    path = tmp_path / f"a.{kind}"
    files.write(path, tone(), 22050, subtype=subtype)
    found = sound(path)
    assert found.rate == 22050 and found.name == str(path) and found.seconds == pytest.approx(4000 / 22050)
    same(found, tone(), atol)


def test_arrays_of_every_type_are_the_same_sound() -> None:
    x = tone()
    forms: dict[str, tuple[Any, float]] = {
        "float32": (x, 0.0), "float64": (x.astype(np.float64), 0.0), "float16": (x.astype(np.float16), 1e-3),
        "int16": (np.round(x * 2**15).astype(np.int16), 2**-15),
        "int32": ((x.astype(np.float64) * 2**31).astype(np.int32), 1e-7),
        "uint8": (np.round(x * 128 + 128).astype(np.uint8), 2**-7), "tensor": (torch.from_numpy(x), 0.0),
        "list": (x.tolist(), 0.0), "stereo": (np.stack((x, x), 1), 0.0), "one channel": (x[:, None], 0.0),
    }  # fmt: skip
    for name, (samples, atol) in forms.items():
        found = sound((samples, 8000))
        assert found.rate == 8000, name
        same(found, x, max(atol, 1e-8))
    assert sound(found) is found


def test_channels_become_their_mean(tmp_path: Path) -> None:
    both = np.stack((tone(), -tone() / 2, np.zeros(4000, np.float32)), 1)
    same(sound((both, 8000)), tone() / 6, 1e-7)
    files = pytest.importorskip("soundfile")
    files.write(tmp_path / "a.wav", both, 8000, subtype="FLOAT")
    same(sound(tmp_path / "a.wav"), tone() / 6, 1e-7)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_another_rate_is_the_same_tone(rate: int) -> None:
    pytest.importorskip("soxr")
    found = sound((tone(rate, rate), rate)).at(16000)
    assert found.rate == 16000 and abs(len(found.samples) - 16000) <= 1
    inner = slice(800, 15000)  # the ends ring
    np.testing.assert_allclose(found.samples[inner], tone(16000)[inner], rtol=0, atol=1e-3)
    assert found.at(16000) is found


def test_what_a_lower_rate_cannot_hold_is_filtered_out() -> None:
    pytest.importorskip("soxr")
    assert np.abs(sound((tone(48000, 48000, 15000.0), 48000)).at(16000).samples[800:-800]).max() < 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tone(), r"a sound is the name of a file, or \(samples, rate in Hz\); got ndarray. The rate must be known"),
        ((tone(), None), "the rate is None; expected 100 to 1,000,000 samples a second"),
        ((tone(), 0), "the rate is 0"),
        ((tone(), -8000), "the rate is -8000"),
        ((tone(), True), "the rate is True"),
        ((tone(), 16000.5), "the rate is 16000.5"),
        ((np.zeros(0, np.float32), 16000), "the sound is empty"),
        ((np.zeros((0, 2), np.float32), 16000), "the sound is empty"),
        ((np.array([0.1, np.nan]), 16000), "a sample is NaN or infinite"),
        ((np.array([0.1, np.inf]), 16000), "a sample is NaN or infinite"),
        ((np.array([0.0, 20000.0]), 16000), "samples are -1 … 1, and one is 20000; give whole numbers as int16"),
        ((np.array([1, 2]), 16000), "samples are int64, whose largest value is not known; give uint8, int16, int32"),
        ((np.zeros((2, 3, 4)), 16000), r"samples have the shape \(2, 3, 4\)"),
        ((np.zeros((2, 4000)), 16000), r"samples have the shape \(2, 4000\); expected .* at most 32 channels"),
        ((np.float32(0.0), 16000), r"samples have the shape \(\)"),
        (3, "a sound is the name of a file"),
    ],
)  # fmt: skip
def test_no_sound_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sound(given)


def test_one_sample_is_a_sound() -> None:
    same(sound((np.array([0.25]), 16000)), np.array([0.25]))


def test_files_that_are_no_sound_are_refused_by_name(tmp_path: Path) -> None:
    files = pytest.importorskip("soundfile")
    with pytest.raises(ValueError, match=re.escape(f"there is no file {str(tmp_path / 'no.wav')!r}")):
        sound(tmp_path / "no.wav")
    for name, content in {"a.wav": b"RIFF", "b.m4a": b"\0\0\0\x20ftypM4A ", "c.raw": bytes(100), "d.wav": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as a sound: .*convert others first"):
            sound(tmp_path / name)
    files.write(tmp_path / "e.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(ValueError, match=r"e\.wav is empty: it has no samples"):
        sound(tmp_path / "e.wav")
    files.write(tmp_path / "f.wav", np.array([np.nan, 0.0], np.float32), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"f\.wav: a sample is NaN or infinite; is the file whole"):
        sound(tmp_path / "f.wav")


def test_without_its_libraries_one_line_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    (tmp_path / "a.wav").write_bytes(b"")
    for call in (lambda: sound(tmp_path / "a.wav"), lambda: sound((tone(), 8000)).at(16000)):
        with pytest.raises(ImportError, match="sound needs `pip install soundfile soxr`"):
            call()
