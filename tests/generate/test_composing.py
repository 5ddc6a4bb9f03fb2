"""Codes laid out and taken apart again; music that is transformers', code for code; bad requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.contract.subjects import redrawn
from anyformer.generate import recoding
from anyformer.generate.composing import codes_of_prompt, compose, texts_of, write
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.media.patterns import PATTERNS, Delay, Flat, Parallel

torch.set_num_threads(1)
STEREO: dict[str, Any] = {"writer": {"books": 4, "channels": 2}, "codec": {"bandwidths": (0.2,)}}
ALONE: dict[str, Any] = {"text": None, "codec": None}


def musicgen(**changes: Any) -> Any:
    return redrawn(af.build("musicgen", "tiny", **changes)).eval()


def composing(**changes: Any) -> Any:
    """One that reads texts, byte by byte."""
    model = musicgen(text={"vocab": 300}, **changes)
    model.tokenizer = Tokenizer.bytes_level()
    return model


@pytest.mark.parametrize("pattern", [Parallel(), Delay(), Delay(2), Flat()], ids=str)
def test_a_pattern_is_a_bijection(pattern: Any) -> None:
    for frames in (1, 2, 3, 7):
        for books in (1, 2, 4):
            codes = torch.randint(0, 9, (2, frames, books), generator=torch.Generator().manual_seed(frames))
            laid = pattern.laid(codes, 9)
            assert torch.equal(pattern.back(laid, frames), codes)
            assert int((laid == 9).sum()) == laid.numel() - codes.numel()  # every code once
            assert laid.shape[1] == pattern.steps(frames, books)
            places = pattern.frames(frames, books)
            for book in range(books):  # a book is said in the order of its frames
                said = places[:, book][places[:, book] >= 0]
                assert said.tolist() == list(range(frames))
            with pytest.raises(ValueError, match="steps, got"):
                pattern.back(laid[:, 1:], frames)


def test_delays_are_those_of_the_paper() -> None:
    codes = torch.arange(1, 13).view(1, 3, 4)
    assert Delay().laid(codes, 0)[0].T.tolist() == [
        [1, 5, 9, 0, 0, 0], [0, 2, 6, 10, 0, 0], [0, 0, 3, 7, 11, 0], [0, 0, 0, 4, 8, 12],
    ]  # fmt: skip
    assert Delay(2).laid(codes, 0)[0].T.tolist() == [[1, 5, 9, 0], [2, 6, 10, 0], [0, 3, 7, 11], [0, 4, 8, 12]]
    assert Flat().laid(codes[:, :1], 0)[0].tolist() == [[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 4]]


@pytest.mark.parametrize("books", [1, 3])
def test_a_decoder_alone_writes_the_codes_of_transformers(books: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = musicgen(**ALONE, writer={"books": books})
    ours.save(tmp_path)
    theirs = transformers.MusicgenForCausalLM.from_pretrained(tmp_path).eval()
    begin = torch.full((2 * books, 1), 16)
    with torch.no_grad():
        wanted = theirs.generate(begin, do_sample=False, max_length=books + 9, pad_token_id=16, bos_token_id=16,
                                 decoder_start_token_id=16, num_return_sequences=1)  # fmt: skip
    assert torch.equal(write(ours, 9, rows=2, temperature=0.0).mT, wanted)


@pytest.mark.parametrize("changes", [{}, STEREO], ids=["mono", "stereo"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_music_about_a_text_is_that_of_transformers(changes: Any, guidance: float, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = composing(**changes)
    ours.origin = {"hub": "musicgen"}
    ours.save(tmp_path)
    theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(tmp_path).eval()
    inputs = texts_of(ours, ["a waltz", "drums"])
    codes: list[torch.Tensor] = []
    decode = theirs.audio_encoder.decode

    def noted(ids: torch.Tensor, **rest: Any) -> Any:
        codes.append(ids[0])
        return decode(ids, **rest)

    theirs.audio_encoder.decode = noted
    books, prompt = len(ours.head.books), (np.sin(np.arange(31)).astype(np.float32), 120)
    begins = codes_of_prompt(ours, prompt).expand(2, -1, -1)
    for known in (None, begins):
        first = 0 if known is None else known.shape[1]
        late = books // (2 if ours.stereo else 1)
        given = {} if known is None else {"decoder_input_ids": known.mT.flatten(0, 1)}
        codes.clear()
        sound = theirs.generate(
            **inputs, **given, do_sample=False, max_length=first + 8 + late, guidance_scale=guidance, pad_token_id=16,
            bos_token_id=16, decoder_start_token_id=16,
        )  # fmt: skip
        wanted = codes[0] if len(codes) == 1 else torch.stack(codes, 2).flatten(1, 2)  # left and right alternate
        found = write(ours, first + 8, rows=2, inputs=inputs, guidance=guidance, temperature=0.0, known=known)
        assert torch.equal(found.mT, wanted)
        if known is not None:
            assert torch.equal(found[:, :first], known)
        made = compose(ours, ["a waltz", "drums"], seconds=8 * 6 / 120, guidance=guidance, temperature=0.0,
                       prompt=None if known is None else prompt)  # fmt: skip
        for one, true in zip(made, sound, strict=True):
            wide = one.samples[:, None] if one.samples.ndim == 1 else one.samples
            np.testing.assert_allclose(wide.T, true.numpy(), atol=1e-5)


def test_with_and_without_a_cache_the_codes_are_the_same() -> None:
    model = musicgen(**ALONE)
    for name, pattern in PATTERNS.items():
        model.pattern = pattern
        found = write(model, 6, rows=2, temperature=0.0)
        laid = torch.cat((torch.full((2, 1, 3), 16), pattern.laid(found, 16)), 1)
        with torch.no_grad():
            best = model(input_ids=laid[:, :-1]).logits.argmax(-1)
        there = pattern.frames(6, 3) >= 0
        assert torch.equal(best[:, there], laid[:, 1:][:, there]), name


def test_guidance_and_rows_and_seeds() -> None:
    model = composing()
    one = texts_of(model, ["a waltz"])
    free = write(model, 7, inputs=texts_of(model, [""]), temperature=0.0)
    assert torch.equal(write(model, 7, inputs=one, guidance=0.0, temperature=0.0), free)
    told = write(model, 7, inputs=one, temperature=0.0)
    assert not torch.equal(told, free)
    both = write(model, 7, rows=2, inputs=texts_of(model, ["a waltz", ""]), temperature=0.0)
    assert torch.equal(both, torch.cat((told, free)))
    draw = lambda seed: write(model, 20, rows=2, inputs=texts_of(model, ["a", "a"]), temperature=2.0, seed=seed)  # noqa: E731
    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))
    assert torch.equal(draw(3)[0], draw(3)[1])  # a row's draws do not depend on its place
    assert torch.equal(write(model, 20, inputs=texts_of(model, ["a"]), temperature=2.0, top_k=1, seed=1),
                       write(model, 20, inputs=texts_of(model, ["a"]), temperature=0.0))  # fmt: skip


def test_books_draw_numbers_of_their_own() -> None:
    model = musicgen(**ALONE)
    model.pattern = Parallel()
    for head in model.head.books:
        torch.nn.init.zeros_(head.weight)
    codes = write(model, 40, seed=0)[0]
    assert not torch.equal(codes[:, 0], codes[:, 1]) and len(codes.unique()) > 10


def test_requests_that_make_no_sense_are_refused_by_name() -> None:
    model = composing()
    wrong: dict[str, dict[str, Any]] = {
        "seconds must be a number above 0; got 0": {"seconds": 0},
        "seconds must be a number above 0; got nan": {"seconds": float("nan")},
        r"seconds=30: .* 602 steps, and the context of this model is 64, about 3.1 seconds": {"seconds": 30},
        "guidance must be a number": {"guidance": float("inf")},
        "temperature must be a number 0": {"temperature": -1},
        "top_k must be a whole number": {"top_k": 0},
        "is empty": {"prompt": (np.zeros(0, np.float32), 120)},
        "a sample is NaN": {"prompt": (np.array([np.nan], np.float32), 120)},
        "has 3600 seconds, and at most 600": {"prompt": (np.zeros(3600 * 120, np.float32), 120)},
        "samples alone could be any sound": {"prompt": np.zeros(9, np.float32)},
        "texts must be a text or several": {"texts": []},
    }
    for problem, options in wrong.items():
        given: dict[str, Any] = {"texts": "a", "seconds": 0.2, **options}
        with pytest.raises(ValueError, match=problem):
            compose(model, **given)
    one = compose(model, "a", seconds=0.2, prompt=(np.array([0.5], np.float32), 120), seed=0)
    stereo = compose(model, "a", seconds=0.2, prompt=(np.zeros((9, 2), np.float32), 120), seed=0)
    assert one[0].samples.shape == (5 * 6,) and stereo[0].samples.ndim == 1  # of two channels the mean
    with pytest.raises(ValueError, match="need a tokenizer"):
        compose(musicgen(), "a", seconds=0.2)
    with pytest.raises(ValueError, match="llama writes no codes of sound"):
        compose(af.build("llama", "tiny"), "a")
    with pytest.raises(ValueError, match="this model has no codec"):
        compose(musicgen(**ALONE), "")
    with pytest.raises(ValueError, match="says 3 books of 16 codes for a channel, and its codec has 2 of 16"):
        compose(composing(codec={"bandwidths": (0.2,)}), "a", seconds=0.2)
    with pytest.raises(ValueError, match="known must be"):
        write(musicgen(**ALONE), 4, known=torch.zeros(1, 4, 3, dtype=torch.long))


def test_the_command_writes_files(tmp_path: Path, capsys: Any) -> None:
    model = composing()
    model.processor = None
    model.save(tmp_path / "model")
    soundfile.write(tmp_path / "tune.wav", 0.3 * np.sin(np.arange(60)), 120)
    argv = ["compose", "a waltz", "--model", str(tmp_path / "model"), "--seconds", "0.5", "--seed", "3"]
    assert main([*argv, "--out", str(tmp_path / "a.wav"), "--prompt", str(tmp_path / "tune.wav")]) == 0
    assert capsys.readouterr().out.strip().endswith("a.wav: 1.0 seconds")
    samples, rate = soundfile.read(tmp_path / "a.wav")
    assert (len(samples), rate) == (120, 120)
    assert main([*argv, "--out", str(tmp_path / "b.flac"), "--count", "2"]) == 0
    assert {p.name for p in tmp_path.glob("b*")} == {"b-1.flac", "b-2.flac"}
    assert main(["compose", "", *argv[2:], "--out", str(tmp_path / "c.wav")]) == 0
    assert main([*argv, "--seconds", "600"]) == 2 and "seconds=600" in capsys.readouterr().err
    again = recoding.write(tmp_path / "again.wav", compose(model, "a waltz", seconds=0.5, seed=3)[0])
    assert main([*argv, "--out", str(tmp_path / "d.wav")]) == 0
    assert Path(again).read_bytes() == (tmp_path / "d.wav").read_bytes()


def test_the_processor_of_the_codec_is_kept(tmp_path: Path) -> None:
    model = composing()
    model.save(tmp_path)
    steps = {"feature_extractor_type": "EncodecFeatureExtractor", "feature_size": 1, "sampling_rate": 120,
             "padding_side": "left", "padding_value": 0.0}  # fmt: skip
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(steps))
    with pytest.raises(ValueError, match="'padding_side' is 'left'"):
        af.load(tmp_path)
    file.write_text(json.dumps({**steps, "padding_side": "right"}))
    again = af.load(tmp_path)
    assert again.processor.rate == 120
    again.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / file.name).read_text()) == json.loads(file.read_text())
