"""Texts from frames: the likeliest path and the likeliest text, with and without a language model."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.data.vocabulary import letters
from anyformer.generate import transcribe
from anyformer.generate.paths import TextScorer, beam_search, best_path, greedy
from anyformer.generate.spelling import scores, spell
from anyformer.media.sound import sound

torch.set_num_threads(1)


def log_of(frames: int, symbols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, symbols, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


@pytest.fixture(scope="module")
def model() -> Any:
    made = af.build("wav2vec2", "tiny", vocab=9, seed=0).eval()
    made.tokenizer = letters(["no on"])  # <pad> <s> </s> <unk> | n o
    return made


def test_equal_neighbours_are_joined_and_the_blank_left_out() -> None:
    path = [1, 1, 0, 1, 2, 2, 0]
    log = torch.eye(3)[path]
    assert [(s.id, s.first, s.last) for s in best_path(log, 0)] == [(1, 0, 1), (1, 3, 3), (2, 4, 5)]
    keep = torch.tensor([[True] * 5 + [False] * 2])
    assert greedy(log[None], keep, 0) == [[1, 1, 2]]


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_likeliest_text_of_all_paths(seed: int) -> None:
    T, V, blank = 5, 3, 2
    log, sums = log_of(T, V, seed), dict[tuple[int, ...], float]()
    for path in itertools.product(range(V), repeat=T):
        text = tuple(v for v, _ in itertools.groupby(path) if v != blank)
        p = math.exp(sum(float(log[t, v]) for t, v in enumerate(path)))
        sums[text] = sums.get(text, 0.0) + p
    best = max(sums, key=sums.__getitem__)
    found, score = beam_search(log, blank, beams=200)
    assert tuple(found) == best and math.isclose(score, math.log(sums[best]), rel_tol=1e-4)


def test_a_language_model_decides_between_texts_that_sound_alike() -> None:
    lm = af.build("gpt", "tiny", vocab=5, seed=0).eval()
    lm.tokenizer = letters(["no on"])

    def says(which: str) -> list[int]:
        symbols = lm.tokenizer.encode("no"), lm.tokenizer.encode("on")
        favourite = lm.tokenizer.encode(which)
        log = torch.full((2, 7), -20.0)
        for place in range(2):  # both letters in both places, all but equally
            for ids in symbols:
                log[place, ids[place]] = -0.7

        def scorer(texts: Any) -> list[float]:
            return [0.0 if list(text) == favourite else -3.0 for text in texts]

        return beam_search(log, 0, 8, scorer, ends=4)[0]

    assert says("no") == lm.tokenizer.encode("no") and says("on") == lm.tokenizer.encode("on")


def test_scores_of_texts_are_those_of_the_language_model() -> None:
    lm = af.build("gpt", "tiny", vocab=7, seed=0).eval()
    lm.tokenizer = letters(["no on"])
    scorer = TextScorer(lm, lm.tokenizer.decode, weight=0.5, bonus=2.0)
    texts = [tuple(lm.tokenizer.encode(text)) for text in ("no on", "on")]
    found = scorer(texts)
    for text, score in zip(texts, found, strict=True):
        ids = torch.tensor([[1, *text]])  # <s>
        with torch.no_grad():
            log = lm(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).sum()
        words = 1 + list(text).count(4)
        assert math.isclose(score, 0.5 * float(log) + 2.0 * words, rel_tol=1e-4)
    with pytest.raises(ValueError, match="lm is a language model with its tokenizer"):
        TextScorer(af.build("bert", "tiny", seed=0), str)


def test_a_long_sound_in_pieces_has_every_frame_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(0).standard_normal(3001).astype(np.float32) / 4
    monkeypatch.setattr("anyformer.generate.spelling.PIECE", 600 / 16000)
    monkeypatch.setattr("anyformer.generate.spelling.BESIDE", 120 / 16000)
    log = scores(model, sound((samples, 16000)))
    assert len(log) == model.embed.frames(3001)


def test_transcribe_reads_a_ctc_model_by_its_head(model: Any, tmp_path: Path) -> None:
    samples = np.random.default_rng(1).standard_normal(4000).astype(np.float32) / 4
    found = transcribe(model, (samples, 16000), words=True)
    spelt = spell(model, (samples, 16000))
    assert found.text == spelt.text and found.seconds == 0.25 and found.language is None
    every = [word for segment in found.segments for word in segment.words]
    assert [w.text for w in every] == [w.text for w in spelt.words]
    assert all(0 <= w.start < w.end <= 0.2501 for w in every)
    assert transcribe(model, (samples[:5], 16000)).text == ""  # below one frame
    with pytest.raises(ValueError, match="language, task, prompt and timestamps are of Whisper"):
        transcribe(model, (samples, 16000), language="de")
    with pytest.raises(ValueError, match="lm scores the texts of a beam search, and beams is 1"):
        transcribe(model, (samples, 16000), lm=model)
    with pytest.raises(ValueError, match=r"lacks a head of symbols"):
        spell(af.build("wav2vec2", "tiny", task="none", seed=0), (samples, 16000))
