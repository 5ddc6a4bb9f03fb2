"""Training on folders of sound: every form of data, exact resume, adapters, and what is refused by its file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import anyformer as af
from anyformer.data.records import find, records
from anyformer.hub.processors import SoundProcessor
from anyformer.parts import CTC, MLP, Attention, Block, LayerNorm, Mels
from anyformer.skeletons.encoder import Encoder
from anyformer.train import finetune, train
from anyformer.train.tasks.sounds import ErrorRate

torch.set_num_threads(1)
TONES = {"a": 500.0, "b": 1500.0, "c": 3000.0}


def spoken(text: str, rate: int = 8000) -> np.ndarray:
    """A tone for each letter, a pause after it."""
    time = np.arange(rate // 40) / rate
    parts = [part for letter in text for part in (0.5 * np.sin(2 * np.pi * TONES[letter] * time), 0 * time)]
    return np.concatenate(parts).astype(np.float32)


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("talks"), np.random.default_rng(0)
    for number in range(30):
        text = "".join(rng.choice(list(TONES), 1 + number % 4))
        soundfile.write(folder / f"{number:02}.wav", spoken(text), 8000)
        (folder / f"{number:02}.txt").write_text(text)
    return folder


def options(data: Path, out: Path, steps: int) -> dict[str, Any]:
    return {"model": "wav2vec2", "size": "tiny", "data": str(data), "out": out, "steps": steps, "batch": 4, "lr": 0.01,
            "save_every": 3, "warmup": 0, "schedule": "constant", "cache": str(data.parent / "cache")}  # fmt: skip


def test_all_forms_of_data_are_the_same_rows(talks: Path, tmp_path: Path) -> None:
    rows = list(records(talks))
    assert find(talks).kind == "sounds" and rows[0].keys() == {"sound", "text"} and len(rows) == 30
    whole = [{"sound": str(talks / row["sound"]), "text": row["text"]} for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in whole))
    (tmp_path / "b.csv").write_text("path,said\n" + "\n".join(f"{r['sound']},{r['text']}" for r in whole))
    (tmp_path / "k").mkdir()
    (tmp_path / "k/wav.scp").write_text("\n".join(f"u{i} {r['sound']}" for i, r in enumerate(whole)))
    (tmp_path / "k/text").write_text("\n".join(f"u{i} {r['text']}" for i, r in enumerate(whole)))
    assert list(records(tmp_path / "a.jsonl")) == whole
    assert list(records(tmp_path / "b.csv", {"sound": "path", "text": "said"})) == whole
    assert list(records(tmp_path / "k")) == whole
    (tmp_path / "k/wav.scp").write_text("u0 sox in.wav -t wav - |")
    with pytest.raises(ValueError, match=r"u0 is a command \(sox in"):
        list(records(tmp_path / "k"))


def test_training_learns_resumes_exactly_and_spells(talks: Path, tmp_path: Path) -> None:
    straight = train(**options(talks, tmp_path / "one", 6))
    assert straight.task == "ctc" and straight.baseline is not None and straight.held_out is not None
    train(**options(talks, tmp_path / "two", 3))
    again = train(**options(talks, tmp_path / "two", 6), resume=True)
    one, two = straight.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    loaded = af.load(again.checkpoint)
    assert loaded.processor.rate == 16000 and loaded.tokenizer.encode("abc", special=False) == [5, 6, 7]
    from anyformer.generate import transcribe

    assert transcribe(loaded, talks / "00.wav").seconds == 0.05


def test_adapters_learn_on_sound(talks: Path, tmp_path: Path) -> None:
    first = train(**options(talks, tmp_path / "one", 3))
    tuned = finetune(model=str(first.checkpoint), data=str(talks), out=tmp_path / "two", method="lora", epochs=1,
                     batch=4, cache=str(talks.parent / "cache"))  # fmt: skip
    assert tuned.task == "ctc" and 0 < tuned.learned < tuned.parameters and tuned.folder is not None
    assert af.load(tuned.folder).tokenizer.encode("a", special=False) == [5]


def test_features_instead_of_waveforms_learn_by_the_same_task(talks: Path, tmp_path: Path) -> None:
    block = Block.of(mixer=Attention.of(heads=2), ffn=MLP.of(hidden=24), norm=LayerNorm.of())
    front = Mels.of(mels=8, context=50)
    recipe = Encoder.of(16, front, [block], norm=LayerNorm.of(), heads={"ctc": CTC.of(vocab=9)})
    chosen = {**options(talks, tmp_path / "one", 2), "model": recipe, "size": None}
    made = train(**chosen)
    assert isinstance(made.model.processor, SoundProcessor) and made.model.processor.window == 1


@pytest.mark.parametrize(
    ("text", "seconds", "problem"),
    [
        ("aab", 0.03, r"99\.wav: 3 symbols need at least 4 frames"),
        ("z", 1.0, r"99\.wav: .* no symbol of the model .* 'z'"),
    ],
)
def test_sounds_that_cannot_be_learned_are_refused_by_name(
    text: str, seconds: float, problem: str, talks: Path, tmp_path: Path
) -> None:
    from anyformer.train.tasks.sounds import labelled

    model = af.load(train(**options(talks, tmp_path / "one", 1)).checkpoint)
    model.embed.frames = lambda count: count // 320  # as published sizes have them
    soundfile.write(tmp_path / "99.wav", np.zeros(int(8000 * seconds), np.float32), 8000)
    with pytest.raises(ValueError, match=problem):
        labelled(model, tmp_path / "99.wav", text)


def test_a_sound_without_its_text_and_a_file_that_is_none_are_refused(talks: Path, tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"RIFF")
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(ValueError, match=r"a\.wav has no a\.txt beside it"):
        list(records(tmp_path))
    row = json.dumps({"sound": "a.wav", "text": "a"})
    (tmp_path / "b.jsonl").write_text("\n".join([row] * 12))
    with pytest.raises(ValueError, match=r"row 1: .*a\.wav cannot be read as a sound"):
        train(
            **{**options(talks, tmp_path / "run", 1), "data": str(tmp_path / "b.jsonl"), "cache": str(tmp_path / "c")}
        )


def test_errors_are_counted_over_all_texts() -> None:
    rate = ErrorRate()
    rate.add(list("abc"), list("abd"))
    rate.add([], list("xyz"))
    rate.add(list("qq"), [])
    assert rate.wrong == 6 and rate.count == 6 and rate.value == 1.0
