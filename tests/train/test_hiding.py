"""Pre-training on sound alone: spans are hidden inside a sound, the same at a resume; clusters are found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import anyformer as af
from anyformer.data.clusters import kmeans, nearest
from anyformer.data.hiding import distractors, hidden_frames
from anyformer.data.labels import IGNORE
from anyformer.media.mfcc import mfcc
from anyformer.parts.sound.heads import Units
from anyformer.train import finetune, train
from anyformer.train.options import TrainOptions
from anyformer.train.tasks.hiding import learn
from anyformer.train.tasks.rows import TableData
from anyformer.train.tasks.splits import one_in_ten
from tests.later import later

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for number in range(20):
        time = np.arange(200 + 40 * number) / 16000
        tone = np.sin(2 * np.pi * draw.choice([400, 2000]) * time) + 0.05 * draw.standard_normal(len(time))
        soundfile.write(folder / f"{number:02}.wav", 0.3 * tone, 16000)
    return folder


def test_spans_and_distractors_are_inside_the_sound() -> None:
    for frames in (1, 2, 3, 11, 60):
        for seed in range(20):
            draw = np.random.default_rng(seed)
            hidden = hidden_frames(frames, draw, starts=0.2)
            assert hidden.shape == (frames,) and not hidden.all() and bool(hidden.any()) == (frames > 1)
            found = distractors(hidden, 5, draw)
            assert ((found == IGNORE).all(1) == ~hidden).all() or hidden.sum() == 1
            for place in np.flatnonzero(hidden) if hidden.sum() > 1 else ():
                assert hidden[found[place]].all() and (found[place] != place).all()


def test_kmeans_finds_separate_groups_again() -> None:
    draw = np.random.default_rng(0)
    true = draw.integers(5, size=400)
    vectors = (10 * np.eye(5, 8)[true] + 0.3 * draw.standard_normal((400, 8))).astype(np.float32)
    centres = kmeans(vectors, 5, seed=1)
    found, far = nearest(vectors, centres)
    assert all(len(set(found[true == group])) == 1 for group in range(5)) and len(set(found)) == 5
    np.testing.assert_allclose(far, ((vectors - centres[found]) ** 2).sum(1), rtol=1e-4)
    assert np.array_equal(centres, kmeans(vectors, 5, seed=1))
    with pytest.raises(ValueError, match="5 clusters need as many different vectors"):
        kmeans(np.zeros((9, 2)), 5)


def test_coefficients_tell_tones_apart_at_the_frames_of_a_model() -> None:
    time = np.arange(16000) / 16000
    samples = np.sin(2 * np.pi * np.where(time < 0.5, 400, 3000) * time)
    found = mfcc(samples, 16000, np.arange(50) * 320 + 200.0)
    assert found.shape == (50, 39)
    labels = nearest(found, kmeans(found, 2, seed=0))[0]
    assert len(set(labels[2:22])) == len(set(labels[28:48])) == 1 and labels[10] != labels[40]


def test_units_are_cosines() -> None:
    head, x = Units(6, codes=4, width=5, temperature=0.1), torch.randn(2, 3, 6)
    expected = torch.cosine_similarity(head.proj(x)[:, :, None], head.vectors, dim=-1) / 0.1
    torch.testing.assert_close(head(x, None), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["contrast", *later("units")])  # `examples/test_spoken` learns units
def test_pretraining_resumes_exactly_and_then_learns_letters(task: str, sounds: Path, tmp_path: Path) -> None:
    page = {"contrast": "wav2vec2", "units": "hubert"}[task]
    options: dict[str, Any] = {
        "model": page, "size": "tiny", "task": task, "data": str(sounds), "batch": 4, "lr": 0.005, "warmup": 0,
        "schedule": "constant", "cache": str(sounds.parent / "cache"), **({"clusters": 3} if task == "units" else {}),
    }  # fmt: skip
    straight = train(**options, steps=4, out=tmp_path / "one")
    assert straight.held_out is not None and straight.baseline is not None
    train(**options, steps=2, out=tmp_path / "two")
    again = train(**options, steps=4, out=tmp_path / "two", resume=True)
    one, two = straight.model.state_dict(), again.model.state_dict()
    if task == "units":  # a quantiser draws from the generator of the run, which a resume restores, too
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    said = tmp_path / "said"
    said.mkdir()
    for number, path in enumerate(sorted(sounds.glob("*.wav"))):
        (said / path.name).write_bytes(path.read_bytes())
        (said / path.name).with_suffix(".txt").write_text("ab"[number % 2])
    tuned = finetune(model=str(again.checkpoint), data=str(said), out=tmp_path / "three", method="full", epochs=1,
                     batch=4, cache=str(tmp_path / "cache"))  # fmt: skip
    assert tuned.folder is not None and tuned.task == "ctc"
    loaded = af.load(tuned.folder)
    assert loaded.heads["ctc"].proj.out_features == 7 and loaded.tokenizer.decode([5, 6]) == "ab"


def test_clusters_of_a_path_of_a_model_have_a_label_for_each_frame(sounds: Path, tmp_path: Path) -> None:
    model = af.build("hubert", "tiny", task="units", classes=3, seed=0).eval()
    from anyformer.hub.processors import WaveProcessor

    model.processor = WaveProcessor()
    model.save(tmp_path / "one")
    paths = sorted(sounds.glob("*.wav"))
    clusters = learn(f"{tmp_path / 'one'}:blocks.1", model, paths, 3, 0)
    assert clusters.centres.shape == (3, 32)
    samples = soundfile.info(paths[3]).frames
    assert len(clusters.labels(paths[3])) == model.embed.frames(samples)
    with pytest.raises(ValueError, match="each needs a label"):
        learn(f"{tmp_path / 'one'}:embed.layers.0", model, paths, 3, 0)
    with pytest.raises(ValueError, match="units is mfcc, or FOLDER:PATH"):
        learn("fbank", model, paths, 3, 0)


def test_clusters_are_learned_from_the_training_part_alone(sounds: Path, tmp_path: Path) -> None:
    data = TableData("units", TrainOptions("hubert", data=str(sounds), out=str(tmp_path / "run")))
    every = sorted(sounds.glob("*.wav"))
    places = one_in_ten(data.tables[0].source.name, len(every))[0]
    learned = data._learned()
    assert len(learned) == places.size < len(every) and len(set(learned)) == len(learned)
