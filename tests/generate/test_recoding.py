"""A codec learns sounds by the options of all tasks; sounds become codes in a file, and sounds again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.generate import recoding
from anyformer.skeletons.base import Output
from anyformer.train import train
from anyformer.train.sound_objectives import SoundDistance
from anyformer.train.tasks.codes import Seconds

torch.set_num_threads(1)
RATE = 120


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for i in range(30):
        time = np.arange(80 + 10 * i) / RATE
        soundfile.write(folder / f"{i:02}.wav", 0.6 * np.sin(2 * np.pi * (3 + i % 4) * time), RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def run(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    options: dict[str, Any] = {"steps": 150, "batch": 8, "lr": 1e-2, "warmup": 5, "quiet": True, "device": "cpu"}
    return train("encodec", "tiny", data=sounds, out=tmp_path_factory.mktemp("run") / "codec", **options)


def test_a_codec_learns_sounds_and_says_them_again(run: Any, sounds: Path, tmp_path: Path) -> None:
    assert run.task == "reconstruct" and run.held_out < 0.6 * run.baseline
    model: Any = af.load(run.checkpoint)
    used = model.codes_of(**model.processor([str(f) for f in sorted(sounds.glob("*.wav"))])).codes
    assert all(len(used[..., q].unique()) > 4 for q in range(3))  # no book is dead
    file = sounds / "07.wav"
    coded = recoding.encode(model, file)
    again = recoding.decode(model, coded)
    true = soundfile.read(file, dtype="float32")[0]
    assert again.rate == RATE and again.samples.shape == true.shape
    assert np.square(again.samples - true).mean() < 0.5 * np.square(true).mean()
    few = recoding.encode(model, file, 0.08)
    assert recoding.bits_a_second(model, few) == 80.0 and few.codes.shape[2] == 1
    name = recoding.keep(tmp_path / "a.npz", model, coded)
    back = recoding.kept(name, model)
    assert (
        torch.equal(back.codes, coded.codes) and back.counts.tolist() == coded.counts.tolist() and back.scales is None
    )
    with pytest.raises(ValueError, match="holds codes of another codec"):
        recoding.kept(name, af.build("encodec", "tiny"))
    recoding.write(tmp_path / "a.wav", again)
    assert np.abs(soundfile.read(tmp_path / "a.wav")[0] - again.samples.clip(-1, 1)).max() < 1e-4


def test_the_command_writes_codes_and_sounds(run: Any, sounds: Path, tmp_path: Path, capsys: Any) -> None:
    folder, file = str(run.checkpoint), str(sounds / "03.wav")
    argv = ["reconstruct", folder, file, "--out", str(tmp_path / "a.npz"), "--bandwidth", "0.08"]
    assert main(argv) == 0 and capsys.readouterr().out.strip().endswith("a.npz: 83 bits a second")
    assert main(["reconstruct", folder, str(tmp_path / "a.npz"), "--out", str(tmp_path / "a.wav")]) == 0
    assert soundfile.info(tmp_path / "a.wav").frames == soundfile.info(file).frames
    for wrong, problem in (
        ((folder, file, "--bandwidth", "3"), "bandwidth=3.0: this codec has 0.08, 0.25"),
        ((folder, str(tmp_path / "a.npz"), "--bandwidth", "0.08"), "bandwidth is chosen when a sound becomes codes"),
        ((folder, file, "--out", "a.mp3"), "sounds are written to files that end in .wav or .flac"),
        ((folder, str(tmp_path / "none.wav")), "there is no file"),
    ):
        assert main(["reconstruct", *wrong]) == 2 and problem in capsys.readouterr().err


def test_bad_sounds_are_refused_by_name(run: Any, tmp_path: Path) -> None:
    model: Any = af.load(run.checkpoint)
    for samples, problem in (
        (np.zeros(0, np.float32), "is empty"),
        (np.array([0.1, np.nan], np.float32), "a sample is NaN"),
        (np.zeros(3600 * RATE, np.float32), "has 3600 seconds, and at most 600 are coded at once"),
    ):
        with pytest.raises(ValueError, match=problem):
            recoding.encode(model, (samples, RATE))
    one = recoding.encode(model, (np.array([0.5], np.float32), RATE))
    assert one.codes.shape == (1, 1, 3) and recoding.decode(model, one).samples.shape == (1,)
    resampled = recoding.encode(model, (np.zeros(160, np.float32), 160))
    assert resampled.counts.tolist() == [120]
    with pytest.raises(ValueError, match="samples alone could be any sound"):
        recoding.encode(model, np.zeros(9, np.float32))
    with pytest.raises(ValueError, match="llama is no codec of sound"):
        recoding.encode(af.build("llama", "tiny"), (np.zeros(9, np.float32), RATE))
    (tmp_path / "a.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read as codes"):
        recoding.kept(tmp_path / "a.npz", model)


def test_seconds_belong_to_the_number_of_an_example() -> None:
    model: Any = af.build("encodec", "tiny")
    sounds = torch.randn(6, 400, 1)
    mask = torch.ones(6, 400, dtype=torch.long)
    mask[2, 50:] = 0

    class Source:
        def rows(self, first: int, count: int) -> dict[str, torch.Tensor]:
            return {"input_values": sounds[first : first + count], "attention_mask": mask[first : first + count]}

    whole = Seconds(Source(), model, 3).rows(0, 6)  # type: ignore[arg-type]
    parts = [Seconds(Source(), model, 3).rows(a, n) for a, n in ((0, 2), (2, 4))]  # type: ignore[arg-type]
    for name in ("input_values", "books"):
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    assert whole["input_values"].shape == (6, RATE, 1) and set(whole["books"].tolist()) <= {1, 3}
    assert whole["labels"][2].isfinite().sum() == 50 == whole["attention_mask"][2].sum()
    middle = Seconds(Source(), model, 3, learns=False).rows(0, 6)  # type: ignore[arg-type]
    assert "books" not in middle and torch.equal(middle["input_values"][0], sounds[0, 140:260])


def test_the_distance_is_zero_for_the_sound_itself_and_does_not_see_padding() -> None:
    distance, x = SoundDistance(8000, windows=(64, 256)), torch.randn(2, 600, 2)
    labels = x.clone()
    labels[1, 300:] = torch.nan
    count = distance.counted(labels)
    assert int(count) == 1800 and float(distance(Output(heads={"sound": x}), labels, count)) == 0.0
    other = x + 0.1 * torch.randn(x.shape)
    far = float(distance(Output(heads={"sound": other}), labels, count))
    other[1, 300:] = 5.0
    assert far > 0.05 and float(distance(Output(heads={"sound": other}), labels, count)) == pytest.approx(far)
    assert distance.guess(labels) / float(count) > 10 * far


def test_the_distance_of_a_sound_does_not_depend_on_those_beside_it() -> None:
    distance = SoundDistance(8000, windows=(64, 256))
    lengths, x = (600, 250, 70, 20), torch.randn(4, 600, 1, generator=torch.Generator().manual_seed(0))
    wanted = torch.randn(4, 600, 1, generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths):
        wanted[row, length:] = torch.nan
    whole = distance(Output(heads={"sound": x}), wanted, 1.0)
    alone = [distance(Output(heads={"sound": x[i : i + 1, :n]}), wanted[i : i + 1, :n], 1.0)
             for i, n in enumerate(lengths)]  # fmt: skip
    torch.testing.assert_close(whole, torch.stack(alone).sum())
