"""A design on sounds: the same steps as on texts, features that the script makes alone, and rows held out."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.core import pages
from anyformer.edge import artefact, design
from anyformer.edge.design import Design
from anyformer.edge.finish import designed
from anyformer.edge.medium import Sounds
from anyformer.edge.running import reading
from anyformer.edge.space import space
from anyformer.edge.task import read
from anyformer.edge.wish import Wish
from anyformer.parts import Mels
from tests.edge.bare import bare
from tests.later import needs

needs("optuna", reason="the search needs the extra anyformer[edge]")
soundfile = pytest.importorskip("soundfile", reason="sounds need the extra anyformer[sound]")
WISH = Wish("", "accuracy", 200_000, 5.0, hours=2 / 3600, model="wav2vec2", of="tiny", trials=2)
SPACE: dict[str, list[Any]] = {
    "dim": [32], "depth": [1], "bits": [8], "mixer": ["own"], "heads": [2], "kv_heads": [0], "hidden": [1],
}  # fmt: skip
KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bass": np.sin, "flute": lambda angle: np.sin(4 * angle), "hiss": lambda angle: 0 * angle,
}  # fmt: skip


def tone(kind: str, high: float, seconds: float, noise: np.random.Generator, rate: int = 8000) -> np.ndarray:
    wave = KINDS[kind](2 * np.pi * 300 * high * np.arange(round(seconds * rate)) / rate)
    return (0.4 * wave + 0.05 * noise.normal(size=wave.shape)).astype(np.float32)


def written(root: Path, high: tuple[float, float], count: int) -> Path:
    """Tones of three kinds, of several heights and lengths."""
    noise = np.random.default_rng(count)
    for kind in KINDS:
        (root / kind).mkdir(parents=True)
        for i in range(count):
            sound = tone(kind, noise.uniform(*high), noise.uniform(0.4, 1.0), noise)
            soundfile.write(root / kind / f"{i}.wav", sound, 8000)
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Sounds to learn from, and those of another hand."""
    root = tmp_path_factory.mktemp("sounds")
    return written(root / "low", (0.8, 1.2), 50), written(root / "other", (0.9, 1.3), 6)


