"""Transcribing with real weights on real clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.cli.transcribe import clock
from anyformer.data import debian, sources
from anyformer.data.speech import Clip, clips, word_errors, words
from anyformer.generate import transcribe
from anyformer.generate.rules import settings_of
from anyformer.generate.speech import marks
from anyformer.media.sound import sound
from tests.apart import apart

torch.set_num_threads(1)
SONGS = "usr/share/asterisk/moh/.*[.]wav"


def real(name: str) -> Any:
    try:
        return af.load(sources.get(name), dtype=torch.float32)
    except OSError as error:
        pytest.skip(f"the weights of {name} are not to be had here: {error}")


@pytest.fixture(scope="module")
def recordings() -> list[Clip]:
    pytest.importorskip("soundfile")
    try:
        return clips()
    except OSError as error:
        pytest.skip(f"pocketsphinx-testdata is not to be had here: {error}")


@pytest.mark.slow  # the test of the verb hears one clip
@apart
def test_the_real_tiny_model_writes_what_was_said(recordings: list[Clip]) -> None:
    english = real("whisper-tiny.en")
    errors = total = 0
    for clip in recordings:
        found, expected = words(transcribe(english, clip.path).text), words(clip.text)
        errors, total = errors + word_errors(found, expected), total + len(expected)
    assert errors / total < 0.1


@apart
def test_real_logits_and_tokens_are_those_of_transformers(recordings: list[Clip], tmp_path: Path) -> None:
    """On a real clip; transformers opens what we save, makes its own features, and decodes by its own rules."""
    english = real("whisper-tiny.en")
    transformers = pytest.importorskip("transformers")
    assert english.save(tmp_path) == "whisper"
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    heard = sound(recordings[1].path)
    features = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path)(
        heard.samples, sampling_rate=heard.rate, return_tensors="pt"
    ).input_features
    torch.testing.assert_close(english.processor(heard)["input_features"], features, rtol=0, atol=1e-6)
    known = marks(english, settings_of(english))
    for times in (True, False):
        found = transcribe(english, heard, timestamps=times, temperatures=(0.0,))
        tokens = [token for segment in found.segments for token in segment.tokens]
        with torch.no_grad():
            expected = theirs.generate(features, return_timestamps=times, do_sample=False)[0].tolist()
        assert tokens == [token for token in expected if token < known.end or token > known.untimed]
    ids = torch.tensor([[known.start, *tokens]])
    with torch.no_grad():
        expected = theirs(input_features=features, decoder_input_ids=ids).logits
        found = english(input_features=features, decoder_input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@apart
def test_real_words_end_where_transformers_ends_their_tokens(recordings: list[Clip], tmp_path: Path) -> None:
    """Its times are those of the ends of tokens, and its maps have the times among the tokens: not the same, near."""
    english = real("whisper-tiny.en")
    transformers = pytest.importorskip("transformers")
    english.save(tmp_path)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager").eval()
    extractor, heard = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path), sound(recordings[3].path)
    given = extractor(heard.samples, sampling_rate=heard.rate, return_tensors="pt", return_attention_mask=True)
    options = {"return_token_timestamps": True, "return_timestamps": True, "return_segments": True, "do_sample": False}
    segment = theirs.generate(given.input_features, attention_mask=given.attention_mask, **options)["segments"][0][0]
    ends = [
        (english.tokenizer.decode([t]), float(e))
        for t, e in zip(segment["tokens"].tolist(), segment["token_timestamps"], strict=True)
    ]
    found = transcribe(english, heard, words=True, temperatures=(0.0,)).segments[0].words
    text, far = "", []
    for piece, end in ends:
        text += piece
        far += [
            abs(w.end - end) for i, w in enumerate(found) if piece and text == "".join(v.text for v in found[: i + 1])
        ]
    assert len(far) == len(found) > 15 and np.mean(far) < 0.05 and max(far) < 0.2


@pytest.mark.slow
@apart
def test_long_sound_has_every_sentence_at_its_time(recordings: list[Clip]) -> None:
    """Five sentences with four seconds of silence between them: two windows, the cut inside the fourth sentence."""
    english = real("whisper-tiny.en")
    parts, ends, texts = [], [], []
    for clip in recordings:
        samples = sound(clip.path).samples
        parts += [samples, np.zeros(64000, np.float32)]
        ends.append((sum(map(len, parts)) - 64000) / 16000)
        texts += words(clip.text)
    found = transcribe(english, (np.concatenate(parts), 16000))
    assert len(found.segments) == 5 and word_errors(words(found.text), texts) <= 7
    assert all(abs(s.end - end) < 1.0 for s, end in zip(found.segments, ends, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "quiet noise", "silence", "tone"])  # docs/sound.md has music
@apart
def test_real_weights_hear_nothing_where_nothing_is_said(kind: str) -> None:
    english = real("whisper-tiny.en")
    draw, count = np.random.default_rng(0), 20 * 16000
    made = {
        "noise": draw.standard_normal(count) * 0.01, "quiet noise": draw.standard_normal(count) * 5e-4,
        "silence": np.zeros(count), "tone": np.sin(np.arange(count) * 0.2) * 0.3,
    }  # fmt: skip
    assert transcribe(english, (made[kind], 16000)).text == ""
    if kind == "tone":
        assert transcribe(english, (made[kind], 16000), notes=1.0).text  # without notes, words are made up


@pytest.mark.slow
@apart
def test_real_weights_hear_the_sentence_in_music_and_no_words_in_the_music(recordings: list[Clip]) -> None:
    """Before, in and behind it; the music has a tenth of the power of the voice."""
    english, clip = real("whisper-tiny.en"), recordings[4]
    try:
        song = sorted(debian.fetch("asterisk-moh-opsound-wav", SONGS, 14, "CC-BY-SA-3.0").rglob("*.wav"))[0]
    except OSError as error:
        pytest.skip(f"asterisk-moh-opsound-wav is not to be had here: {error}")
    music, voice = sound(song).at(16000).samples[: 30 * 16000], sound(clip.path).samples
    assert transcribe(english, (music, 16000)).text == ""
    music = music * np.sqrt(np.square(voice).mean() / np.square(music).mean() / 10)
    for begin in (0, 5, 12):
        both = music.copy()
        both[begin * 16000 : begin * 16000 + len(voice)] += voice
        found = transcribe(english, (both, 16000), words=True)
        assert word_errors(words(found.text), words(clip.text)) <= 3, found.text
        spoken = [word for segment in found.segments for word in segment.words]
        assert begin - 0.5 < spoken[0].start and spoken[-1].end < begin + len(voice) / 16000 + 0.5


@apart
def test_the_verb_prints_text_times_words_and_json(
    recordings: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    english = real("whisper-tiny.en")
    english.save(tmp_path)
    base = ["transcribe", str(recordings[4].path), "--model", str(tmp_path)]
    outputs = []
    for more in ([], ["--timestamps"], ["--words"], ["--json"]):
        assert main([*base, *more]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0].strip() == "He might even have been made amiable himself."
    assert outputs[1].strip() == f"[00:00.00 - 00:03.00] {outputs[0].strip()}"
    assert [line.split("] ")[1] for line in outputs[2].splitlines()] == outputs[0].split()
    told = json.loads(outputs[3])[0]
    assert told["text"] == outputs[0].strip() and told["segments"][0]["end"] == 3.0 and told["language"] is None
    assert main([*base[:1], str(tmp_path / "no.wav"), *base[2:]]) == 2
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "expected"), [(0, "00:00.00"), (59.999, "01:00.00"), (3723.456, "1:02:03.46")])
def test_a_time_is_written_as_a_clock_shows_it(seconds: float, expected: str) -> None:
    assert clock(seconds) == expected
