"""The example of music, from files of scores and sounds to its tables."""

from __future__ import annotations

import runpy
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from anyformer.data import debian

EXAMPLES = Path(__file__).parents[2] / "examples"
torch.set_num_threads(1)


@pytest.fixture
def music(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    return __import__("music")


def score(path: Path, shift: int) -> None:
    """Four voices of sixteen bars; the soprano has a tied note."""
    parts = []
    for voice in range(4):
        notes = []
        for i in range(64):
            octave, letter = 5 - voice, "CDEFG"[(i * (voice + 1) + shift) % 5]
            tie = '<tie type="stop"/>' if voice == 0 and i == 1 else ""
            notes.append(
                f"<note><pitch><step>{letter}</step><octave>{octave}</octave></pitch><duration>2</duration>{tie}</note>"
            )
        parts.append(
            f"<part><measure><attributes><divisions>2</divisions></attributes>{''.join(notes)}</measure></part>"
        )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
        archive.writestr("piece.xml", f"<score-partwise>{''.join(parts)}</score-partwise>")


def test_scores_are_read_as_codes(music: Any, tmp_path: Path) -> None:
    score(tmp_path / "a.mxl", 0)
    codes = music.chorale(tmp_path / "a.mxl")
    assert codes.shape == (256, 4) and codes[0].tolist() == [72 - 28, 60 - 28, 48 - 28, 36 - 28]
    assert (codes[1:4] == music.HOLD).all() and codes[4, 0] == music.HOLD and codes[4, 1] > music.HOLD
    assert music.notes(codes) == 4 * 64 - 1
    up = music.moved(codes, 3)
    assert (up[codes == music.HOLD] == music.HOLD).all() and (up[0] == codes[0] + 3).all()


def test_tables_are_probabilities_in_every_key(music: Any, tmp_path: Path) -> None:
    score(tmp_path / "a.mxl", 0)
    score(tmp_path / "b.mxl", 1)
    pieces = [music.chorale(tmp_path / name) for name in ("a.mxl", "b.mxl")]
    for order, above in ((1, False), (2, False), (1, True)):
        table = music.Tables(order, above).learn(pieces[:1])
        learned, unknown = (table.bits(music.windows([p])) / music.notes(music.windows([p])) for p in pieces)
        assert 0 < learned < unknown
        first = music.windows(pieces[:1])[:1]
        # all but the first pitches cost the same in another key
        differs = table.bits(music.moved(first, 2)) - table.bits(first)
        assert abs(differs) < 1e-6


def test_voices_and_codec_write_their_tables(music: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("soxr")
    package = tmp_path / "packages" / "music21"
    corpus = package / "corpus" / "bach"
    corpus.mkdir(parents=True)
    for i in range(12):
        score(corpus / f"{i:02}.mxl", i)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    text = tmp_path / "music.md"
    text.write_text("".join(f"{a}\n{b}\n" for a, b in music.MARKS.values()))
    small = ["--steps", "2", "--batch", "2", "--out", str(tmp_path / "runs"), "--into", str(text)]
    monkeypatch.setattr(sys, "argv", ["music.py", "voices", *small, "--dim", "16", "--depth", "1"])
    runpy.run_path(str(EXAMPLES / "music.py"), run_name="__main__")
    assert "| decoder, flat |" in text.read_text() and (tmp_path / "music-voices.png").stat().st_size > 1000
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for i in range(12):
        soundfile.write(sounds / f"{i:02}.wav", 0.3 * np.sin(np.arange(4000) * (0.1 + 0.01 * i)), 8000)
    monkeypatch.setattr(debian, "fetch", lambda *args, **options: sounds)
    monkeypatch.setattr(sys, "argv", ["music.py", "codec", *small])
    runpy.run_path(str(EXAMPLES / "music.py"), run_name="__main__")
    assert text.read_text().count("| EnCodec |") == 3 and "mu-law" in text.read_text()
    assert "| decoder, delay |" in text.read_text()  # the other table stays


def test_mu_law_keeps_loud_and_soft_sounds(music: Any) -> None:
    x = np.array([0.9, 0.1, 0.01, -0.5])
    off = [np.abs(music.mu_law(x, n) - x) / np.abs(x) for n in (4, 8)]
    assert off[1].max() < 0.1 and off[1].mean() < off[0].mean()
    sine = np.sin(np.arange(8000) * 0.01).astype(np.float32)
    again = music.plain(sine, 8000, 8000, 8)
    assert again.shape == sine.shape and music.scored([sine], [again], 8000)[0] > 15
