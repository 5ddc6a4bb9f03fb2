"""The examples of speech: Czech lines, HuBERT's rounds, Whisper in several languages; on made sounds, a step each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import anyformer as af
from anyformer.data.speech import Clip

EXAMPLES = Path(__file__).parents[2] / "examples"
torch.set_num_threads(1)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    return __import__


def spoken(place: Path, text: str, seconds: float = 1.0) -> Clip:
    place.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.sin(np.arange(int(16000 * seconds)) * (0.02 + 0.001 * (len(text) % 13)))
    soundfile.write(place, samples, 16000)
    return Clip(place, text)


def test_czech_lines_are_held_out_by_level_and_the_table_is_written(
    example: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    czech = example("czech")
    texts = ["Co je to?", "Žlutý kůň.", "Ano, ano!", "Ryba", "Má 3 ploutve", "Loď"]
    clips = [
        spoken(tmp_path / f"level{i // 2:02}/cs/{i:02}.wav", texts[i % len(texts)], 5.0 if i == 23 else 1.0)
        for i in range(24)
    ]
    monkeypatch.setattr(czech, "lines", lambda language: clips)
    learned, heard = czech.said()
    assert {sound.parents[1].name for sound, _ in heard} == {"level00", "level10"}  # of twelve
    assert len(learned) + len(heard) == 19  # without four of figures and one of five seconds
    assert {text for _, text in (*learned, *heard)} == {"co je to", "žlutý kůň", "ano ano", "ryba", "loď"}
    assert czech.errors([("ryba", "ryba"), ("co je to", "co je")]) == ["25.0%", "25.0%"]
    monkeypatch.setattr(czech, "SMALL", {"dim": 16, "depth": 1, "heads": 2, "act": "silu"})
    text = tmp_path / "doc.md"
    text.write_text(f"{czech.BEGIN}\n{czech.END}\n")
    small = ["--only", "Conformer", "--steps", "1", "--out", str(tmp_path / "run"), "--into", str(text)]
    monkeypatch.setattr(sys, "argv", ["czech.py", *small])
    czech.main()
    table = text.read_text()
    assert "\n| Conformer | 0.0" in table
    assert (
        "letters by their frequency" in table and table.splitlines()[1:-1] == capsys.readouterr().out.split("\n")[-6:-1]
    )


def test_huberts_rounds_and_their_tuning_write_the_table(example: Any, tmp_path: Path, monkeypatch: Any) -> None:
    units, digits = example("units"), example("digits")
    for part, count in (("learned", 14), ("heard", 2)):
        for i in range(count):
            clip = spoken(tmp_path / f"run/{part}/{i:02}.wav", str(i % 2))
            clip.path.with_suffix(".txt").write_text(clip.text)
    small = {"dim": 16, "depth": 2, "hidden": 16, "widths": (8,) * 7, "position_width": 4, "conv_norm": "layer"}
    monkeypatch.setattr(digits, "SMALL", small)
    monkeypatch.setattr(units, "CLUSTERS", 4)
    monkeypatch.setattr(units, "LABELLED", 10)  # seconds
    text = tmp_path / "doc.md"
    text.write_text(f"{units.BEGIN}\n{units.END}\n")
    told = ["--steps", "1", "--out", str(tmp_path / "run"), "--into", str(text)]
    monkeypatch.setattr(sys, "argv", ["units.py", *told])
    units.main()
    rows = [line.split(" | ") for line in text.read_text().splitlines() if line.startswith("| f") or "round" in line]
    assert [row[2] for row in rows] == ["1", "1", "1", "3"] and [bool(row[1]) for row in rows] == [
        False,
        True,
        True,
        False,
    ]
    one, two = (af.load(next((tmp_path / "run" / name).glob("step-*"))) for name in ("one", "two"))
    assert list(one.heads) == list(two.heads) == ["units"]
    assert (tmp_path / "run" / "labelled.jsonl").read_text().count("\n") == 10


def test_each_language_is_counted_on_the_same_lines_of_all_sides(
    example: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    speech, heard = example("speech"), []
    clips = [spoken(tmp_path / f"{i}.wav", f"een twee drie {i}", 1.5) for i in range(4)]
    clips += [spoken(tmp_path / "short.wav", "een twee drie", 0.5), spoken(tmp_path / "few.wav", "een twee", 2.0)]

    class Whisper:
        def save(self, folder: str) -> None:
            pass

    def says(text: str) -> Any:
        def write(samples: np.ndarray) -> Any:
            heard.append((len(samples), text))
            return text, []

        return write

    monkeypatch.setattr(speech, "lines", lambda language: clips)
    monkeypatch.setattr(speech.sources, "get", lambda name: tmp_path)
    monkeypatch.setattr(speech.af, "load", lambda *of, **more: Whisper())
    monkeypatch.setattr(speech, "ours", lambda model, language: says("een twee drie"))
    monkeypatch.setattr(speech, "theirs", lambda folder, language: says("twee"))
    monkeypatch.setitem(sys.modules, "ctranslate2", None)  # not installed
    rows = list(speech.languages(3))
    assert rows[2] == "| Czech | anyformer | 3 of 12 words wrong (25.0%) | 13.3% |"
    assert rows[3].startswith("| Czech | transformers | 9 of 12 words wrong (75.0%)")
    assert rows[4] == "| Czech | CTranslate2 | not installed |  |" and rows[5].startswith("| Dutch | anyformer")
    assert len(heard) == 2 * 2 * 3 and {count for count, _ in heard} == {24000}


def test_words_of_the_test_have_another_voice_and_all_are_at_one_rate(
    example: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    digits, voices = example("digits"), dict[str, set[str]]()

    def utter(said: str, voice: str, sound: Path, size: float, pace: float) -> None:
        assert sound.parent.name == said and 0.85 <= pace <= 1.25 and (size == 1.0 or "train" in sound.parts)
        voices.setdefault(sound.parts[-3], set()).add(voice)
        spoken(sound, said, 0.3)

    for figure in range(10):
        spoken(tmp_path / f"prompts/digits/{figure}.wav", str(figure), 0.2)
    monkeypatch.setattr(digits, "utter", utter)
    monkeypatch.setattr(digits.debian, "fetch", lambda *package: tmp_path / "prompts")
    monkeypatch.setattr(digits, "EACH", {"train": (digits.TRAIN, 40), "test": (digits.TEST, 10)})
    digits.words(tmp_path / "words")
    assert voices["test"] == {"slt"} and voices["train"] == {"kal", "kal16", "awb", "rms"}
    made = sorted((tmp_path / "words").glob("t*/*/*.wav"))
    assert len(made) == 50 and {soundfile.info(file).samplerate for file in made} == {8000}
    assert {f.parent.name: f.stem for f in (tmp_path / "words/recorded").glob("*/*.wav")}["seven"] == "7"