@pytest.fixture(scope="module")
def made(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("edge") / "out"
    wish = replace(WISH, task=str(folders[0]), test=str(folders[1]), values=SPACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(out.parent / "cache"))
        patch.setattr(design, "BEST", 1)
        return designed(wish, out, say=lambda _: None), out


def test_sounds_are_searched_measured_and_stored_as_texts_are(made: tuple[dict[str, Any], Path]) -> None:
    report, out = made
    assert {f.name for f in (out / "model").iterdir()} == {"model.onnx", "preprocessor_config.json", "run.py"}
    size = sum(f.stat().st_size for f in (out / "model").iterdir())
    assert size == report["chosen"]["real_size"] == pytest.approx(report["chosen"]["size"], rel=0.04)
    assert report["value"] > 0.8 and report["difference"] < 1e-4 and report["covered"] == 1
    assert report["rows"] == {"learn": 135, "choose": 15, "test": 18}  # those of `test`, and no others
    assert report["row"] == "a sound of 1 s at 8,000 Hz" and report["lost_of_rows"] == ""
    assert "Mels.of(mels=40, context=50)" in report["recipe"]


def test_the_script_of_sounds_needs_no_torch_and_gives_the_answers_of_the_model(
    made: tuple[dict[str, Any], Path], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    script = made[1] / "model" / "run.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40
    files = [str(f) for f in sorted(folders[1].rglob("*.wav"))]
    both = tone("flute", 1.0, 0.5, np.random.default_rng(0))
    soundfile.write(tmp_path / "two.flac", np.stack([both, 0 * both], 1), 8000)  # two channels, another kind of file
    files.append(str(tmp_path / "two.flac"))
    values = "seen['np'].save(seen['folder'].parent / 'values.npy', seen['values'])"
    call = bare(script, "tokenizers", "soxr", "scipy", after=values)
    done = subprocess.run([*call, *files], capture_output=True, text=True, check=True)
    model = af.load(made[1] / "trained").eval()
    features = model.processor(files)
    last = np.load(made[1] / "values.npy")
    assert np.abs(last - features["input_features"][-1].numpy()).max() < 1e-4
    with torch.no_grad():
        numbers = model(**features).logits.argmax(-1).tolist()
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [name for _, name in lines] == files and [kind for kind, _ in lines] == [[*KINDS][n] for n in numbers]
    assert sum(kind == Path(name).parent.name for kind, name in lines) >= 15
    soundfile.write(tmp_path / "long.wav", np.tile(both, 5), 16000)
    bad = subprocess.run([*call, str(tmp_path / "long.wav")], capture_output=True, text=True, check=False)
    assert bad.returncode and "long.wav: 20000 samples at 16000 Hz; at most 8000 at 8000 Hz are read" in bad.stderr


def test_the_command_of_the_document_on_sounds_is_understood(
    made: tuple[dict[str, Any], Path], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(made[1].parent / "cache"))
    text = (Path(__file__).parents[2] / "docs" / "edge.md").read_text(encoding="utf-8")
    (command,) = [c for c in re.findall(r"^anyformer (edge (?:.*\\\n)*.*)$", text, re.M) if "--model wav2vec2" in c]
    args = shlex.split(command.replace("\\\n", " "))
    given = {"--task": folders[0], "--test": folders[1], "--size": "1kB", "--out": tmp_path / "out"}
    for name, value in given.items():
        args[args.index(name) + 1] = str(value)
    small = [part for name, values in SPACE.items() for part in (f"--space.{name}", json.dumps(values))]
    assert main([*args, "--of", "tiny", *small]) == 3  # nothing has a kilobyte


def test_a_sound_that_is_cut_is_counted_and_others_have_silence_behind_them(tmp_path: Path) -> None:
    noise, rows = np.random.default_rng(0), []
    for i in range(60):
        soundfile.write(tmp_path / f"{i}.wav", tone("flute", 1.0, 2.5 if i < 7 else 0.3, noise), 8000)
        rows.append({"sound": f"{i}.wav", "label": i % 2})
    soundfile.write(tmp_path / "0.wav", tone("flute", 1.0, 2.5, noise, 44100), 44100)
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    medium = Sounds(1)
    task = read(file, "accuracy", medium)
    assert medium.loss == "7 of 60 sounds are longer than 1 s: their ends are cut"
    assert task.parts["learn"].items.shape == (48, 40, 100) and medium.words == "a sound of 1 s at 16,000 Hz"
    whole = Sounds()
    assert read(file, "accuracy", whole).parts["learn"].items.shape == (48, 40, 300) and whole.loss == ""
    silent = task.parts["test"].items[:, :, -20:]
    assert (silent.std(axis=(1, 2)) < 1e-6).sum() >= 3  # behind the short ones
    file.write_text(json.dumps({"sound": "no.wav", "label": 1}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"there is no sound .*no\.wav"):
        read(file, "accuracy", Sounds())


def test_a_front_end_of_samples_gives_way_to_features_and_running_means_are_refused() -> None:
    for page in ("wav2vec2", "hubert"):
        base = pages.recipe(page, "tiny", task="classify", classes=3)
        medium = reading(base, 8)
        assert isinstance(medium, Sounds) and medium.fitted(base)["embed"].part.__name__ == "Mels"
        assert medium.fitted(medium.fitted(base)) == medium.fitted(base)
    base = Sounds().fitted(pages.recipe("conformer", "tiny", task="classify", classes=3))
    with pytest.raises(ValueError, match=r"blocks\.0\.conv\.middle \(TimeBatchNorm\) keeps running means.* --model"):
        space(base, 8)


def test_rows_of_another_class_are_no_test(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "odd" / "wobble").mkdir(parents=True)
    soundfile.write(tmp_path / "odd" / "wobble" / "1.wav", np.zeros(4000), 8000)
    with pytest.raises(ValueError, match=r"--test .*odd has a class 'wobble', which .*low lacks; it has bass, flute"):
        read(folders[0], "accuracy", Sounds(), 0, tmp_path / "odd")
    (tmp_path / "none.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"--test .*none.jsonl has no rows"):
        read(folders[0], "accuracy", Sounds(), 0, tmp_path / "none.jsonl")


def test_what_is_not_in_few_bits_is_refused_before_anything_is_trained_unless_it_is_allowed(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: tuple[dict[str, Any], Path]
) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(made[1].parent / "cache"))
    plan = artefact.Entry
    kept = [plan("blocks.0.mixer.q", 800, 8), plan("entry.conv", 200, None, "a convolution")]
    model = pages.build(pages.recipe("wav2vec2", "tiny", task="classify"), seed=0)
    with pytest.raises(
        ValueError, match=r"80% of .* 90% is the least: entry\.conv \(a convolution\); --coverage 0\.8 "
    ):
        artefact.check_covered(model, kept, 0.9)
    artefact.check_covered(model, kept, 0.8)
    with pytest.raises(ValueError, match=r"--coverage is a share from 0 to 1, got 1\.5"):
        replace(WISH, coverage=1.5).check()
    monkeypatch.setattr(Sounds, "fitted", lambda self, base: base.but({"embed": Mels.of(), "entry.width": 32}))
    wish = replace(WISH, task=str(folders[0]), values=SPACE)
    one = Design(wish, tmp_path / "out", say=lambda _: None)
    with pytest.raises(ValueError, match=r"is the least: entry\.direction.*--coverage 0\.\d+ allows it"):
        one.run()
    assert not (tmp_path / "out" / "shared.pt").exists()
